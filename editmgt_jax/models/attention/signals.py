"""What a block's attention says of text and image, beside what the released model reads: for research, not for decodes.

Axes    as in `editmgt_jax.config`; F signals; A' heads kept apart, or 1
Source  text_to_image: EditMGT; image_to_text: the other quadrant of the same matrix, as Seg4Diff reads it; output_cosine: after
        ConceptAttention (arXiv 2502.04320), of this model's own outputs: there are no concept tokens here

A name that ends in '/reference' has the reference's keys in its softmax, too, with their strength, as the block computes it.
"""

import jax
import jax.numpy as jnp

from editmgt_jax.errors import UserError
from editmgt_jax.models.layers import per_segment

TEXT_TO_IMAGE, IMAGE_TO_TEXT, OUTPUT_COSINE = "text_to_image", "image_to_text", "output_cosine"
WITH_REFERENCE = "/reference"
SIGNALS = (
    TEXT_TO_IMAGE, TEXT_TO_IMAGE + WITH_REFERENCE, IMAGE_TO_TEXT, IMAGE_TO_TEXT + WITH_REFERENCE, OUTPUT_COSINE
)  # fmt: skip


def check_signals(signals: tuple[str, ...]) -> tuple[str, ...]:
    """The same. Errors: UserError for a signal that there is not."""
    if unknown := [name for name in signals if name not in SIGNALS]:
        raise UserError(f"signals must be of {', '.join(SIGNALS)}; got {', '.join(unknown)}")
    return signals


def measure_signals(
    q: jax.Array,
    k: jax.Array,
    out: jax.Array,
    group_bias: jax.Array | None,
    text_weights: jax.Array,
    lengths: tuple[int, int, int],
    signals: tuple[str, ...],
    each_head: bool,
) -> jax.Array:
    """Signals of one block, from its queries and keys as they meet: normalised and rotated.

    Args:
      q, k: [B' S A K]; out: [B' S A*K], what attention gives; group_bias: [1 or B', 2, S] of `strength_bias`, or None.
      text_weights: [B' R T]; lengths: of text, image and reference.
      signals: static names, see `SIGNALS`; each_head: whether heads are kept apart or averaged.
    Returns: float32 [B' F A' R N]. With heads kept apart the cosine is each head's own, else that of all together.
    """
    weights = text_weights.astype(jnp.float32)
    num_text, live = lengths[0], lengths[0] + lengths[1]
    wanted = [name for name in signals if name != OUTPUT_COSINE]

    def of_head(head):
        return jnp.stack([_quadrant(*head, group_bias, weights, num_text, live, name) for name in wanted], axis=1)

    found = {}
    if wanted:
        heads = jax.lax.map(of_head, (jnp.moveaxis(q, 2, 0), jnp.moveaxis(k, 2, 0)))  # [A B' F R N]: less in memory
        heads = jnp.moveaxis(heads, 0, 2)
        heads = heads if each_head else heads.mean(axis=2, keepdims=True)  # [B' F A' R N]
        found = {name: heads[:, index] for index, name in enumerate(wanted)}
    if OUTPUT_COSINE in signals:
        split = out.reshape(*out.shape[:2], q.shape[2] if each_head else 1, -1)
        found[OUTPUT_COSINE] = _cosine(split, weights, num_text, live)
    return jnp.stack([found[name] for name in signals], axis=1)


def _quadrant(q, k, group_bias, weights, num_text, live, name):
    """One head's q, k [B' S K] -> [B' R N]"""
    kind = name.removesuffix(WITH_REFERENCE)
    keys = slice(0, live) if kind == name else slice(None)
    queries = slice(0, num_text) if kind == TEXT_TO_IMAGE else slice(num_text, live)
    logits = jnp.einsum("bqk,bsk->bqs", q[:, queries], k[:, keys], preferred_element_type=jnp.float32)
    logits *= q.shape[-1] ** -0.5
    if group_bias is not None:
        logits += group_bias[:, :1, keys]
    attention = jax.nn.softmax(logits, axis=-1)
    if kind == TEXT_TO_IMAGE:
        return jnp.einsum("brt,btn->brn", weights, attention[..., num_text:live])
    return jnp.einsum("brt,bnt->brn", weights, attention[..., :num_text])


def _cosine(out, weights, num_text, live):
    """out [B' S A' K] -> weighted mean over the text of cosines with the image [B' A' R N]"""
    out = out.astype(jnp.float32)
    out /= jnp.maximum(jnp.linalg.norm(out, axis=-1, keepdims=True), 1e-12)
    text, image = out[:, :num_text], out[:, num_text:live]
    return jnp.einsum("brt,btak,bnak->barn", weights, text, image)


def muted_bias(
    group_bias: jax.Array | None, muted: jax.Array, lengths: tuple[int, int, int], no_weight: float
) -> jax.Array:
    """The bias of three query groups (text, image, reference) with some attention switched off.

    Args:
      group_bias: [1 or B, 2, S] of ([text, image], reference), or None; muted: bool [B 3], see `Interventions`.
      lengths: of text, image and reference; no_weight: what makes a softmax weight 0.
    Returns: float32 [B 3 S].
    """
    base = jnp.zeros((1, 2, sum(lengths))) if group_bias is None else group_bias
    base = jnp.stack([base[:, 0], base[:, 0], base[:, 1]], axis=1)
    off = jnp.zeros((3, 3, 3))  # what is muted, query group, key group
    off = off.at[0, 0, 1].set(1).at[1, 1, 0].set(1).at[2, 1, 2].set(1)
    groups = jnp.einsum("bm,mqk->bqk", muted.astype(jnp.float32), off)  # [B 3 3]
    keys = per_segment(groups.swapaxes(1, 2), lengths).swapaxes(1, 2)  # [B 3 S]
    return jnp.where(keys > 0, no_weight, base)
