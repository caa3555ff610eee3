"""What happens to queries and keys before their products, and what is read off these products: inputs of `attend`.

Axes    as in `editmgt_jax.config`; M norms, each of one run of positions
"""

import jax
import jax.numpy as jnp
from flax import struct

from editmgt_jax.models.layers import per_segment, rms_normed, rotate

ATTENTION = "attention"  # the name by which rematerialisation may keep what a fused kernel's backward pass needs


@struct.dataclass
class Preparation:
    """RMS norm of each head, then rotation: what turns projections into queries and keys.

    Attributes:
      q_scale, k_scale: [M K] float32, the scales of the M norms; cos, sin: [S K/2] float32, angles of the positions.
      lengths: static numbers of positions of the norms, summing to S; epsilon: static, of the norms.
    """

    q_scale: jax.Array
    k_scale: jax.Array
    cos: jax.Array
    sin: jax.Array
    lengths: tuple[int, ...] = struct.field(pytree_node=False)
    epsilon: float = struct.field(pytree_node=False, default=1e-6)


@struct.dataclass
class Reading:
    """Which attention of text to image is wanted: of the last B' samples, their softmax over [text, image] keys alone.

    Attributes:
      text_weights: [B' R T] weights of the text positions; wanted: bool [], traced; the result is 0 where it is false.
      num_image: static N; the image follows the text.
    """

    text_weights: jax.Array
    wanted: jax.Array
    num_image: int = struct.field(pytree_node=False)

    @property
    def num_text(self) -> int:
        """T."""
        return self.text_weights.shape[-1]

    @property
    def num_live(self) -> int:
        """T+N, the keys of the softmax."""
        return self.num_text + self.num_image


def prepare(q: jax.Array, k: jax.Array, preparation: Preparation | None) -> tuple[jax.Array, jax.Array]:
    """Projections q, k [B S A K] -> queries and keys [B S A K]; None leaves them as they are."""
    if preparation is None:
        return q, k

    def one(x, scale):
        scales = per_segment(scale[None], preparation.lengths)[0]  # [S K]
        return rotate(rms_normed(x, scales[None, :, None], preparation.epsilon), preparation.cos, preparation.sin)

    return one(q, preparation.q_scale), one(k, preparation.k_scale)


def text_to_image_attention(q: jax.Array, k: jax.Array, text_weights: jax.Array, num_text: int) -> jax.Array:
    """Head-mean attention of weighted text positions to the image; the softmax is over [text, image] keys only.

    Args:
      q, k: [B' T+N A K], queries and keys of [text, image]; `text_weights`: [B' R T].
    Returns: [B' R N] float32. Uniform weights give the mean over the instruction, the identity the full T x N part.
    """
    logits = jnp.einsum("btak,bsak->bats", q[:, :num_text], k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits, axis=-1)[..., num_text:]  # [B' A T N]
    return jnp.einsum("brt,btn->brn", text_weights.astype(jnp.float32), weights.mean(axis=1))


def read(q: jax.Array, k: jax.Array, reading: Reading | None) -> jax.Array | None:
    """`text_to_image_attention` of queries and keys [B S A K] where it is wanted. -> [B' R N] float32, or None"""
    if reading is None:
        return None
    last = slice(len(q) - len(reading.text_weights), None)

    def measure(q, k):
        return text_to_image_attention(q, k, reading.text_weights, reading.num_text)

    def skip(q, k):
        return jnp.zeros((*reading.text_weights.shape[:2], reading.num_image), jnp.float32)

    return jax.lax.cond(reading.wanted, measure, skip, q[last, : reading.num_live], k[last, : reading.num_live])
