"""One process that serves one model until a signal ends it."""

import contextlib
import logging
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence

import uvicorn
from jax.typing import DTypeLike
from PIL import Image

from editmgt_jax.batching import power_of_two
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.serving.app import Server, make_app
from editmgt_jax.serving.engine import Engine
from editmgt_jax.serving.limits import Limits

GRACE = 30  # seconds for answers that are under way when the server ends


class _Uvicorn(uvicorn.Server):
    """Answers what waits at once when a signal comes; what runs is finished."""

    def __init__(self, config: uvicorn.Config, engine: Engine):
        super().__init__(config)
        self._engine = engine

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """While it serves, signals end it in order, and the process then ends with 0."""
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def handle_exit(self, sig, frame) -> None:
        """Called with the signal."""
        self._engine.close()
        super().handle_exit(sig, frame)

    async def startup(self, sockets=None) -> None:
        """Says where it listens."""
        await super().startup(sockets)
        for server in self.servers:
            for socket in server.sockets:
                host, port = socket.getsockname()[:2]
                print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", file=sys.stderr, flush=True)


def run(
    model: str | None,
    *,
    name: str,
    dtype: DTypeLike | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: Sequence[str] = (),
    warm: Sequence[tuple[int, int]] = (),
    limits: Limits | None = None,
) -> None:
    """Loads a model directory (None: the default), compiles for pictures of the sizes `warm`, and serves.

    Args:
      name: of the model, for clients; keys: see `app.Server`; warm: widths and heights.
    Errors: those of loading.
    """
    limits = limits or Limits()
    warnings.simplefilter("ignore", UserWarning)  # notes on pictures are nothing for the log
    pipe = EditPipeline.from_pretrained(model, dtype=dtype, batch_size=limits.batch)
    for size in warm:
        compile_for(pipe, size)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("editmgt.serve").setLevel(logging.INFO)
    engine = Engine(pipe, limits)
    app = make_app(Server(engine, name, keys))
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    _Uvicorn(config, engine).run()


def compile_for(pipe: EditPipeline, size: tuple[int, int]) -> None:
    """Compiles the programs of batches of 1, 2, 4, ... pictures of a size, under the model's own settings."""
    count = 1
    while count <= power_of_two(pipe.batch_size):
        picture = Image.new("RGB", size, "gray")
        pipe.together(
            [{"image": picture, "instruction": "warm up", "seed": i} for i in range(min(count, pipe.batch_size))]
        )
        count *= 2
