"""Pictures in files and memory <-> float arrays: reading, geometry, compositing, overlays, writing. No jax.

Axes    Y X pixels, H W tokens; sizes are (width, height) as PIL has them, arrays are rows first
Pixels  float32 in [0, 1], RGB. Every function is deterministic
"""

import contextlib
import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageDraw, ImageFilter

MAX_ASPECT = 4.0  # longer side over shorter side
MIN_SIDE = 16  # pixels
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
ANIMATED = {".gif": "GIF"}
_ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation
GREY = 0.5  # where a token is still hidden

# Heat map from cold to hot, interpolated in RGB.
_HEAT = np.array([[0.0, 0.0, 0.1], [0.3, 0.05, 0.5], [0.8, 0.2, 0.3], [1.0, 0.6, 0.1], [1.0, 1.0, 0.7]], np.float32)


class ImageError(ValueError):
    """A picture that cannot be read, used or written; names the file and the rule."""


# ---- reading


def load(source, name: str = "the image") -> Image.Image:
    """A path, PIL image or array -> an upright RGB picture within the size limits.

    Args:
      source: file name; bytes of a file; PIL image of any mode; or array [Y X], [Y X 1], [Y X 3] or [Y X 4]: uint8, uint16, bool, or
        float in [0, 1].
      name: what errors call it when it is not a file.
    EXIF rotation is applied, 16 bits are scaled to 8, and transparency is composited on white with a warning.
    Errors: FileNotFoundError, ImageError.
    """
    image, name = _open(source, name)
    image = _to_rgb(image, name)
    check_size(image.size, name)
    return image


def load_mask(source, size: tuple[int, int], name: str = "the mask") -> np.ndarray:
    """A mask picture, white = change, as `load` takes it -> bool [Y X]; its size must be the image's `size`."""
    image, name = _open(source, name)
    if image.size != tuple(size):
        raise ImageError(
            f"a mask must have the size of its image, {_by(size)}; {name} is {_by(image.size)}: resize it to match"
        )
    return np.asarray(_to_rgb(image, name).convert("L")) >= 128


def _open(source, name):
    """-> (upright PIL image of any mode, its name)"""
    if isinstance(source, Image.Image):
        return _upright(source), name
    if isinstance(source, (str, os.PathLike)):
        return _read(Path(source)), str(source)
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), name), name
    return _from_any_array(np.asarray(source), name), name


def _read(path: Path) -> Image.Image:
    if not path.is_file():
        found = "a folder is" if path.is_dir() else "there is none"
        raise FileNotFoundError(f"an image must be a file; {found} at {path}")
    return _decode(path, path)


def _decode(file, name) -> Image.Image:
    try:
        with Image.open(file) as image:
            image.load()  # so that a truncated file fails here
            return _upright(image)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large to be read safely: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(f"{name} must be a picture that Pillow can read, and it may be damaged: {error}") from error


