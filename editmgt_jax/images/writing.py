"""Pictures -> files, which appear only once complete."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from editmgt_jax.files import replacing
from editmgt_jax.images.drawing import strip
from editmgt_jax.images.geometry import ImageError

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
MILLISECONDS = 150  # of a frame of an animation
ANIMATED = {".gif": "GIF"}


def check_distinct(paths: Sequence) -> None:
    """Errors: ImageError when two outputs would be one file."""
    names = [os.path.abspath(path) for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ImageError(f"every output needs a file of its own; {', '.join(twice)} is named twice")


def check_output(path: str | Path, formats: Mapping[str, str] | None = None) -> None:
    """Checks that a file can be written, before the work whose result it takes.

    Errors: ImageError with the supported suffixes, the missing folder or the message of the system.
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
        with replacing(path) as temporary:
            temporary.touch()
            temporary.unlink()
    except OSError as error:
        raise ImageError(f"cannot write {path}: {error.strerror or error}") from error


def save(image: Image.Image, path: str | Path) -> None:
    """Writes a picture; the file appears only once complete. Errors: ImageError."""
    path = Path(path)
    check_output(path)
    with replacing(path) as temporary:
        image.save(temporary, format=FORMATS[path.suffix.lower()], quality=95)


def save_steps(frames: Sequence[Image.Image], path: str | Path) -> None:
    """Writes frames as an animation (.gif; the last frame is shown ten times as long) or as a strip (any picture suffix). Errors: ImageError."""
    path = Path(path)
    check_output(path, FORMATS | ANIMATED)
    if path.suffix.lower() not in ANIMATED:
        return save(strip(frames), path)
    durations = [MILLISECONDS] * (len(frames) - 1) + [10 * MILLISECONDS]
    with replacing(path) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
