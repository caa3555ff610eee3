"""The blocks of the masked generative transformer: joint attention over [text, image, reference].

Axes    as in `editmgt_jax.config`
Source  released Transformer2DModel
Differs a modulation vector per segment; blocks are scanned, and their attention to the image is a return value of the scan
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from editmgt_jax.config import LoRAConfig, MGTConfig
from editmgt_jax.models.attention import ATTENTION, Preparation, Reading, attend_and_read
from editmgt_jax.models.layers import Linear, NormScale, constrain, shared_vectors
from editmgt_jax.models.modulation import gated_sum, modulated_norm

PRODUCT = "product"  # the name of what rematerialisation 'products' keeps, besides attention
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "products": jax.checkpoint_policies.save_only_these_names(PRODUCT, ATTENTION),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@struct.dataclass
class Shared:
    """Inputs that all blocks of a forward pass share."""

    modulation: jax.Array  # [B 2 D]: [text and image, reference]
    cos: jax.Array  # [S K/2]
    sin: jax.Array
    group_bias: jax.Array | None  # [1 or B, 2, S]; None adds nothing
    text_weights: jax.Array | None  # [B' R T] weightings of the text whose attention is wanted, of the last B' samples
    num_text: int = struct.field(pytree_node=False)
    num_image: int = struct.field(pytree_node=False)

    @property
    def num_live(self) -> int:
        """Positions of [text, image]; the reference lies behind them."""
        return self.num_text + self.num_image


def spread(x: jax.Array) -> jax.Array:
    """Activations of the trunk [B S D], spread over batch and positions."""
    return constrain(x, "batch", "length", None)


def spread_grid(x: jax.Array) -> jax.Array:
    """Ids [B H W] or activations [B H W D] of a grid, spread over batch and rows of the grid."""
    return constrain(x, "batch", "length", *(None,) * (x.ndim - 2))


def _activated(x):
    """Inside of a feed-forward part, spread over its channels, too."""
    return constrain(nn.gelu(checkpoint_name(x, PRODUCT), approximate=True), "batch", "length", "channels")


class _Block(nn.Module):
    """What both kinds of block do: joint attention, with the norms and the rotation of its heads."""

    config: MGTConfig
    dtype: jnp.dtype
    lora: LoRAConfig | None = None
    attention: str = "auto"

    def linear(self, features, name, reference_from):
        """A linear module whose LoRA, if any, sees all positions or those of the reference, which begin where it is said."""
        if self.lora is None:
            return Linear(features, self.dtype, name=name)
        start = 0 if self.lora.scope == "all" else reference_from
        return functools.partial(Linear(features, self.dtype, self.lora.scale, name=name), adapted_from=start)

    def joint_attention(self, q, k, v, shared: Shared, wanted, preparation: Preparation):
        """Projections q, k, v [B S D], or tuples of parts of S -> (the same, attention of text to image [B' R N] or None)."""
        heads, whole = self.config.num_attention_heads, sum(preparation.lengths)

        def of_heads(x, along):
            x = x.reshape(*x.shape[:2], heads, -1)
            return constrain(x, "batch", along, "heads", None)

        q = jax.tree.map(lambda x: of_heads(x, "length"), q)
        k, v = (jax.tree.map(lambda x: of_heads(x, None), x) for x in (k, v))
        reading = None
        if shared.text_weights is not None:
            reading = Reading(shared.text_weights, wanted, shared.num_image)
        lengths = shared.num_live, whole - shared.num_live
        return attend_and_read(q, k, v, shared.group_bias, lengths, self.attention, preparation, reading)

    def norm(self, x, shift, scale, lengths):
        """See `modulated_norm`."""
        return modulated_norm(x, shift, scale, lengths, self.attention)

    def gated(self, x, update, gate, lengths):
        """See `gated_sum`."""
        return gated_sum(x, checkpoint_name(update, PRODUCT), gate, lengths, self.attention)

    def scales(self, *names):
        """Scales of the norms of these names. -> [M K]"""
        return jnp.stack([NormScale(name=name)(self.config.attention_head_dim) for name in names])


class DoubleBlock(_Block):
    """Text has its own weights; image and reference share theirs and differ in their modulation only."""

    @nn.compact
    def __call__(self, carry, wanted, shared: Shared):
        text, visual = carry
        width, length = self.config.width, text.shape[1]
        lengths = (shared.num_image, visual.shape[1] - shared.num_image)
        conditioning = nn.silu(shared_vectors(shared.modulation))

        def visual_linear(features, name):
            return self.linear(features, name, shared.num_image)

        def text_linear(features, name):
            return self.linear(features, name, length)  # there is no reference

        modulation = shared_vectors(self.linear(6 * width, "modulation", 1)(conditioning))  # [B 2 6D]
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = jnp.split(modulation, 6, axis=-1)
        text_modulation = shared_vectors(self.linear(6 * width, "text_modulation", 1)(conditioning[:, :1]))  # [B 1 6D]
        t_shift_attn, t_scale_attn, t_gate_attn, t_shift_mlp, t_scale_mlp, t_gate_mlp = jnp.split(
            text_modulation, 6, axis=-1
        )

        x, visual = self.norm(visual, shift_attn, scale_attn, lengths)
        t, text = self.norm(text, t_shift_attn, t_scale_attn, (length,))
        q, k, v = (
            (text_linear(width, f"text_{name}")(t), visual_linear(width, name)(x)) for name in ("to_q", "to_k", "to_v")
        )
        preparation = Preparation(
            q_scale=self.scales("text_norm_q", "norm_q"),
            k_scale=self.scales("text_norm_k", "norm_k"),
            cos=shared.cos,
            sin=shared.sin,
            lengths=(length, visual.shape[1]),
        )
        (text_out, visual_out), attention = self.joint_attention(q, k, v, shared, wanted, preparation)

        visual = self.gated(visual, visual_linear(width, "to_out")(visual_out), gate_attn, lengths)
        text = self.gated(text, text_linear(width, "text_to_out")(text_out), t_gate_attn, (length,))
        x, visual = self.norm(visual, shift_mlp, scale_mlp, lengths)
        t, text = self.norm(text, t_shift_mlp, t_scale_mlp, (length,))
        hidden = _activated(visual_linear(4 * width, "mlp_in")(x))
        text_hidden = _activated(text_linear(4 * width, "text_mlp_in")(t))
        visual = self.gated(visual, visual_linear(width, "mlp_out")(hidden), gate_mlp, lengths)
        text = self.gated(text, text_linear(width, "text_mlp_out")(text_hidden), t_gate_mlp, (length,))
        return (spread(text), spread(visual)), attention


class SingleBlock(_Block):
    """One set of weights for the whole sequence; attention and feed-forward in parallel."""

    @nn.compact
    def __call__(self, sequence, wanted, shared: Shared):
        width = self.config.width
        conditioning = nn.silu(shared_vectors(shared.modulation))
        modulation = shared_vectors(self.linear(3 * width, "modulation", 1)(conditioning))  # [B 2 3D]
        lengths = (shared.num_live, sequence.shape[1] - shared.num_live)
        shift, scale, gate = jnp.split(modulation, 3, axis=-1)

        def linear(features, name):
            return self.linear(features, name, shared.num_live)

        x, sequence = self.norm(sequence, shift, scale, lengths)
        q, k, v = (linear(width, name)(x) for name in ("to_q", "to_k", "to_v"))
        preparation = Preparation(
            self.scales("norm_q"), self.scales("norm_k"), shared.cos, shared.sin, (sequence.shape[1],)
        )
        out, attention = self.joint_attention(q, k, v, shared, wanted, preparation)
        hidden = _activated(linear(4 * width, "mlp_in")(x))
        update = linear(width, "proj_out")(out, hidden)
        return spread(self.gated(sequence, update, gate, lengths)), attention


def scanned(block: type[nn.Module], length: int, policy: str, unroll: int) -> type[nn.Module]:
    """`length` blocks as one scanned module; their parameters are stacked on axis 0."""
    if policy != "none":
        block = nn.remat(block, prevent_cse=False, policy=REMAT_POLICIES[policy])
    return nn.scan(
        block,
        variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=length,
        unroll=min(unroll, length),
    )
