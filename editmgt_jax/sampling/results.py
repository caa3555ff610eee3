"""What the pipeline returns of a prompt: pictures, and what the model did. Held regions are taken from the input picture.

Axes    as in `editmgt_jax.config`; n pictures of a result; Y X pixels
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image

from editmgt_jax import images
from editmgt_jax.sampling.edit import TokenEdit
from editmgt_jax.sampling.orders import Canvas, Order
from editmgt_jax.sampling.settings import Settings
from editmgt_jax.shapes import Array, Float


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """The n pictures of one prompt, and what the model did."""

    images: list[Image.Image]  # of the input's size and colour profile, or the size asked for
    relevance: np.ndarray  # float32 [n H W], at the step that held, else the last; about 0 to 1
    keep_mask: np.ndarray  # bool [n H W]: tokens held at the source's ids
    token_ids: np.ndarray  # int32 [n H W]
    source_ids: np.ndarray | None  # int32 [H W]; None without a source image
    settings: Settings
    passes: np.ndarray  # int32 [n]: decoding steps taken; fewer than I when the sampler ended early
    step_tokens: np.ndarray | None = None  # int32 [I n H W], recorded
    step_relevance: np.ndarray | None = None  # float32 [I n H W], recorded


class Results(list[Result]):
    """The results of several prompts, in their order."""

    @property
    def images(self) -> list[Image.Image]:
        """All pictures: those of the first prompt, then those of the next one."""
        return [image for result in self for image in result.images]


def make_result(
    order: Order, canvas: Canvas, edits: Sequence[TokenEdit], pixels: Sequence[Float[Array, "Y X 3"]]
) -> Result:
    """The pictures of one canvas.

    Args:
      edits: of each picture, arrays of the host without the axis B; pixels: of each, in [0, 1].
    """
    job, pictures = canvas.job, []
    for edit, painted in zip(edits, pixels, strict=True):
        picture = images.to_image(painted, None if job.image is None else job.image.size)
        picture = images.from_srgb(picture, None if job.image is None else job.image.info.get("icc_profile"))
        if order.composite and (edit.keep.any() or job.mask is not None):
            kept = edit.tokens == canvas.source
            if not order.attends:
                kept &= canvas.start == canvas.source  # a fill is nobody's picture
            picture = images.composite(job.image, picture, kept, job.mask)
        pictures.append(picture)
    together = jax.tree.map(lambda *arrays: np.stack(arrays), *edits)
    steps = [None if x is None else x.swapaxes(0, 1) for x in (together.step_tokens, together.step_relevance)]
    return Result(
        images=pictures,
        relevance=together.relevance,
        keep_mask=together.keep,
        token_ids=together.tokens,
        source_ids=canvas.source,
        settings=order.settings,
        passes=together.passes,
        step_tokens=steps[0],
        step_relevance=steps[1],
    )
