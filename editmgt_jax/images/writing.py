"""Pictures -> files, which appear only once complete.

A file has the colour profile of its picture; a format without profiles gets sRGB. JPEG keeps all colour detail.
"""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, PngImagePlugin

from editmgt_jax.files import check_writable, replacing
from editmgt_jax.images.drawing import strip
from editmgt_jax.images.geometry import ImageError, size_text
from editmgt_jax.images.profiles import KEY, to_srgb
from editmgt_jax.images.sources import shown

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
LONGEST = {"JPEG": 65500, "WEBP": 16383, "GIF": 65535}  # side in pixels, of formats that have such a limit
OPTIONS = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}
WITHOUT_PROFILES = {"BMP", "GIF"}
MILLISECONDS = 150  # of a frame of an animation
ANIMATED = {".gif": "GIF"}


def check_distinct(outputs: Sequence[str | Path], inputs: Sequence[str | Path] = ()) -> None:
    """Errors: ImageError when two outputs would be one file, or an output one of the inputs."""
    names = [_real(path) for path in outputs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ImageError(f"every output needs a file of its own; {', '.join(map(shown, twice))} is named twice")
    for path in inputs:
        for output in outputs:
            if _real(path) == _real(output) or _same_file(path, output):
                raise ImageError(f"an output must not replace what is read; {shown(output)} is the input {shown(path)}")


def _real(path) -> str:
    try:
        return os.path.realpath(path)
    except ValueError:  # a NUL
        return str(path)


def _same_file(one, other) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def check_size_of(path: str | Path, size: tuple[int, int]) -> None:
    """Errors: ImageError when the format of an output cannot hold a picture of `size`."""
    suffix = Path(path).suffix.lower()
    longest = LONGEST.get((FORMATS | ANIMATED).get(suffix))
    if longest is not None and max(size) > longest:
        raise ImageError(
            f"a {suffix} picture has sides of at most {longest} pixels; {shown(path)} would be {size_text(size)}: take .png"
        )


def check_output(path: str | Path, formats: Mapping[str, str] | None = None) -> None:
    """Checks that a file can be written, before the work whose result it takes.

    Errors: ImageError with the supported suffixes, the missing folder or the message of the system.
    """
    path, formats, name = Path(path), formats or FORMATS, shown(path)
    if path.suffix.lower() not in formats:
        raise ImageError(
            f"the suffix of an output must be one of {', '.join(formats)}; got {shown(path.suffix) or 'none'!r} in {name}"
        )
    try:
        if path.is_dir():
            raise ImageError(f"an output must be a file; {name} is a folder")
        if not path.parent.is_dir():
            raise ImageError(f"an output needs an existing folder; there is no {shown(path.parent)}: create it")
        if path.exists() and not path.is_file():
            raise ImageError(f"an output must be a file; {name} is a device, a pipe or a socket")
        check_writable(path)
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(reason if "cannot write" in reason else f"cannot write {name}: {reason}") from error


def save(image: Image.Image, path: str | Path, notes: Mapping[str, str] | None = None) -> None:
    """Writes a picture; the file appears only once complete.

    Args:
      notes: texts by their keys, for PNG alone; see `read_notes`.
    Errors: ImageError; OSError naming the file.
    """
    if not (isinstance(image, Image.Image) and isinstance(path, (str, os.PathLike))):
        raise ImageError(f"a PIL image is saved under a path; got {type(image).__name__} and {type(path).__name__}")
    path = Path(path)
    check_size_of(path, image.size)
    check_output(path)
    kind = FORMATS[path.suffix.lower()]
    if kind in WITHOUT_PROFILES:
        image = to_srgb(image)
    options = dict(OPTIONS.get(kind, {}))
    if notes:
        if kind != "PNG":
            raise ImageError(f"only .png has notes; got {shown(path)}")
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for key, text in notes.items():
            options["pnginfo"].add_itxt(key, text)
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options, icc_profile=image.info.get(KEY))
    _write(buffer, path)


def _write(buffer, path) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())  # not a view, which the frames of an error would hold


def save_steps(frames: Sequence[Image.Image], path: str | Path) -> None:
    """Writes frames as an animation (.gif; the last frame is shown ten times as long) or as a strip (any picture suffix). Errors: ImageError."""
    path = Path(path)
    check_output(path, FORMATS | ANIMATED)
    if path.suffix.lower() not in ANIMATED:
        return save(strip(frames), path)
    durations = [MILLISECONDS] * (len(frames) - 1) + [10 * MILLISECONDS]
    first, *others = map(to_srgb, frames)
    buffer = io.BytesIO()
    first.save(buffer, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)
    _write(buffer, path)
