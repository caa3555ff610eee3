"""The pictures that scenes are made of: objects and people cut out, and views of panoramas. Cached per process.

Axes    H W rows and columns of a layer, Y X pixels of the square picture
Units   the side of a sprite is the length in pixels that its 128-pixel canvas is scaled to
"""

import dataclasses
import functools
import json
import math
import pathlib

import numpy as np
from PIL import Image
from scipy import ndimage

from editmgt_jax.data.scenes import colours, patterns

ASSETS = pathlib.Path(__file__).resolve().parents[2] / "assets" / "scenes"
CANVAS = 128  # pixels, the longest side of every sprite file
Key = str | tuple[str, str, str]  # an object's name, or (person, action, tone)


def words(text: str) -> tuple[str, ...]:
    """'a, b c' -> ('a', 'b c')"""
    return tuple(text.split(", "))


CORE = words(
    "cat, pig, elephant, penguin, turtle, fish, butterfly, frog, chick, flamingo, dinosaur, cow, crab, "
    "apple, banana, grapes, strawberry, pineapple, eggplant, carrot, mushroom, hamburger, pizza, "
    "cactus, rose, sunflower, tree, car, bus, bicycle, rocket, sailboat, tractor, "
    "balloon, gift box, chair, teapot, crown, guitar, house, basketball, computer"
)
NOVEL = ("dolphin", "telephone", "pumpkin", "helicopter")  # never seen in training
CORE_ACTIONS = ("standing", "running", "kneeling", "dancing", "lifting weights")
CORE_TONES = ("light", "medium", "dark")

_RENAMED = {  # file name -> the word that people use for what is drawn
    "t-rex": "dinosaur",
    "pumpkin lantern": "pumpkin",
    "red book": "book",
    "zebra face": "zebra",
    "giraffe face": "giraffe",
    "long-necked dinosaur": "brontosaurus",
    "american football": "football",
    "tennis ball": "tennis racket",
    "soccer": "soccer ball",
    "bowling": "bowling pins",
    "dart": "dartboard",
    "die": "dice",
    "ski": "ski boot",
    "bug": "caterpillar",
    "feet": "paw prints",
    "helmet with white cross": "helmet",
    "baguette bread": "baguette",
    "cup of soda": "soda",
    "cup of tea": "tea",
    "cup of coffee": "coffee",
    "mug of beer": "beer",
    "bowl of ice cream": "ice cream",
}
PLURAL = words(  # and what is not counted
    "grapes, cherries, french fries, beans, peanuts, blueberries, pancakes, jeans, gloves, socks, eyeglasses, "
    "maracas, shopping bags, bowling pins, paw prints, dice, popcorn, bacon, corn, broccoli, garlic, tea, coffee, "
    "beer, soda, ice cream, bubble tea, butter, coral"
)

PANORAMAS = {  # name -> how an instruction says it
    "apartment": "an apartment",
    "bridge": "a bridge",
    "city": "a city",
    "dawn": "dawn",
    "esplanade": "an esplanade",
    "forest": "a forest",
    "hall": "a hall",
    "lab": "a lab",
    "lobby": "a lobby",
    "night": "night",
    "park": "a park",
    "sky": "the sky",
    "studio": "a studio",
    "sunrise": "sunrise",
    "sunset": "sunset",
    "venice": "venice",
    "warehouse": "a warehouse",
    "workshop": "a workshop",
}
_PAINTED_SHARE = 0.5  # the same, to be given a pattern or a shade of grey
_COLOURED_SHARE = 0.41  # of an object must be its main colour for it to be called by it, or to be given another

VIEWS = 6  # directions per panorama
_FIELD_OF_VIEW = math.radians(62)
_PITCH = math.radians(8)  # down, so that the horizon is above the middle
_GRADE = {"night": (0.5, 0.55, 0.75)}  # a long exposure, brought back to how a night looks


@dataclasses.dataclass(frozen=True)
class Layer:
    """A sprite with its shadow, ready to paste. rgba is premultiplied; where its alpha is 0 nothing changes."""

    rgba: np.ndarray  # uint8 [H W 4]
    body: np.ndarray  # bool [H W], the object without its shadow
    ground: tuple[int, int]  # column and row of the point that stands on the ground


