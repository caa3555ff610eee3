"""The blocks of the masked generative transformer: joint attention over [text, image, reference].

Axes    as in `editmgt_jax.config`
Source  released Transformer2DModel
Differs a modulation vector per segment; blocks are scanned, and their attention to the image is a return value of the scan
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from editmgt_jax.config import LoRAConfig, MGTConfig
from editmgt_jax.models.attention import (
    ATTENTION,
    NO_WEIGHT,
    ROOM,
    Preparation,
    Reading,
    attend_and_read,
    prepare,
)
from editmgt_jax.models.attention.signals import measure_signals, muted_bias
from editmgt_jax.models.block_scan import scan_blocks
from editmgt_jax.models.layers import Linear, NormScale, constrain, shared_vectors
from editmgt_jax.models.modulation import gated_sum, modulated_norm
from editmgt_jax.models.rooms import Keeper
from editmgt_jax.shapes import Array

PRODUCT = "product"  # the name of what rematerialisation 'products' keeps, besides attention
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "products": jax.checkpoint_policies.save_only_these_names(PRODUCT, ATTENTION),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Interventions(NamedTuple):
    """What is done to blocks, for research; [J B] of a model, [B] of one block."""

    bypass: jax.Array  # bool: the block changes nothing
    muted: jax.Array  # bool [... 3]: off are text queries to image keys, image to text, image to reference


class Probe(NamedTuple):
    """What research wants of every block, besides what an edit needs."""

    signals: tuple[str, ...] = ()  # static names of `attention.signals.SIGNALS`, measured instead of what an edit reads
    each_head: bool = False  # whether their heads are kept apart
    interventions: Interventions | None = None  # arrays [J B]


NO_PROBE = Probe()


class Visit(NamedTuple):
    """What a forward pass wants of a block; stacked over blocks."""

    wanted: jax.Array  # bool: whether its attention is read
    interventions: Interventions | None = None


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
    signals: tuple[str, ...] = struct.field(pytree_node=False, default=())  # () reads text to image, as released
    each_head: bool = struct.field(pytree_node=False, default=False)

    @property
    def num_live(self) -> int:
        """Positions of [text, image]; the reference lies behind them."""
        return self.num_text + self.num_image


def spread(x: Array) -> Array:
    """Activations of the trunk [B S D], spread over batch and positions."""
    return constrain(x, "batch", "length", None)


def spread_grid(x: Array) -> Array:
    """Ids [B H W] or activations [B H W D] of a grid, spread over batch and rows of the grid."""
    return constrain(x, "batch", "length", *(None,) * (x.ndim - 2))


def _bypassed(visit: Visit, before, after):
    """Activations of samples that bypass the block as they were before it."""
    if visit.interventions is None:
        return after
    off = visit.interventions.bypass[:, None, None]
    return jax.tree.map(lambda old, new: jnp.where(off, old, new), before, after)


def _activated(x, keeper):
    """Inside of a feed-forward part, spread over its channels, too."""
    return constrain(nn.gelu(keeper.keep_product(x, PRODUCT), approximate=True), "batch", "length", "channels")


class _Block(nn.Module):
    """What both kinds of block do: joint attention, with the norms and the rotation of its heads."""

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

    def joint_attention(self, q, k, v, shared: Shared, visit: Visit, preparation: Preparation, keeper: Keeper):
        """Projections q, k, v [B S D], or tuples of parts of S -> (the same, attention [B' R N] or signals [B' F A' R N] or None)."""
        if shared.signals and isinstance(q, tuple):
            bounds = [sum(preparation.lengths[:i]) for i in range(1, len(q))]
            whole = (jnp.concatenate(x, axis=1) for x in (q, k, v))
            out, found = self.joint_attention(*whole, shared, visit, preparation, keeper)
            return tuple(jnp.split(out, bounds, axis=1)), found
        bias, lengths = shared.group_bias, (shared.num_live, sum(preparation.lengths) - shared.num_live)
        if visit.interventions is not None:
            lengths = (shared.num_text, shared.num_image, lengths[1])
            bias = muted_bias(bias, visit.interventions.muted, lengths, NO_WEIGHT)

        def of_heads(x, along):
            x = x.reshape(*x.shape[:2], self.config.num_attention_heads, -1)
            return constrain(x, "batch", along, "heads", None)

        q = jax.tree.map(lambda x: of_heads(x, "length"), q)
        k, v = (jax.tree.map(lambda x: of_heads(x, None), x) for x in (k, v))
        reading = None
        if shared.text_weights is not None and not shared.signals:
            reading = Reading(shared.text_weights, visit.wanted, shared.num_image)
        inputs = q, k, v, bias, lengths, self.attention, preparation, reading, keeper.room()
        out, attention, room = attend_and_read(*inputs)
        keeper.keep(room, ROOM)
        if shared.signals:
            attention = self.signals(q, k, out, shared, visit, preparation)
        return out, attention

    def norm(self, x, shift, scale, lengths):
        """See `modulated_norm`."""
        return modulated_norm(x, shift, scale, lengths, self.attention)

    def gated(self, x, update, gate, lengths):
        """See `gated_sum`."""
        return gated_sum(x, checkpoint_name(update, PRODUCT), gate, lengths, self.attention)

    def scales(self, *names):
        """Scales of the norms of these names. -> [M K]"""
        return jnp.stack([NormScale(name=name)(self.config.attention_head_dim) for name in names])

    def signals(self, q, k, out, shared: Shared, visit: Visit, preparation: Preparation):
        """The signals that are asked for, of the samples with text weights, which are the last -> [B' F A' R N], of wanted blocks."""
        last = slice(len(q) - len(shared.text_weights), None)
        bias = shared.group_bias
        bias = bias if bias is None or len(bias) == 1 else bias[last]
        lengths = shared.num_text, shared.num_image, q.shape[1] - shared.num_live

        def measure(q, k, out):
            q, k = prepare(q, k, preparation)
            return measure_signals(q, k, out, bias, shared.text_weights, lengths, shared.signals, shared.each_head)

        of_last = q[last], k[last], out[last]
        nothing = jax.eval_shape(measure, *of_last)
        return jax.lax.cond(visit.wanted, measure, lambda *_: jnp.zeros(nothing.shape, nothing.dtype), *of_last)


class DoubleBlock(_Block):
    """Text has its own weights; image and reference share theirs and differ in their modulation only."""

    @nn.compact
    def __call__(self, carry, visit: Visit, shared: Shared, keeper: Keeper | None = None):
        text, visual = carry
        keeper = keeper or Keeper()
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
        (text_out, visual_out), attention = self.joint_attention(q, k, v, shared, visit, preparation, keeper)

        visual = self.gated(visual, visual_linear(width, "to_out")(visual_out), gate_attn, lengths)
        text = self.gated(text, text_linear(width, "text_to_out")(text_out), t_gate_attn, (length,))
        x, visual = self.norm(visual, shift_mlp, scale_mlp, lengths)
        t, text = self.norm(text, t_shift_mlp, t_scale_mlp, (length,))
        hidden = _activated(visual_linear(4 * width, "mlp_in")(x), keeper)
        text_hidden = _activated(text_linear(4 * width, "text_mlp_in")(t), keeper)
        visual = self.gated(visual, visual_linear(width, "mlp_out")(hidden), gate_mlp, lengths)
        text = self.gated(text, text_linear(width, "text_mlp_out")(text_hidden), t_gate_mlp, (length,))
        text, visual = _bypassed(visit, carry, (text, visual))
        return (spread(text), spread(visual)), attention


class SingleBlock(_Block):
    """One set of weights for the whole sequence; attention and feed-forward in parallel."""

    @nn.compact
    def __call__(self, sequence, visit: Visit, shared: Shared, keeper: Keeper | None = None):
        width, keeper = self.config.width, keeper or Keeper()
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
        out, attention = self.joint_attention(q, k, v, shared, visit, preparation, keeper)
        hidden = _activated(linear(4 * width, "mlp_in")(x), keeper)
        update = linear(width, "proj_out")(out, hidden)
        return spread(_bypassed(visit, sequence, self.gated(sequence, update, gate, lengths))), attention


def scanned(block: type[nn.Module], length: int, unroll: int) -> type[nn.Module]:
    """`length` blocks as one scanned module; their parameters are stacked on axis 0."""
    return nn.scan(
        block,
        variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=length,
        unroll=min(unroll, length),
    )


def rematerialised(
    stack: nn.Module, block: nn.Module, carry: Array | tuple, shared: Shared, policy: str, unroll: int
) -> Array | tuple:
    """What `stack`, as `scanned` makes it of modules like `block`, gives for `carry`: the same, with a backward pass that computes
    again what `REMAT_POLICIES[policy]` does not keep. Attention is not read."""
    constants, structure = jax.tree.flatten(shared)

    def one(variables, carry, modulation, constants, keeper):
        shared = jax.tree.unflatten(structure, constants).replace(modulation=modulation)
        return block.apply(variables, carry, Visit(jnp.bool_(False)), shared, keeper)[0]

    inputs = stack.variables, carry, shared.modulation, constants
    return scan_blocks(one, *inputs, REMAT_POLICIES[policy], unroll)
