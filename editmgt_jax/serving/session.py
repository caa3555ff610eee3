"""What a visitor of the page has edited: files in a folder of the session, and what is shown of them.

Axes    as in `editmgt_jax.config`
"""

import dataclasses
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from editmgt_jax import images
from editmgt_jax.pipeline.recipes import recipe_of, write_recipe
from editmgt_jax.sampling.results import Result
from editmgt_jax.serving.errors import bad

KEPT = 24  # edits of a session
HELD = "held: kept from the picture"
SHOWN = 1024  # pixels of the longest side of a heat map


@dataclasses.dataclass(frozen=True, eq=False)
class Edited:
    """One edit."""

    source: Path  # the picture as it came
    before: Path  # what is shown of it: upright, in sRGB
    result: Path  # PNG with its recipe
    heat: Path  # relevance over the picture
    relevance: np.ndarray  # float32 [H W]
    open: np.ndarray  # bool [H W]: tokens that the mask lets change
    steps: list[Path]  # pictures of the decoding steps, if there are several
    fields: Sequence[Any]  # values of the page's controls

    def held(self, threshold: float) -> np.ndarray:
        """The tokens [H W] that stay the source's under a hold threshold (0: off), by the relevance of the last step."""
        return ((self.relevance < threshold) & (threshold > 0)) | ~self.open


class Session:
    """The pictures and edits of one visitor."""

    def __init__(self, folder: str | Path):
        self._root = Path(folder)
        self._folder: Path | None = None
        self.source: Path | None = None
        self.before: Path | None = None
        self.edits: list[Edited] = []
        self.shown: Edited | None = None

    @property
    def folder(self) -> Path:
        """Of the session's files; nobody can guess its name."""
        if self._folder is None:
            self._folder = self._root / f"session-{secrets.token_urlsafe(16)}"
            self._folder.mkdir(mode=0o700)
        return self._folder

    def take(self, path: str | Path) -> Image.Image:
        """A new picture. -> what is shown of it. Errors: ImageError, FileNotFoundError."""
        image = images.to_srgb(images.load(path))
        number = secrets.token_hex(4)
        source = self.folder / f"{number}-{Path(path).name[-60:]}"
        shutil.copyfile(path, source)
        before = self.folder / f"{number}-shown.png"
        images.save(image, before)
        self.source, self.before = source, before
        return image

    def add(
        self,
        call: Mapping[str, Any],
        result: Result,
        frames: Sequence[Image.Image],
        weights: str,
        fields: Sequence[Any],
    ) -> Edited:
        """Keeps an edit of `source`, and forgets the oldest beyond KEPT.

        Args:
          call: what the pipeline was called with; frames: its steps; weights: the model's fingerprint; fields: of the page.
        """
        name = f"{self.source.stem.partition('-')[2] or 'picture'}-edit-{secrets.token_hex(3)}"
        path = self.folder / f"{name}.png"
        write_recipe(result.images[0], recipe_of(call, result, weights), path)
        heat = self.folder / f"{name}-map.png"
        images.save(images.overlay(_small(call["image"]), result.relevance[0]), heat)
        steps = []
        for number, frame in enumerate(frames):
            steps.append(self.folder / f"{name}-step-{number + 1}.png")
            images.save(frame, steps[-1])
        shape = result.relevance[0].shape
        may_change = np.ones(shape, bool)
        if call.get("mask") is not None:
            may_change = images.mask_to_grid(np.asarray(call["mask"], bool), shape)
        edited = Edited(self.source, self.before, path, heat, result.relevance[0], may_change, steps, fields)
        self.edits.append(edited)
        while len(self.edits) > KEPT:
            self._forget(self.edits.pop(0))
        return edited

    def _forget(self, edited) -> None:
        for path in (edited.result, edited.heat, *edited.steps):
            path.unlink(missing_ok=True)
        if edited.source != self.source and all(other.source != edited.source for other in self.edits):
            edited.source.unlink(missing_ok=True)
            edited.before.unlink(missing_ok=True)

    def close(self) -> None:
        """Removes the files."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def brushed(layers: Sequence[Image.Image | None], size: tuple[int, int]) -> Image.Image | None:
    """The mask of what was brushed: white wherever a layer is not clear; None where nothing is.

    Errors: ApiError for layers of another size than the picture's.
    """
    painted = np.zeros(size[::-1], bool)
    for layer in layers:
        if layer is None:
            continue
        if layer.size != tuple(size):
            raise bad(
                f"the brushed mask has {layer.size[0]} x {layer.size[1]} pixels, the picture {size[0]} x {size[1]}: brush again"
            )
        painted |= np.asarray(layer.convert("RGBA"))[..., 3] > 0
    return Image.fromarray(painted) if painted.any() else None


def region(edited: Edited, threshold: float) -> tuple[str, list[tuple[np.ndarray, str]]]:
    """A heat map with the region that a hold threshold holds: (file, [(opacity [Y X], HELD)])."""
    with Image.open(edited.heat) as heat:
        size = heat.size
    return str(edited.heat), [(0.75 * images.mask_to_pixels(edited.held(threshold), size), HELD)]


def _small(image) -> Image.Image:
    scale = SHOWN / max(image.size)
    if scale >= 1:
        return image
    small = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    small.info.update(image.info)
    return small
