"""Whatever holds a picture -> an opened PIL image and its name for messages.

A source is a path (of a file or a pipe), the bytes of a file, a data URI, a file open for reading, a PIL image, or an array.
"""

import base64
import binascii
import io
import os
import re
import select
import stat
import urllib.parse
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from editmgt_jax.errors import one_line, shown
from editmgt_jax.images.geometry import ImageError

Readable = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray
KINDS = "a path, the bytes of a file, an open file, a data URI, a PIL image or an array"
WAIT = 10.0  # seconds for the first bytes of a pipe
LARGE = 50_000_000  # pixels of a picture that is worth a word
CHUNK = 1 << 20  # bytes


def open_source(source: Any, name: str) -> tuple[Image.Image, str]:
    """A source, loaded, and its name: that of its file, or `name`. Errors: FileNotFoundError, ImageError."""
    if isinstance(source, Image.Image):
        return _loaded(source, name), name
    if isinstance(source, str) and source.startswith("data:"):
        return _decode(io.BytesIO(_of_data_uri(source, name)), name), name
    if isinstance(source, (str, os.PathLike)):
        return _of_path(source), shown(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(bytes(source)), name), name
    if callable(getattr(source, "read", None)) and not isinstance(source, type):
        return _decode(io.BytesIO(_of_file(source, name)), name), name
    if isinstance(source, np.ndarray) or hasattr(source, "__array__") or hasattr(source, "__array_interface__"):
        if not isinstance(source, type):
            return from_array(_as_array(source, name), name), name
    raise ImageError(f"{name} must be {KINDS}; got {type(source).__name__}")


# ---- bytes


def _of_path(source) -> Image.Image:
    try:
        text = os.fspath(source)
    except TypeError as error:
        raise ImageError(f"an image must be {KINDS}; got {type(source).__name__}: {error}") from error
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise ImageError(f"an image must be a file on this machine; got the address {shown(text)}: download it first")
    name, path = shown(text), Path(text)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"an image must be a file; there is none at {name}") from error
    except (OSError, ValueError) as error:  # a name that is too long, a loop of links, a NUL
        raise ImageError(f"cannot read the image {name}: {_reason(error)}") from error
    if stat.S_ISDIR(mode):
        raise FileNotFoundError(f"an image must be a file; a folder is at {name}")
    if stat.S_ISFIFO(mode):
        return _decode(io.BytesIO(_of_pipe(path, name)), name)
    if not stat.S_ISREG(mode):
        raise ImageError(f"an image must be a file or a pipe; {name} is a device or a socket")
    try:
        with open(path, "rb") as file:
            return _decode(file, name)
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(f"cannot read the image {name}: {_reason(error)}") from error


def _of_pipe(path, name) -> bytes:
    """All that is written to a pipe, whose writer may come later. Errors: ImageError if none comes."""
    try:
        pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise ImageError(f"cannot read the image {name}: {_reason(error)}") from error
    try:
        if not select.select([pipe], [], [], WAIT)[0]:
            raise ImageError(f"the image {name} is a pipe to which nothing was written for {WAIT:.0f} s")
        os.set_blocking(pipe, True)
        return b"".join(iter(lambda: os.read(pipe, CHUNK), b""))
    finally:
        os.close(pipe)


def _of_file(file, name) -> bytes:
    """All of an open file, from its start if it can be rewound. Errors: ImageError."""
    try:
        if getattr(file, "seekable", lambda: False)() is True:
            file.seek(0)
        data = file.read()
    except Exception as error:  # noqa: BLE001  (closed, open for writing, or a class of somebody that raises any kind)
        raise ImageError(f"cannot read {name} from the open file: {_reason(error)}") from error
    if not isinstance(data, (bytes, bytearray, memoryview)):
        if callable(getattr(data, "close", None)):
            data.close()  # a coroutine that nobody awaits
        raise ImageError(f"{name} as an open file must give bytes: open it in binary mode; got {type(data).__name__}")
    return bytes(data)


def _of_data_uri(text, name) -> bytes:
    """The bytes of data:[TYPE][;base64],DATA. Errors: ImageError."""
    head, comma, data = text.partition(",")
    if not comma:
        raise ImageError(f"{name} as a data URI must be data:TYPE;base64,DATA; got {shown(text[:60])}")
    data = urllib.parse.unquote_to_bytes(data)
    if not head.endswith(";base64"):
        return data
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error as error:
        raise ImageError(f"{name} is a damaged data URI: {error}") from error


