"""What a request is answered with: pictures as files, in JSON, by URL, or as events of a stream."""

import base64
import collections
import io
import json
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from editmgt_jax.serving.limits import Limits
from editmgt_jax.serving.requests import Asked

TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def encoded(image: Image.Image, asked: Asked) -> bytes:
    """A picture as a file of the size, format and quality that were asked for, with its colour profile."""
    if asked.size and image.size != asked.size:
        profile = image.info.get("icc_profile")
        image = image.resize(asked.size, Image.Resampling.LANCZOS)
        image.info["icc_profile"] = profile
    options: dict[str, Any] = {"icc_profile": image.info.get("icc_profile")}
    if asked.output_format != "png":
        options["quality"] = asked.compression
    if asked.output_format == "jpeg" and asked.compression >= 90:
        options["subsampling"] = 0
    buffer = io.BytesIO()
    image.save(buffer, asked.output_format.upper(), **options)
    return buffer.getvalue()


class Kept:
    """Answers that are fetched by URL: in memory, for a while."""

    def __init__(self, limits: Limits):
        self._limits, self._lock = limits, threading.Lock()
        self._files: collections.OrderedDict[str, tuple[float, bytes]] = collections.OrderedDict()

    def add(self, data: bytes, kind: str) -> str:
        """-> the name that it is fetched by, which nobody can guess"""
        name = f"{secrets.token_urlsafe(24)}.{kind}"
        with self._lock:
            self._files[name] = time.monotonic() + self._limits.kept_seconds, data
            self._drop()
        return name

    def get(self, name: str) -> bytes | None:
        """The file, None where it is gone or never was."""
        with self._lock:
            self._drop()
            return self._files.get(name, (0.0, None))[1]

    def _drop(self):
        now = time.monotonic()
        size = sum(len(data) for _, data in self._files.values())
        while self._files and (size > self._limits.kept_bytes or next(iter(self._files.values()))[0] < now):
            _, (_, data) = self._files.popitem(last=False)
            size -= len(data)


def described(asked: Asked, image: Image.Image) -> dict[str, Any]:
    """What an answer says about its pictures."""
    width, height = asked.size or image.size
    return {
        "size": f"{width}x{height}",
        "quality": "auto",
        "background": "opaque",
        "output_format": asked.output_format,
    }


def events(asked: Asked, partial: Sequence[Image.Image], image: Image.Image) -> Iterator[str]:
    """Server-sent events: the pictures of some steps, then the edit."""
    for index, frame in enumerate(partial):
        yield _event("image_edit.partial_image", asked, frame, partial_image_index=index)
    yield _event("image_edit.completed", asked, image)


def _event(kind, asked, image, **more):
    data = base64.b64encode(encoded(image, asked)).decode()
    body = {"type": kind, "b64_json": data, "created_at": int(time.time())} | described(asked, image) | more
    return f"event: {kind}\ndata: {json.dumps(body)}\n\n"


def error_event(body: dict) -> str:
    """The event of a request that failed after its stream began."""
    return f"event: error\ndata: {json.dumps({'type': 'error'} | body)}\n\n"


def partial_steps(steps: int, count: int) -> list[int]:
    """The steps, from 0, whose pictures a stream shows: `count` at most, evenly spread, without the last."""
    shown = min(count, steps - 1)
    return [round((i + 1) * steps / (shown + 1)) - 1 for i in range(shown)]
