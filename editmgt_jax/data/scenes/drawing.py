"""A scene as a description, and the picture of it.

Axes    Y X pixels, of equal number
Exact   integer arithmetic throughout, so what two scenes share is equal in both pictures to the last bit
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Iterable

import numpy as np

from editmgt_jax.data.scenes import sprites


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object or person in a scene. x and y are the pixel where it stands."""

    key: str | tuple[str, str, str]
    look: str | None  # the colour or pattern it was given; None leaves it as it is
    side: int
    x: int
    y: int
    flip: bool
    slot: str

    @property
    def name(self) -> str:
        """Name of the object, or of the person."""
        return self.key if isinstance(self.key, str) else self.key[0]

    @property
    def seen_colour(self) -> str | None:
        """What it was given, else its own colour, else None."""
        return self.look or sprites.natural_colour(self.key)


@dataclasses.dataclass(frozen=True)
class Light:
    """What every pixel of a picture is multiplied with: a tint, brighter towards one side."""

    tint: tuple[float, float, float]
    towards: int = 0  # eighths of a turn, clockwise from the right
    slope: float = 0.0  # from the dark side to the bright side, 1 being the brightness in the middle


LIGHTS = tuple(
    Light(tuple(round(level * channel, 4) for channel in tint), towards, slope)
    for level in (0.72, 0.86, 1.0, 1.12)
    for tint in ((1.0, 1.0, 1.0), (1.07, 1.0, 0.88), (0.92, 0.99, 1.08))
    for towards, slope in ((0, 0.0), (0, 0.5), (4, 0.5), (5, 0.5), (6, 0.5), (7, 0.5))
    if (level, tint, slope) != (1.0, (1.0, 1.0, 1.0), 0.0)
)


@dataclasses.dataclass(frozen=True)
class Scene:
    background: str
    direction: int
    shift: tuple[int, int]
    flip: bool
    things: tuple[Thing, ...]
    light: Light | None = None


def _layer_of(thing, size):
    """The layer of a thing and where it falls: (layer, rows of the picture, columns, rows of the layer, columns)."""
    layer = sprites.layer(thing.key, thing.side, thing.look)
    if thing.flip:
        layer = sprites.flipped(layer)
    top, left = thing.y - layer.ground[1], thing.x - layer.ground[0]
    height, width = layer.body.shape
    rows, columns = slice(max(0, top), min(size, top + height)), slice(max(0, left), min(size, left + width))
    inner = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    return layer, (rows, columns), inner


def footprint(thing: Thing, size: int, whole: bool = True) -> np.ndarray:
    """Where a thing covers the picture, with its shadow or (whole=False) without. -> bool [Y X]"""
    mask = np.zeros((size, size), bool)
    layer, outer, inner = _layer_of(thing, size)
    mask[outer] = layer.rgba[inner][..., 3] > 0 if whole else layer.body[inner]
    return mask


def opaque(things: Iterable[Thing], size: int) -> np.ndarray:
    """Where things hide altogether what is behind them. -> bool [Y X]"""
    mask = np.zeros((size, size), bool)
    for thing in things:
        layer, outer, inner = _layer_of(thing, size)
        mask[outer] |= layer.rgba[inner][..., 3] == 255
    return mask


def stacked(scene: "Scene") -> list[Thing]:
    """The things of a scene from back to front."""
    return sorted(scene.things, key=operator.attrgetter("y"))


def in_front(thing: Thing, scene: "Scene") -> list[Thing]:
    """The things of a scene that may hide this one."""
    order = stacked(scene)
    return order[order.index(thing) + 1 :]


def _backdrop(scene, size):
    m = sprites.margin(size)
    full = sprites.view(scene.background, scene.direction, size, scene.flip)
    dy, dx = scene.shift
    return full[m + dy : m + dy + size, m + dx : m + dx + size]


@functools.lru_cache(128)
def _gains(light, size):
    """-> uint16 [Y X 3], 128 for what stays as bright as it is"""
    steps = (np.arange(size) + 0.5) / size - 0.5
    angle = light.towards * math.pi / 4
    along = steps * math.cos(angle) + steps[:, None] * math.sin(angle)  # [Y X]
    gains = (1 + light.slope * along)[..., None] * np.asarray(light.tint)
    return np.rint(128 * gains).astype(np.uint16)


def _lit(picture, light):
    lit = picture.astype(np.uint16)
    lit *= _gains(light, len(picture))
    lit >>= 7
    return np.minimum(lit, 255, out=lit).astype(np.uint8)


def render(scene: "Scene", size: int) -> np.ndarray:
    """-> uint8 [Y X 3]"""
    canvas = _backdrop(scene, size).copy()
    for thing in stacked(scene):
        layer, outer, inner = _layer_of(thing, size)
        rgba = layer.rgba[inner]
        below = canvas[outer].astype(np.uint16) * (255 - rgba[..., 3:].astype(np.uint16))
        canvas[outer] = rgba[..., :3] + ((below + 127) // 255).astype(np.uint8)
    return _lit(canvas, scene.light) if scene.light else canvas
