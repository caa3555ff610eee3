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
from jax.typing import DTypeLike

from editmgt_jax.config import LoRAConfig, MGTConfig
from editmgt_jax.models.attention import attend, text_to_image_attention
from editmgt_jax.models.layers import Linear, RMSNorm, constrain, layer_norm, per_segment, rotate

REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
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
    return constrain(nn.gelu(x, approximate=True), "batch", "length", "channels")


class _Block(nn.Module):
    """What both kinds of block do: normalised heads, joint attention, attention to read."""

    config: MGTConfig
    dtype: DTypeLike
    lora: LoRAConfig | None = None
    attention: str = "auto"

    def linear(self, features, name, reference_from):
        """A linear module whose LoRA, if any, sees all positions or those of the reference, which begin where it is said."""
        if self.lora is None:
            return Linear(features, self.dtype, name=name)
        start = 0 if self.lora.scope == "all" else reference_from
        return functools.partial(Linear(features, self.dtype, self.lora.scale, name=name), adapted_from=start)

    def heads(self, x, norm=None):
        x = x.reshape(*x.shape[:2], self.config.num_attention_heads, self.config.attention_head_dim)
        return x if norm is None else norm(x)

    def joint_attention(self, q, k, v, shared: Shared, wanted):
        """q, k, v [B S A K] before rotary -> ([B S D], attention [B' R N] or None)."""
        live = shared.num_live
        q, k = rotate(q, shared.cos, shared.sin), rotate(k, shared.cos, shared.sin)
        q = constrain(q, "batch", "length", "heads", None)
        k, v = (constrain(x, "batch", None, "heads", None) for x in (k, v))
        out = attend(q, k, v, shared.group_bias, (live, q.shape[1] - live), self.attention)
        if shared.text_weights is None:
            return out, None
        last = slice(q.shape[0] - len(shared.text_weights), None)

        def measure(q, k):
            return text_to_image_attention(q, k, shared.text_weights, shared.num_text)

        def skip(q, k):
            return jnp.zeros((*shared.text_weights.shape[:2], shared.num_image), jnp.float32)

        return out, jax.lax.cond(wanted, measure, skip, q[last, :live], k[last, :live])


class DoubleBlock(_Block):
    """Text has its own weights; image and reference share theirs and differ in their modulation only."""

    @nn.compact
    def __call__(self, carry, wanted, shared: Shared):
        text, visual = carry
        width, length = self.config.width, text.shape[1]
        lengths = (shared.num_image, visual.shape[1] - shared.num_image)
        conditioning = nn.silu(shared.modulation)

        def visual_linear(features, name):
            return self.linear(features, name, shared.num_image)

        def text_linear(features, name):
            return self.linear(features, name, length)  # there is no reference

        modulation = self.linear(6 * width, "modulation", 1)(conditioning)  # [B 2 6D]
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = (
            per_segment(part, lengths) for part in jnp.split(modulation, 6, axis=-1)
        )
        text_modulation = self.linear(6 * width, "text_modulation", 1)(conditioning[:, :1])  # [B 1 6D]
        t_shift_attn, t_scale_attn, t_gate_attn, t_shift_mlp, t_scale_mlp, t_gate_mlp = jnp.split(
            text_modulation, 6, axis=-1
        )

        x = layer_norm(visual) * (1 + scale_attn) + shift_attn
        t = layer_norm(text) * (1 + t_scale_attn) + t_shift_attn
        q = self.heads(visual_linear(width, "to_q")(x), RMSNorm(name="norm_q"))
        k = self.heads(visual_linear(width, "to_k")(x), RMSNorm(name="norm_k"))
        v = self.heads(visual_linear(width, "to_v")(x))
        tq = self.heads(text_linear(width, "text_to_q")(t), RMSNorm(name="text_norm_q"))
        tk = self.heads(text_linear(width, "text_to_k")(t), RMSNorm(name="text_norm_k"))
        tv = self.heads(text_linear(width, "text_to_v")(t))
        out, attention = self.joint_attention(
            jnp.concatenate([tq, q], axis=1),
            jnp.concatenate([tk, k], axis=1),
            jnp.concatenate([tv, v], axis=1),
            shared,
            wanted,
        )
        text_out, visual_out = out[:, :length], out[:, length:]

        visual = visual + gate_attn * visual_linear(width, "to_out")(visual_out)
        text = text + t_gate_attn * text_linear(width, "text_to_out")(text_out)
        x = layer_norm(visual) * (1 + scale_mlp) + shift_mlp
        t = layer_norm(text) * (1 + t_scale_mlp) + t_shift_mlp
        hidden = _activated(visual_linear(4 * width, "mlp_in")(x))
        text_hidden = _activated(text_linear(4 * width, "text_mlp_in")(t))
        visual = visual + gate_mlp * visual_linear(width, "mlp_out")(hidden)
        text = text + t_gate_mlp * text_linear(width, "text_mlp_out")(text_hidden)
        return (spread(text), spread(visual)), attention


class SingleBlock(_Block):
    """One set of weights for the whole sequence; attention and feed-forward in parallel."""

    @nn.compact
    def __call__(self, sequence, wanted, shared: Shared):
        width = self.config.width
        modulation = self.linear(3 * width, "modulation", 1)(nn.silu(shared.modulation))  # [B 2 3D]
        lengths = (shared.num_live, sequence.shape[1] - shared.num_live)
        shift, scale, gate = (per_segment(part, lengths) for part in jnp.split(modulation, 3, axis=-1))

        def linear(features, name):
            return self.linear(features, name, shared.num_live)

        x = layer_norm(sequence) * (1 + scale) + shift
        q = self.heads(linear(width, "to_q")(x), RMSNorm(name="norm_q"))
        k = self.heads(linear(width, "to_k")(x), RMSNorm(name="norm_k"))
        v = self.heads(linear(width, "to_v")(x))
        out, attention = self.joint_attention(q, k, v, shared, wanted)
        hidden = _activated(linear(4 * width, "mlp_in")(x))
        update = linear(width, "proj_out")(out, hidden)
        return spread(sequence + gate * update), attention


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
