"""What a server accepts, checked before anything is decoded."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of requests and of work."""

    body_bytes: int = 64 * 2**20
    pixels: int = 40_000_000  # of a picture
    frames: int = 1  # of a picture
    fields: int = 64  # of a form
    field_bytes: int = 64 * 2**10
    images: int = 10  # of a request (`n`)
    queue: int = 64  # requests that wait
    batch: int = 8  # pictures that are decoded as one batch
    workers: int = 1  # batches that are decoded at once
    wait_seconds: float = 0.02  # for requests to go together
    request_seconds: float = 300.0  # from arrival to answer
    kept_bytes: int = 256 * 2**20  # of answers that are fetched by URL
    kept_seconds: float = 3600.0
