"""The masked generative transformer: token ids, text and an optional reference image -> logits over the codebook.

Axes    as in `editmgt_jax.config`
Source  released Transformer2DModel; EditMGT section 3 (attention injection)
Differs one joint sequence [text, image, reference] with a modulation vector per segment: text-to-image is the same code
        with a reference of length zero. Blocks are scanned. Attention is a return value of the scan.

`condition` holds all work that is constant over decode steps; `__call__` is one step.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from editmgt_jax.config import LoRAConfig, MGTConfig
from editmgt_jax.errors import UserError
from editmgt_jax.models.attention import check_backend, strength_bias
from editmgt_jax.models.attention.signals import check_signals
from editmgt_jax.models.blocks import (
    NO_PROBE,
    REMAT_POLICIES,
    DoubleBlock,
    Probe,
    Shared,
    SingleBlock,
    Visit,
    rematerialised,
    scanned,
    spread,
    spread_grid,
)
from editmgt_jax.models.cells import Downsample, Upsample, from_cells, spread_cells, to_cells
from editmgt_jax.models.layers import RMSNorm, TokenEmbedding, TwoLayerMLP, rotary_table, sinusoid
from editmgt_jax.shapes import Array, Float, Int, Scalar


@struct.dataclass
class Condition:
    """What a decode conditions on, computed once. Concatenable along the batch (guidance stacks two)."""

    text: jax.Array  # [B T D] normalised text states
    pooled: jax.Array  # [B D] embedded pooled text and micro-conditions
    reference: jax.Array  # [B N' D] reference tokens in the trunk; N' = 0 without a reference
    reference_modulation: jax.Array  # [B D] its modulation vector (time 0)
    strength: jax.Array | None  # gamma, [1] or [B]; None is 1
    grid: tuple[int, int] | None = struct.field(pytree_node=False)  # (h, w) of the reference; None without one


class MGT(nn.Module):
    """Masked generative transformer.

    Attributes:
      config: architecture.
      dtype: compute dtype of the matrix products; parameters, norms, softmax and, but for `head_precision`, logits are float32.
      remat: which activations the backward pass keeps: 'none' (all), 'dots' (float32 results of products), 'products' (those
        that are dear, in `dtype`, and what fused attention needs) or 'full' (recompute everything). Where attention
        is read or blocks are intervened in, all is kept.
      unroll: blocks in one turn of the scan. All of them is right for training small models on a CPU, which then need
        not stack what the backward pass keeps.
      head_precision: of the product with the codebook; only 'highest' keeps parity, and 'default' suits training.
      attention: the backend, see `editmgt_jax.models.attention`.
      lora: of the low-rank factors in the collection "lora", laid out as the parameters of the blocks; None ignores them.
    """

    config: MGTConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    unroll: int = 1
    lora: LoRAConfig | None = None
    head_precision: str = "highest"
    attention: str = "auto"

    def setup(self) -> None:
        """Declares the modules. Errors: UserError for `remat` or `attention` that there is not."""
        config, width = self.config, self.config.width
        if self.remat not in REMAT_POLICIES:
            raise UserError(f"remat must be one of {sorted(REMAT_POLICIES)}; got {self.remat!r}")
        check_backend(self.attention, self.dtype)

        def dense(features, use_bias=False):
            return nn.Dense(features, use_bias=use_bias, dtype=self.dtype)

        if config.connector_type == "linear":
            self.connector = dense(width, use_bias=True)
        self.context_embedder = dense(width, use_bias=True)
        self.text_norm = RMSNorm()
        self.micro_embedder = TwoLayerMLP(width, False, self.dtype)
        self.time_embedder = TwoLayerMLP(width, True, self.dtype)
        self.pooled_embedder = TwoLayerMLP(width, True, self.dtype)

        self.token_embedding = TokenEmbedding(config.vocab_size, width, self.dtype)
        self.token_norm = RMSNorm()
        self.token_conv = dense(width)
        if config.downsample:
            self.down_norm = RMSNorm()
            self.down_conv = Downsample(self.dtype)
        self.project_in_norm = RMSNorm()
        self.project_in = dense(width)

        kind = config, self.dtype, self.lora, self.attention
        self.double_blocks = scanned(DoubleBlock, config.num_layers, self.unroll)(*kind)
        self.single_blocks = scanned(SingleBlock, config.num_single_layers, self.unroll)(*kind)

        self.project_out_norm = RMSNorm()
        self.project_out = dense(width)
        if config.upsample:
            self.up_norm = RMSNorm()
            self.up_conv = Upsample(self.dtype)
        self.head_conv = dense(width)
        self.head_norm = RMSNorm()
        exact = self.head_precision != "default"
        self.head_logits = nn.Dense(
            config.codebook_size,
            use_bias=False,
            dtype=jnp.float32 if exact else self.dtype,
            precision=self.head_precision,
        )

    def _trunk_tokens(self, tokens):
        """[B H W] int32 ids -> [B N D]; image and reference go through the same weights."""
        x = spread_cells(self.token_embedding(spread_cells(to_cells(tokens, self.config.stride))))
        x = spread_cells(self.token_conv(self.token_norm(x)))
        x = self.down_conv(self.down_norm(x)) if self.config.downsample else x[0]
        return spread(self.project_in(self.project_in_norm(spread(x))))

    def _check_grid(self, name, tokens):
        if tokens.ndim != 3 or any(side % self.config.stride or not side for side in tokens.shape[1:]):
            raise UserError(
                f"{name} must be [batch, rows, columns] with sides that are multiples of {self.config.stride}; "
                f"got shape {tokens.shape}"
            )

    def condition(
        self,
        text_states: Float[Array, "B T E"],
        pooled: Float[Array, "B P"],
        micro_conditions: Float[Array, "B 5"],
        reference_tokens: Int[Array, "B H W"] | None = None,
        strength: Scalar | Float[Array, " B"] = 1.0,
    ) -> Condition:
        """Everything about a request that does not change between decode steps.

        Args:
          text_states: [B T E]; pooled: [B P]; micro_conditions: [B 5] (width, height, crop top, crop left, score).
          reference_tokens: [B H W] int32 ids of the source image, or None for text-to-image.
          strength: gamma >= 0, scalar or [B]; 0 switches the reference off exactly. A Python 1 adds nothing to the program,
            either.
        Errors: UserError for states of another width, or a grid that the trunk does not divide.
        """
        batch = text_states.shape[0]
        if text_states.shape[-1] != self.config.joint_attention_dim:
            raise UserError(
                f"text_states must be {self.config.joint_attention_dim} wide (joint_attention_dim); "
                f"got shape {text_states.shape}"
            )
        text = text_states.astype(self.dtype)
        if self.config.connector_type == "linear":
            text = self.connector(text)
        text = spread(self.text_norm(self.context_embedder(text)))

        micro = sinusoid(micro_conditions).reshape(batch, -1)  # [B 5*256]
        pooled = self.micro_embedder(jnp.concatenate([pooled.astype(jnp.float32), micro], axis=-1))
        pooled = self.pooled_embedder(pooled)
        grid = None
        if reference_tokens is None:
            reference = jnp.zeros((batch, 0, self.config.width), text.dtype)
        else:
            self._check_grid("reference_tokens", reference_tokens)
            reference = self._trunk_tokens(reference_tokens)
            grid = tuple(side // self.config.stride for side in reference_tokens.shape[1:])
        return Condition(
            text=text,
            pooled=pooled,
            reference=reference,
            reference_modulation=self._modulation(jnp.zeros((batch,)), pooled),
            strength=None if _is_one(strength) else jnp.atleast_1d(jnp.asarray(strength, jnp.float32)),
            grid=grid,
        )

    def _modulation(self, time, pooled):
        return self.time_embedder(sinusoid(time * 1000.0)) + pooled  # [B D]

    def _blocks(self, text, visual, visits: Visit, shared: Shared):
        """Runs both stacks -> ([B S D], attention [blocks B' R N] or None)."""
        if (
            self.remat != "none"
            and shared.text_weights is None
            and visits.interventions is None
            and not self.is_initializing()
        ):
            return self._rematerialised(text, visual, shared), None
        border = self.config.num_layers
        double, single = (jax.tree.map(lambda x: x[:border], visits), jax.tree.map(lambda x: x[border:], visits))
        (text, visual), first = self.double_blocks((text, visual), double, shared)
        sequence, second = self.single_blocks(jnp.concatenate([text, visual], axis=1), single, shared)
        return sequence, None if shared.text_weights is None else jnp.concatenate([first, second])

    def _rematerialised(self, text, visual, shared: Shared):
        """`_blocks` with a backward pass as `remat` says. -> [B S D]"""
        kind = self.config, self.dtype, self.lora, self.attention
        double, single = (block(*kind, parent=None) for block in (DoubleBlock, SingleBlock))
        how = shared, self.remat, self.unroll
        text, visual = rematerialised(self.double_blocks, double, (text, visual), *how)
        return rematerialised(self.single_blocks, single, jnp.concatenate([text, visual], axis=1), *how)

    def _check_layers(self, layers, text_weights):
        if text_weights is not None and not layers:
            raise ValueError("text_weights need layers, the blocks whose attention is read; got none")
        bad = [layer for layer in layers if not 0 <= layer < self.config.num_blocks]
        if bad:
            raise ValueError(f"layers must lie in 0..{self.config.num_blocks - 1} (this model's blocks); got {bad}")

    def __call__(
        self,
        tokens: Int[Array, "B H W"],
        time: Scalar | Float[Array, " B"] | Int[Array, " B"],
        condition: Condition,
        text_weights: Float[Array, "live R T"] | None = None,
        layers: tuple[int, ...] = (),
        probe: Probe = NO_PROBE,
        by_cell: bool = False,
    ) -> tuple[Float[Array, "B H W C"] | Float[Array, "E B N C"], Float[Array, "live J *axes"] | None]:
        """One forward pass.

        Args:
          tokens: [B H W] int32, `mask_token_id` where unknown.
          time: [B] or scalar; multiplied by 1000 before its sinusoid (released convention).
          condition: from `condition`, for the same batch.
          text_weights: [B' R T] of the text tokens whose attention to the image is wanted, or None. B' <= B: they
            belong to the last B' samples (the conditional half under guidance).
          layers: static block numbers, 0 .. num_blocks-1, double-stream first; needed when `text_weights` are given.
          probe: what else research wants of every block.
          by_cell: whether logits are [E B N C], tokens by their place in a cell (`cells.to_cells`), which costs less.
        Returns:
          logits [B H W C] float32, or in `dtype` where `head_precision` is 'default', and attention [B' J R N] float32 (None without text_weights), or the
          probe's signals [B' J F A' R N].
        Errors: UserError for a grid that the trunk does not divide; ValueError for layers, weights or a reference that do not fit.
        """
        config = self.config
        self._check_grid("tokens", tokens)
        self._check_layers(layers, text_weights)
        batch, grid = tokens.shape[0], tuple(side // config.stride for side in tokens.shape[1:])
        image = self._trunk_tokens(tokens)
        num_text, num_image = condition.text.shape[1], image.shape[1]
        num_reference = condition.reference.shape[1]
        if condition.grid not in (None, grid):
            raise ValueError(f"the reference must have the image's grid, {grid} in the trunk; got {condition.grid}")

        time = jnp.broadcast_to(jnp.asarray(time, jnp.float32), (batch,))
        live_modulation = self._modulation(time, condition.pooled)
        cos, sin = rotary_table(grid, num_text, config.axes_dims_rope)
        reference_positions = slice(num_text, num_text + num_reference)
        shared = Shared(
            modulation=jnp.stack([live_modulation, condition.reference_modulation], axis=1),
            cos=jnp.concatenate([cos, cos[reference_positions]]),
            sin=jnp.concatenate([sin, sin[reference_positions]]),
            group_bias=strength_bias(condition.strength, (num_text + num_image, num_reference)),
            text_weights=text_weights,
            num_text=num_text,
            num_image=num_image,
            signals=check_signals(probe.signals),
            each_head=probe.each_head,
        )
        wanted = jnp.isin(jnp.arange(config.num_blocks), jnp.array(layers, jnp.int32))
        visual = jnp.concatenate([image, condition.reference], axis=1)
        sequence, attention = self._blocks(condition.text, visual, Visit(wanted, probe.interventions), shared)
        logits = self._head(sequence[:, num_text : num_text + num_image], grid, by_cell)
        if text_weights is not None:
            attention = attention[jnp.array(layers, jnp.int32)].swapaxes(0, 1)  # [B' J R N]
        return logits, attention

    def _head(self, x, grid, by_cell):
        """[B N D] -> logits [B H W C], or [E B N C]; `grid` is that of the cells."""
        x = spread(self.project_out(self.project_out_norm(x)))
        x = spread_cells(self.up_conv(self.up_norm(x)) if self.config.upsample else x[None])
        spread_out = spread_cells if by_cell else spread_grid
        x = x if by_cell else spread_grid(from_cells(x, grid))
        x = spread_out(self.head_norm(self.head_conv(x)))
        return spread_out(self.head_logits(x))


def _is_one(strength) -> bool:
    """Whether it is known while tracing that the strength is 1."""
    return isinstance(strength, int | float) and strength == 1


def init_mgt(mgt: MGT, key: Array) -> dict:
    """Random parameters of an MGT (or, under `jax.eval_shape`, their shapes)."""
    config, side = mgt.config, 2 * mgt.config.stride

    def touch(module):
        condition = module.condition(
            jnp.zeros((1, 1, config.joint_attention_dim)),
            jnp.zeros((1, config.pooled_projection_dim)),
            jnp.zeros((1, 5)),
        )
        return module(jnp.zeros((1, side, side), jnp.int32), 0.0, condition)

    return mgt.init(key, method=touch)["params"]