def _upright(image):
    """The picture as its EXIF orientation says, and without what said so: it would turn again when loaded again.

    A damaged EXIF block says nothing.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001  (the pixels are good; Pillow raises many kinds for damaged EXIF blocks)
        orientation = None
    upright = image.transpose(_ROTATIONS[orientation]) if orientation in _ROTATIONS else image.copy()
    for key in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):
        upright.info.pop(key, None)
    return upright


def _from_any_array(array, name):
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or array.ndim == 3 and array.shape[2] in (3, 4)) or not array.size:
        raise ImageError(f"{name} as an array must be [Y X] or [Y X 1, 3 or 4]; got shape {array.shape}")
    if array.dtype == np.uint8:
        return Image.fromarray(array)
    return Image.fromarray(_to_8_bits(array, name))


def _to_8_bits(array, name):
    """bool, float in [0, 1], or wider integers that hold 16 bits -> uint8"""
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    scale = 1.0 if np.issubdtype(array.dtype, np.floating) else 65535.0
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > scale:
        raise ImageError(
            f"{name} must be 8 or 16 bits a channel, or float in [0, 1]; got {array.dtype} "
            f"from {array.min()} to {array.max()}"
        )
    return np.round(array.astype(np.float64) * (255 / scale)).astype(np.uint8)


def _to_rgb(image, name):
    if image.mode == "F" or image.mode.startswith("I"):  # float, and 16 or 32 bits of grey
        return Image.fromarray(_to_8_bits(np.asarray(image), name)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            warnings.warn(f"{name} is partly transparent: it is put on a white background", stacklevel=3)
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


# ---- geometry


def check_size(size: tuple[int, int], name: str = "the image") -> None:
    """Errors: ImageError when a picture is too small or too elongated to be edited."""
    short, long = sorted(size)
    if short < MIN_SIDE or long > MAX_ASPECT * short:
        raise ImageError(
            f"an image must have sides of at least {MIN_SIDE} pixels, the longer one at most {MAX_ASPECT:g} times the "
            f"shorter; {name} is {_by(size)}: crop or pad it"
        )


def working_size(size: tuple[int, int], native: int, unit: int) -> tuple[int, int]:
    """The size at which a picture of `size` is edited: its aspect ratio, about native * native pixels.

    Args:
      native: side of the squares that the model was trained on; unit: sides become multiples of it.
    """
    aspect = np.sqrt(size[0] / size[1])
    width, height = (max(1, round(float(side / unit))) * unit for side in (native * aspect, native / aspect))
    return width, height


def to_pixels(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """RGB picture -> float32 [Y X 3] of `size` (width, height)."""
    if image.size != tuple(size):
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(image, np.float32) / 255


def to_image(pixels, size: tuple[int, int] | None = None) -> Image.Image:
    """float [Y X 3] in [0, 1] -> RGB picture, resized to `size` where it differs."""
    image = Image.fromarray(np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    return image if size is None or image.size == tuple(size) else image.resize(size, Image.Resampling.LANCZOS)


def extend(image: Image.Image, pad: tuple[int, int, int, int]) -> Image.Image:
    """The picture with `pad` more pixels (left, top, right, bottom), which repeat its edges. Errors: ImageError."""
    _check_pad(pad)
    left, top, right, bottom = pad
    pixels = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge")
    check_size((pixels.shape[1], pixels.shape[0]), "the extended image")
    return Image.fromarray(pixels)


def padding_mask(size: tuple[int, int], pad: tuple[int, int, int, int]) -> Image.Image:
    """White where `extend` adds pixels to a picture of `size`, black elsewhere."""
    _check_pad(pad)
    left, top, right, bottom = pad
    inner = np.zeros((size[1], size[0]), np.uint8)
    return Image.fromarray(np.pad(inner, ((top, bottom), (left, right)), constant_values=255))


def _check_pad(pad):
    sides = list(pad) if isinstance(pad, (list, tuple)) else [pad]
    if len(sides) != 4 or any(isinstance(p, bool) or not isinstance(p, int) or p < 0 for p in sides) or not any(sides):
        raise ImageError(
            f"the padding must be four numbers of pixels (left, top, right, bottom), at least one above 0; got {pad!r}"
        )


def mask_to_grid(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """bool [Y X] -> bool [H W]: the tokens that cover any pixel of the mask."""
    covered = Image.fromarray(mask.astype(np.float32)).resize(grid[::-1], Image.Resampling.BOX)
    return np.asarray(covered) > 0.25 * grid[0] * grid[1] / mask.size  # a quarter of the share of one pixel


def mask_to_pixels(tokens: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [H W] -> bool [Y X] of a picture of `size` (width, height)."""
    picture = Image.fromarray(tokens.astype(np.uint8) * 255)
    return np.asarray(picture.resize(size, Image.Resampling.NEAREST)) > 0


# ---- compositing


def composite(image: Image.Image, edited: Image.Image, kept: np.ndarray, mask: np.ndarray | None = None) -> Image.Image:
    """The edited picture with the kept regions taken from the input, over a feathered seam.

    Args:
      image, edited: RGB pictures of the same size.
      kept: bool [H W] tokens to take from `image`. The seam lies on their side, one token wide: past it they are
        exactly the input's pixels.
      mask: bool [Y X], the user's own: where it is False the input's pixels are kept without exception; its seam is a
        quarter of a token wide and lies inside.
    """
    cell = min(image.width / kept.shape[1], image.height / kept.shape[0])
    share = 1 - _inner(mask_to_pixels(kept, image.size), max(1, round(cell)))
    if mask is not None:
        share = share * _inner(mask, max(1, round(cell / 4)))
    before, after = np.asarray(image, np.float32), np.asarray(edited, np.float32)
    mixed = before + share[..., None] * (after - before)
    return Image.fromarray(np.round(mixed).astype(np.uint8))