@functools.cache
def catalogue() -> tuple[dict[str, str], dict[tuple[str, str, str], str]]:
    """{name: file} of all objects, and {(person, action, tone): file} of all people."""
    objects = json.loads((ASSETS / "objects.json").read_text())
    people = json.loads((ASSETS / "people.json").read_text())
    return (
        {_RENAMED.get(entry["name"], entry["name"]): entry["file"] for entry in objects},
        {(entry["person"], entry["action"], entry["tone"]): entry["file"] for entry in people},
    )


def article(phrase: str, name: str) -> str:
    """'an apple', 'a red apple', 'some grapes'."""
    if name in PLURAL:
        return f"some {phrase}"
    return f"an {phrase}" if phrase[0] in "aeiou" and not phrase.startswith("ufo") else f"a {phrase}"


@functools.lru_cache(2048)
def picture(key: Key) -> np.ndarray:
    """The cut-out of an object name or of a (person, action, tone). -> uint8 [H W 4], not premultiplied"""
    objects, people = catalogue()
    rgba = np.asarray(Image.open(ASSETS / (objects[key] if isinstance(key, str) else people[key])).convert("RGBA"))
    rows, columns = np.flatnonzero((rgba[..., 3] > 12).any(1)), np.flatnonzero((rgba[..., 3] > 12).any(0))
    return rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@functools.lru_cache(2048)
def _painted(key, look):
    rgba = picture(key)
    if look is None:
        return rgba
    paint = patterns.draw if look in patterns.PATTERNS else colours.recolour
    return np.dstack([paint(rgba[..., :3], rgba[..., 3], look), rgba[..., 3]])


@functools.cache
def natural_colour(key: Key) -> str | None:
    """The measured colour name of an object as it is, or None where it has no main colour."""
    rgba = picture(key)[::2, ::2]
    main = colours.dominant_hue(rgba[..., :3], rgba[..., 3])
    if main is None or main[3] < _COLOURED_SHARE:
        return None
    return colours.name_colour(rgba[..., :3], rgba[..., 3])


@functools.cache
def possible_colours(key: Key) -> tuple[str, ...]:
    """Names of the colours that this object can be given so that the result measures as that name."""
    name = natural_colour(key)
    if name is None or not isinstance(key, str) or any(word in key for word in (*colours.NAMES, "black", "white")):
        return ()
    rgba = picture(key)[::2, ::2]
    rgb, alpha = rgba[..., :3], rgba[..., 3]
    return tuple(
        target
        for target in colours.TARGET_HUES
        if target != name and colours.name_colour(colours.recolour(rgb, alpha, target), alpha) == target
    )


@functools.cache
def other_looks(key: Key) -> tuple[str, ...]:
    """Names of colours and patterns, besides `possible_colours`, that can be made out on this object."""
    if (
        not possible_colours(key)
        or colours.dominant_hue(picture(key)[..., :3], picture(key)[..., 3])[3] < _PAINTED_SHARE
    ):
        return ()
    rgb, alpha = picture(key)[::2, ::2, :3], picture(key)[::2, ::2, 3]
    greys = [name for name in colours.GREYS if colours.name_colour(colours.recolour(rgb, alpha, name), alpha) is None]
    brown = (
        natural_colour(key) != "brown" and colours.name_colour(colours.recolour(rgb, alpha, "brown"), alpha) == "brown"
    )
    return (*(["brown"] if brown else []), *greys, *patterns.PATTERNS)


def _scaled(shape, side):
    """Height and width of a picture once its canvas is `side` pixels long."""
    return tuple(max(2, round(length * side / CANVAS)) for length in shape[:2])


def _padding(side):
    """Columns left and right of a sprite, and rows below it, for its shadow."""
    return math.ceil(0.1 * side), math.ceil(0.07 * side)


@functools.lru_cache(8192)
def extent(key: Key, side: int) -> tuple[int, int]:
    """(half, height) in pixels: columns from where a sprite stands to the farther edge of its body, and its rows."""
    height, width = _scaled(picture(key).shape, side)
    return (width + 1) // 2, height


