"""Sample edits of a run under way: what its model makes of held-out pairs, as a picture with a row for each:
the source, the relevance over it, the edit and the target. All processes decode, since each holds a part of the
parameters; the first one writes.

Axes    B pairs, T text tokens; others as in `editmgt_jax.config`
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from PIL import Image

from editmgt_jax import images
from editmgt_jax.models.vq import ids_to_pixels
from editmgt_jax.sampling.edit import decode_edit
from editmgt_jax.sampling.request import make_request
from editmgt_jax.sampling.settings import Settings
from editmgt_jax.training import processes
from editmgt_jax.training.state import Params
from editmgt_jax.weights.loading import load_vq

FOLDER = "samples"
_GAP = 4  # pixels between pictures


class Samples:
    """Edits the first pairs of the held-out data, always the same ones with the same draws.

    Args:
      directory: where pictures go; task: an MGTTask; layout: of the run; batches: the held-out data, of this process's examples
        all of the first `count`.
    """

    def __init__(self, directory, task, layout, batches, count: int):
        self._directory, self._task = Path(directory), task
        batch = next(batches)
        batches.close()
        self._batch = {name: layout.put_leaf("", value[:count]) for name, value in batch.items()}
        self._settings = Settings.resolve(task.scheduler, task.mgt_config.num_blocks)
        self._edit = jax.jit(self._decode, out_shardings=layout.replicated)
        self._show = jax.jit(self._given, out_shardings=layout.replicated)
        self._shown = None  # pictures of the sources and of the targets, painted once
        _, self._vq_params = load_vq(task.vq_directory, put=lambda _, value: layout.put_leaf("", value))

    def write(self, step: int, params: Params, frozen: dict) -> Path:
        """Draws `step_NNNNNN.png`. -> its path"""
        if self._shown is None:
            self._shown = jax.device_get(self._show(frozen, self._vq_params, self._batch))
        edits, relevance = jax.device_get(self._edit(params, frozen, self._vq_params, self._batch))
        path = self._directory / f"step_{step:06d}.png"
        if processes.is_first():
            self._directory.mkdir(exist_ok=True)
            sources, targets = self._shown
            columns = [[images.to_image(one) for one in pixels] for pixels in (sources, edits, targets)]
            images.save(_grid(columns, relevance), path)
        return path

    def _decode(self, params, frozen, vq_params, batch):
        """-> pixels of the edits [B Y X 3], relevance [B H W]"""
        task = self._task
        source = task.ids(frozen, batch, "source")

        def text(dropped):
            inputs = task.text.inputs(frozen["text"], batch, jnp.full(len(source), dropped))
            return task.text.states(params.get("text"), inputs)

        request, static = make_request(
            self._settings,
            task.scheduler,
            task.vq_config.factor,
            text(False),
            text(True),
            reference=source,
            keys=0,
        )
        edit = decode_edit(task.variables(params, frozen), request, task.mgt, static)
        return self._paint(vq_params, edit.tokens), edit.relevance

    def _given(self, frozen, vq_params, batch):
        """-> pixels [B Y X 3] of the sources, of the targets"""
        return tuple(self._paint(vq_params, self._task.ids(frozen, batch, side)) for side in ("source", "target"))

    def _paint(self, vq_params, ids):
        """One picture at a time: its activations are large."""
        return jax.lax.map(lambda one: ids_to_pixels(vq_params, one[None], self._task.vq)[0], ids)


def _grid(columns, relevance) -> Image.Image:
    """Sources, edits and targets, with the relevance over the source beside it."""
    rows = [
        (before, images.overlay(before, cells), after, wanted)
        for before, after, wanted, cells in zip(*columns, relevance, strict=True)
    ]
    width, height = rows[0][0].size
    canvas = Image.new("RGB", ((width + _GAP) * len(rows[0]) - _GAP, (height + _GAP) * len(rows) - _GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            canvas.paste(picture, (x * (width + _GAP), y * (height + _GAP)))
    return canvas