def _inner(region, radius):
    """float32 [Y X]: 0 outside the region, rising to 1 at `radius` pixels inside it."""
    soft = Image.fromarray(np.pad(region, radius, mode="edge").astype(np.uint8) * 255)
    soft = np.asarray(soft.filter(ImageFilter.BoxBlur(radius)), np.float32)[radius:-radius, radius:-radius] / 255
    return np.clip(2 * soft - 1, 0, 1) * region


# ---- what the model looked at


def overlay(image: Image.Image, scores: np.ndarray, strength: float = 0.6) -> Image.Image:
    """Heat map of relevance [H W], about 0 (dark) to 1 (bright), over a grey version of the picture."""
    smooth = Image.fromarray(np.asarray(scores, np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(smooth), 0, 1)
    stops = np.linspace(0, 1, len(_HEAT))
    colours = np.stack([np.interp(heat, stops, _HEAT[:, channel]) for channel in range(3)], axis=-1)
    grey = np.asarray(image.convert("L"), np.float32)[..., None] / 255
    return to_image((1 - strength) * grey + strength * colours)


def mask_picture(keep: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """bool [H W] of kept tokens -> black and white picture, white = changed; it can be given back as a mask."""
    return Image.fromarray((~mask_to_pixels(keep, size)).astype(np.uint8) * 255)


def hide(pixels: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """float [Y X 3] with the cells of hidden tokens (bool [H W]) in neutral grey."""
    return np.where(mask_to_pixels(hidden, pixels.shape[1::-1])[..., None], np.float32(GREY), pixels)


def strip(frames: Sequence[Image.Image], columns: int = 6, side: int = 256) -> Image.Image:
    """Numbered frames of one size in rows, scaled so that none is longer than `side`."""
    scale = min(1.0, side / max(frames[0].size))
    width, height = (max(1, round(length * scale)) for length in frames[0].size)
    gap, line = 4, 14
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap + line) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for index, frame in enumerate(frames):
        left, top = gap + index % columns * (width + gap), gap + index // columns * (height + gap + line)
        pen.text((left, top), f"{index + 1}/{len(frames)}", fill="black")
        sheet.paste(frame.resize((width, height), Image.Resampling.LANCZOS), (left, top + line))
    return sheet


# ---- writing


def check_distinct(paths: Sequence) -> None:
    """Errors: ImageError when two outputs would be one file."""
    names = [os.path.abspath(path) for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ImageError(f"every output needs a file of its own; {', '.join(twice)} is named twice")


def check_output(path, formats=None) -> None:
    """Fails before expensive work if `path` could not be written after it.

    Errors: ImageError naming the supported suffixes, the missing folder or what the system says.
    """
    path, formats = Path(path), formats or FORMATS
    if path.suffix.lower() not in formats:
        raise ImageError(
            f"the suffix of an output must be one of {', '.join(formats)}; got {path.suffix or 'none'!r} in {path}"
        )
    if path.is_dir():
        raise ImageError(f"an output must be a file; {path} is a folder")
    if not path.parent.is_dir():
        raise ImageError(f"an output needs an existing folder; there is no {path.parent}: create it")
    try:
        with _replacing(path) as temporary:
            temporary.touch()
            temporary.unlink()
    except OSError as error:
        raise ImageError(f"cannot write {path}: {error.strerror or error}") from error


def save(image: Image.Image, path) -> None:
    """Writes a picture whole or not at all. Errors: ImageError."""
    path = Path(path)
    check_output(path)
    with _replacing(path) as temporary:
        image.save(temporary, format=FORMATS[path.suffix.lower()], quality=95)


def save_steps(frames: Sequence[Image.Image], path, milliseconds: int = 150) -> None:
    """Writes frames as an animation (.gif; the last frame stays longer) or as a strip (any picture suffix)."""
    path = Path(path)
    check_output(path, FORMATS | ANIMATED)
    if path.suffix.lower() not in ANIMATED:
        return save(strip(frames), path)
    durations = [milliseconds] * (len(frames) - 1) + [10 * milliseconds]
    with _replacing(path) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


@contextlib.contextmanager
def _replacing(path):
    """A temporary name in the same folder; what lies there in the end takes the name of `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if temporary.exists():
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _by(size):
    return f"{size[0]} x {size[1]} pixels"
