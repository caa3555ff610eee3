"""Examples of a benchmark -> edited pictures, with what the leakage suite asks of a token editor.

Axes    as in `editmgt_jax.config`
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from editmgt_jax import images
from editmgt_jax.batching import by_shape, in_batches
from editmgt_jax.errors import UserError
from editmgt_jax.evaluation.examples import Example
from editmgt_jax.evaluation.protocol import Traces
from editmgt_jax.files import replacing
from editmgt_jax.pipeline import EditPipeline

VARIANTS = ("free", "free+composite", "held", "held+composite")


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """An edited picture; `variants` are pictures of VARIANTS with their traces, where they were asked for."""

    picture: Image.Image
    traces: Traces
    variants: dict[str, tuple[Image.Image, Traces]]


class Editor:
    """Edits pictures with one pipeline. Every example draws from `seed` alone, so batches do not matter.

    Args:
      settings: of the edits; what is left out is the model's own.
      hold_threshold: of the variants with region hold; None leaves the variants out.
    """

    def __init__(self, pipe: EditPipeline, seed: int, settings: dict[str, Any], hold_threshold: float | None = None):
        self.pipe, self.seed, self.chosen, self.hold_threshold = pipe, seed, settings, hold_threshold
        self.weights = pipe.model.fingerprint()
        if hold_threshold is not None:
            pipe.settings(hold_threshold=hold_threshold)  # what is wrong with it is found before the work
        self.settings = {name: value for name, value in vars(pipe.settings(**settings)).items() if name != "record"}

    def check(self, instruction: str, source: Image.Image) -> None:
        """Errors: UserError when an example cannot be edited: a prompt that is too long, a picture too small or elongated."""
        images.check_size(source.size)
        if not instruction.strip():
            raise UserError("an instruction must say what to change; got none")
        self.pipe.encode(instruction)

    def edit(self, examples: Sequence[Example], sources: Sequence[Image.Image]) -> list[Edit]:
        """Edits RGB pictures by their examples' instructions."""
        text = [self.pipe.encode(example.instruction) for example in examples]
        results = self._run(sources, text, composite=True)
        ceilings = self._ceilings([result.source_ids for result in results], sources)
        masked = [i for i, example in enumerate(examples) if example.mask and self.hold_threshold is not None]
        variants = {i: {} for i in range(len(examples))}
        for name, threshold in (("free", 0.0), ("held", self.hold_threshold)) if masked else ():
            found = self._run([sources[i] for i in masked], [text[i] for i in masked], False, hold_threshold=threshold)
            for i, result in zip(masked, found, strict=True):
                traces = Traces(result.token_ids[0], result.source_ids, ceilings[i])
                kept = traces.ids == traces.source_ids
                picture = result.images[0]
                variants[i] |= {
                    name: (picture, traces),
                    f"{name}+composite": (images.composite(sources[i], picture, kept), traces),
                }
        return [
            Edit(result.images[0], Traces(result.token_ids[0], result.source_ids, ceilings[i]), variants[i])
            for i, result in enumerate(results)
        ]

    def _run(self, sources, text, composite, **settings):
        """Results of all sources, in full batches of one size: each is made by the same program, whatever is left to do."""
        found = {}
        for batch, count in self._batches([source.size for source in sources]):
            results = self.pipe(
                [sources[i] for i in batch],
                [text[i] for i in batch],
                seed=self.seed,
                composite=composite,
                **(self.chosen | settings),
            )
            found |= dict(zip(batch[:count], results[:count], strict=True))
        return [found[i] for i in range(len(sources))]

    def _batches(self, sizes):
        """Indices of pictures of one working size in batches of exactly `batch_size`. -> (batch, how many are not copies)"""
        model = self.pipe.model
        of_size = lambda i: images.working_size(sizes[i], model.scheduler.native_size, model.unit)  # noqa: E731
        for _, group, _ in by_shape(range(len(sizes)), of_size, lambda _: len(sizes)):
            yield from in_batches(dict.fromkeys(group), self.pipe.batch_size)

    def _ceilings(self, ids, sources):
        """The sources as the image tokenizer shows them, of the sources' sizes."""
        found = {}
        for batch, count in self._batches([source.size for source in sources]):
            painted = np.asarray(self.pipe.decode_image(np.stack([ids[i] for i in batch])))
            found |= {i: images.to_image(painted[k], sources[i].size) for k, i in enumerate(batch[:count])}
        return found


def save_traces(traces: Traces, path: Path, ceiling: bool = True) -> None:
    """Writes traces as a compressed file of arrays, without the ceiling if another file of the example has it."""
    arrays = {"ids": traces.ids, "source_ids": traces.source_ids}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays, **({"ceiling": np.asarray(traces.ceiling)} if ceiling else {}))


def load_traces(path: Path, ceiling: Image.Image | None = None) -> Traces | None:
    """What `save_traces` wrote, None if there is no such file. A file without a ceiling needs one."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as found:
        kept = Image.fromarray(found["ceiling"]) if ceiling is None else ceiling
        return Traces(found["ids"], found["source_ids"], kept)
