"""One process that serves one model until a signal ends it."""

import contextlib
import dataclasses
import logging
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import uvicorn
from jax.typing import DTypeLike
from PIL import Image

from editmgt_jax.batching import power_of_two
from editmgt_jax.files import temporary_folder
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.serving.app import Server, make_app
from editmgt_jax.serving.engine import Engine
from editmgt_jax.serving.limits import Limits

GRACE = 30  # seconds for answers that are under way when the server ends


class _Uvicorn(uvicorn.Server):
    """Answers what waits at once when a signal comes; what runs is finished."""

    def __init__(self, config: uvicorn.Config, close: Sequence[Callable[[], None]]):
        super().__init__(config)
        self._close = close

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
        for close in self._close:
            close()
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
    batch: int | None = None,
    workers: int | None = None,
    with_page: bool = False,
) -> None:
    """Loads a model directory (None: the default), compiles for pictures of the sizes `warm`, and serves.

    Args:
      name: of the model, for clients; keys: see `app.Server`; warm: widths and heights; with_page: whether browsers get a page.
      batch, workers: see `for_this_machine`.
    Errors: those of loading; ImportError without gradio for a page.
    """
    if with_page:
        from editmgt_jax.serving.page import Page
    limits = for_this_machine(limits or Limits(), batch, workers)
    warnings.simplefilter("ignore", UserWarning)  # notes on pictures are nothing for the log
    pipe = EditPipeline.from_pretrained(model, dtype=dtype, batch_size=limits.batch)
    for size in warm:
        compile_for(pipe, size)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("editmgt.serve").setLevel(logging.INFO)
    server = Server(Engine(pipe, limits), name, keys)
    with contextlib.ExitStack() as stack:
        page = None
        if with_page:
            page = Page(server, stack.enter_context(temporary_folder(Path(tempfile.gettempdir(), "editmgt-page"))))
        config = uvicorn.Config(
            make_app(server, page),
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE,
        )
        _Uvicorn(config, [server.engine.close] + ([page.close] if page else [])).run()


def for_this_machine(limits: Limits, batch: int | None, workers: int | None) -> Limits:
    """`limits` with other numbers of pictures in a batch and of batches at once.

    None is that of `limits`, but 1 and 2 on CPUs: larger batches are no faster there and are rounded otherwise, and two decodes
    use the cores better than one.
    """
    if jax.default_backend() == "cpu":
        batch, workers = batch or 1, workers or 2
    return dataclasses.replace(limits, batch=batch or limits.batch, workers=workers or limits.workers)


def compile_for(pipe: EditPipeline, size: tuple[int, int]) -> None:
    """Compiles the programs of batches of 1, 2, 4, ... pictures of a size, under the model's own settings: of edits, or of pictures from
    text where the model is no editor.

    Where edits take several steps, the programs that keep the steps are compiled, too: partial images and the page show them.
    Errors: UserError for a size that the model does not make.
    """
    if not pipe.model.is_editor:
        for count in _powers(pipe.batch_size):
            pipe.generate("warm up", size, num_images=count)
        return
    call = {"image": Image.new("RGB", size, "gray"), "instruction": "warm up"}
    several = pipe.settings().steps > 1
    for count in _powers(pipe.batch_size):
        for record in (False, True) if several else (False,):
            results = pipe.together([call | {"record": record}] * count)
    if several:
        pipe.paint_steps(results[0])


def _powers(most: int) -> list[int]:
    """Numbers of pictures that need programs of their own: 1, 2, 4, ... and `most`."""
    return [min(2**i, most) for i in range(power_of_two(most).bit_length())]