@functools.lru_cache(16384)
def layer(key: Key, side: int, look: str | None = None) -> "Layer":
    """The sprite scaled to `side` pixels, with a soft contact shadow below it. -> Layer"""
    rgba = _painted(key, look)
    height, width = _scaled(rgba.shape, side)
    small = np.asarray(Image.fromarray(rgba).convert("RGBa").resize((width, height), Image.Resampling.HAMMING))
    small = np.where(small[..., 3:] < 6, 0, np.minimum(small, small[..., 3:]))  # [height width 4]

    pad_x, pad_y = _padding(side)
    alpha = np.pad(small[..., 3], ((0, pad_y), (pad_x, pad_x)))
    foot = np.flatnonzero((alpha[round(0.72 * height) : height] > 127).any(0))
    left, right = (foot[0], foot[-1]) if foot.size else (pad_x, pad_x + width - 1)
    across = (np.arange(alpha.shape[1]) - (left + right) / 2) / (0.5 * (right - left + 1) + 0.09 * side)
    down = (np.arange(alpha.shape[0]) - (height - 0.025 * side)) / (0.085 * side)
    dark = 190 * np.exp(-1.5 * (across**2 + down[:, None] ** 2)) - 42
    shadow = np.clip(dark, 0, 255) * (1 - alpha / 255)

    out = np.zeros((*alpha.shape, 4), np.uint8)
    out[:height, pad_x : pad_x + width, :3] = small[..., :3]
    out[..., 3] = np.minimum(255, alpha + np.floor(shadow))
    return Layer(out, alpha > 0, (pad_x + width // 2, height))


def flipped(sprite: "Layer") -> "Layer":
    """The same layer seen in a mirror."""
    width = sprite.body.shape[1]
    column, row = sprite.ground
    return Layer(sprite.rgba[:, ::-1], sprite.body[:, ::-1], (width - 1 - column, row))


def margin(size: int) -> int:
    """Pixels by which a view is larger than the picture on each side, so that it can be shifted."""
    return max(2, size // 20)


@functools.lru_cache(32)
def _panorama(name):
    image = np.asarray(Image.open(ASSETS / "backgrounds" / f"{name}.webp").convert("RGB"))
    # The files ring around lamps and the sun: thin black lines and specks next to white, which a closing fills.
    lamps = ndimage.maximum_filter(image.min(-1), 11, mode="wrap") >= 250
    filled = ndimage.grey_closing(image, (5, 5, 1), mode="wrap")
    ringing = lamps & ((filled.astype(np.int16) - image).max(-1) > 50)
    image = np.where(ringing[..., None], filled, image).astype(np.float32)
    return image * np.asarray(_GRADE.get(name, (1, 1, 1)), np.float32)


@functools.lru_cache(512)
def view(name: str, direction: int, size: int, flip: bool = False) -> np.ndarray:
    """Perspective view of a panorama towards one of `VIEWS` directions. -> uint8 [Y+2m X+2m 3], m = margin(size)"""
    if flip:
        return np.ascontiguousarray(view(name, direction, size)[:, ::-1])
    pano = _panorama(name)
    rows, columns = pano.shape[:2]
    full, oversample = size + 2 * margin(size), 2 if size <= 128 else 1
    steps = (np.arange(full * oversample) + 0.5) / oversample - full / 2
    x, y = np.meshgrid(steps, steps)
    z = size / 2 / math.tan(_FIELD_OF_VIEW / 2)
    down, ahead = y * math.cos(_PITCH) + z * math.sin(_PITCH), z * math.cos(_PITCH) - y * math.sin(_PITCH)
    longitude = np.arctan2(x, ahead) / (2 * math.pi) + (direction + 0.5) / VIEWS
    latitude = np.arctan2(down, np.hypot(x, ahead)) / math.pi + 0.5
    where = [latitude * rows - 0.5, longitude % 1 * columns - 0.5]
    seen = np.stack([ndimage.map_coordinates(pano[..., c], where, order=1, mode="grid-wrap") for c in range(3)], -1)
    seen = seen.reshape(full, oversample, full, oversample, 3).mean((1, 3))
    return np.clip(np.rint(seen), 0, 255).astype(np.uint8)