# ---- pictures


def _decode(file, name) -> Image.Image:
    if isinstance(file, io.BytesIO) and not file.getbuffer().nbytes:
        raise ImageError(f"{name} must be a picture; it is empty")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of sizes, for which there are own words, and of damage, for which there are errors
        try:
            image = Image.open(file)
        except Image.DecompressionBombError as error:
            raise ImageError(f"{name} is too large to read: {error}") from error
        except Exception as error:  # noqa: BLE001  (Pillow raises many kinds for damaged files)
            raise _damaged(name, error) from error
    with image:
        if image.width * image.height > LARGE:
            millions = image.width * image.height / 1e6
            warnings.warn(f"{name} has {millions:.0f} million pixels, which takes time and memory", stacklevel=4)
        return _loaded(image, name)


def _loaded(image, name) -> Image.Image:
    """The picture with its pixels read, so that a truncated file fails here; says that others are left out."""
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception:  # noqa: BLE001  (the first frame may be good; Pillow raises many kinds for damaged files)
        frames = 1
    try:
        image.load()
    except Exception as error:  # noqa: BLE001  (the same)
        raise _damaged(name, error) from error
    if frames > 1:
        warnings.warn(f"{name} has {frames} frames or pages; frame {image.tell() + 1} alone is used", stacklevel=4)
    return image


def _damaged(name, error) -> ImageError:
    if isinstance(error, MemoryError):
        return ImageError(f"{name} needs more memory than there is")
    return ImageError(f"{name} must be a picture that Pillow can read, and it may be damaged: {_reason(error)}")


def _reason(error) -> str:
    """What an error says, in one line without the name of the file."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return one_line(re.sub(r"<_io\.\w+ [^>]*>", "the bytes", text))


# ---- arrays


def _as_array(source, name) -> np.ndarray:
    try:
        return np.asarray(source)
    except Exception as error:  # noqa: BLE001  (classes of others raise any kind)
        raise ImageError(f"{name} must be {KINDS}; {type(source).__name__} gives no array: {_reason(error)}") from error


def from_array(array: np.ndarray, name: str) -> Image.Image:
    """[Y X], [Y X 1], [Y X 3] or [Y X 4] of any type of number -> a picture of 8 bits a channel. Errors: ImageError."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or array.ndim == 3 and array.shape[2] in (3, 4)) or not array.size:
        hint = ": put the channels last" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageError(f"{name} as an array must be [Y X] or [Y X 1, 3 or 4]; got shape {array.shape}{hint}")
    return Image.fromarray(to_8_bits(array, name))


def to_8_bits(array: np.ndarray, name: str, highest: float | None = None) -> np.ndarray:
    """Numbers of any type -> uint8, by the range of their values. Errors: ImageError.

    Args:
      highest: the value of white; None is 255 for whole numbers up to it, else 65535, and for others 1 if none is larger,
        else 255.
    """
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    whole = array.dtype.kind in "iu"
    if array.dtype == np.uint8:
        return array
    if not (whole or array.dtype.kind == "f" or array.dtype.name.startswith(("bfloat16", "float"))):
        raise ImageError(f"{name} must be numbers of 8 or 16 bits a channel, or floats; got {array.dtype}")
    values = array if array.dtype.kind in "iuf" else array.astype(np.float32)
    low, high = values.min(), values.max()
    if array.dtype == np.int8 and high > 1:  # masks of 0 and 1 are good
        raise ImageError(
            f"{name} as int8 has no values above 127, so no white: give uint8; got int8 from {low} to {high}"
        )
    if highest is None:
        highest = (255 if high <= 255 else 65535) if whole else (1.0 if high <= 1.001 else 255.0)
    # Floats a little above 1 come from filters; between that and 16 they are neither 0..1 nor a picture of 0..255.
    doubtful = not whole and highest == 255.0 and high < 16
    if not np.isfinite([low, high]).all() or low < (0 if whole else -0.001) or high > highest * 1.001 or doubtful:
        raise ImageError(
            f"{name} must be whole numbers in 0..255 or 0..65535, or floats in 0..1 or 0..255; got {array.dtype} from {low} to {high}"
        )
    scaled = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), 256):  # in strips, for large pictures
        strip = values[start : start + 256].astype(np.float64) * (255 / highest)
        scaled[start : start + 256] = np.round(np.clip(strip, 0, 255))
    return scaled
