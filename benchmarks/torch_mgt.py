"""The transformer in PyTorch on the blocks of diffusers' Flux, with the released names of weights: what ours is compared with.

Needs torch and diffusers (extra `parity`).
"""

import math
from collections.abc import Sequence

import torch
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.transformers.transformer_flux import (
    FluxPosEmbed,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import nn

from editmgt_jax.config import MGTConfig


class _Embed(nn.Module):
    def __init__(self, vocabulary, width):
        super().__init__()
        self.embeddings = nn.Embedding(vocabulary, width)
        self.layer_norm = nn.RMSNorm(width, eps=1e-6)
        self.conv = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, ids):
        return self.conv(self.layer_norm(self.embeddings(ids)).permute(0, 3, 1, 2))


class _Resample(nn.Module):
    """RMSNorm over channels, then a 2x2 convolution of stride 2, transposed or not."""

    def __init__(self, width, convolution):
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.conv = convolution(width, width, 2, stride=2, bias=False)

    def forward(self, x):
        return self.conv(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class _Head(nn.Module):
    def __init__(self, width, codebook):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 1, bias=False)
        self.layer_norm = nn.RMSNorm(width, eps=1e-6)
        self.conv2 = nn.Conv2d(width, codebook, 1, bias=False)

    def forward(self, x):
        return self.conv2(self.layer_norm(self.conv1(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class TorchMGT(nn.Module):
    """The transformer, with or without a reference."""

    def __init__(self, config: MGTConfig):
        super().__init__()
        self.config, width = config, config.width
        heads, head = config.num_attention_heads, config.attention_head_dim
        if config.connector_type == "linear":
            self.connector = nn.ModuleDict({"projector": nn.Linear(config.joint_attention_dim, width)})
        self.context_embedder = nn.Linear(width, width)  # with and without a connector, as released
        self.encoder_proj_layer_norm = nn.RMSNorm(width, eps=1e-6)
        pooled = config.pooled_projection_dim
        self.cond_embed = TimestepEmbedding(pooled + 5 * 256, width, sample_proj_bias=False)
        self.time_text_embed = nn.ModuleDict(
            {"timestep_embedder": TimestepEmbedding(256, width), "text_embedder": TimestepEmbedding(width, width)}
        )
        self.embed = _Embed(config.vocab_size, width)
        if config.downsample:
            self.down_block = nn.ModuleDict({"downsample": _Resample(width, nn.Conv2d)})
            self.up_block = nn.ModuleDict({"upsample": _Resample(width, nn.ConvTranspose2d)})
        self.project_to_hidden_norm = nn.RMSNorm(width, eps=1e-6)
        self.project_to_hidden = nn.Linear(width, width, bias=False)
        self.transformer_blocks = nn.ModuleList(
            FluxTransformerBlock(width, heads, head) for _ in range(config.num_layers)
        )
        self.single_transformer_blocks = nn.ModuleList(
            FluxSingleTransformerBlock(width, heads, head) for _ in range(config.num_single_layers)
        )
        self.project_from_hidden_norm = nn.RMSNorm(width, eps=1e-6)
        self.project_from_hidden = nn.Linear(width, width, bias=False)
        self.mlm_layer = _Head(width, config.codebook_size)

    def forward(
        self,
        ids: torch.Tensor,
        time: torch.Tensor,
        states: torch.Tensor,
        pooled: torch.Tensor,
        micro: torch.Tensor,
        reference: torch.Tensor | None = None,
        strength: float = 1.0,
    ) -> torch.Tensor:
        """Logits [B K H W] of ids [B H W] at time [B], given text states [B T E], a pooled text vector [B P],
        micro-conditions [B 5], and ids of the source picture [B H W] or None that count with a strength > 0."""
        text, pooled = self._text(states), self._pooled(pooled, micro)
        image, grid = self._trunk_tokens(ids)
        parts = [text, image] if reference is None else [text, image, self._trunk_tokens(reference)[0]]
        times = [time, time, torch.zeros_like(time)]
        modulations = [self._modulation(time, pooled) for time in times[: len(parts)]]
        lengths = [part.shape[1] for part in parts]
        shared = self._rotary(lengths[0], grid, len(parts) - 1), _strength_bias(strength, lengths)
        for block in self.transformer_blocks:
            parts = _double(block, parts, modulations, *shared)
        for block in self.single_transformer_blocks:
            parts = _single(block, parts, modulations, *shared)
        x = self.project_from_hidden(self.project_from_hidden_norm(parts[1])).transpose(1, 2)
        x = x.reshape(*x.shape[:2], *grid)
        return self.mlm_layer(self.up_block["upsample"](x) if self.config.downsample else x)

    def _trunk_tokens(self, ids):
        x = self.embed(ids)
        if self.config.downsample:
            x = self.down_block["downsample"](x)
        tokens = self.project_to_hidden(self.project_to_hidden_norm(x.flatten(2).transpose(1, 2)))
        return tokens, x.shape[2:]

    def _text(self, states):
        if self.config.connector_type == "linear":
            states = self.connector["projector"](states)
        return self.encoder_proj_layer_norm(self.context_embedder(states))

    def _pooled(self, pooled, micro):
        micro = _sinusoid(micro.flatten()).reshape(len(pooled), -1)
        return self.time_text_embed["text_embedder"](self.cond_embed(torch.cat([pooled, micro], dim=1)))

    def _modulation(self, time, pooled):
        return self.time_text_embed["timestep_embedder"](_sinusoid(time * 1000)) + pooled

    def _rotary(self, text: int, grid: Sequence[int], pictures: int):
        cells = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in grid))
        positions = nn.functional.pad(cells, (1, 0)).repeat(pictures, 1)
        return FluxPosEmbed(10000, self.config.axes_dims_rope)(nn.functional.pad(positions, (0, 0, text, 0)))


def _sinusoid(values):
    return get_timestep_embedding(values, embedding_dim=256, flip_sin_to_cos=True, downscale_freq_shift=0)


def _strength_bias(strength: float, lengths: Sequence[int]) -> torch.Tensor | None:
    """[S S]: log(strength) between the reference and everything else."""
    if strength == 1 or len(lengths) < 3:
        return None
    is_reference = torch.arange(sum(lengths)) >= sum(lengths[:2])
    return (is_reference[:, None] != is_reference) * math.log(strength)


def _double(block, parts, modulations, rotary, bias):
    """A double-stream block of diffusers; the pictures share its weights, each with its own modulation."""
    norms = [block.norm1_context] + [block.norm1] * (len(parts) - 1)
    normed, gates, shifts, scales, mlp_gates = zip(
        *(norm(part, emb=modulation) for norm, part, modulation in zip(norms, parts, modulations, strict=True)),
        strict=True,
    )
    attended, text = block.attn(
        hidden_states=torch.cat(normed[1:], dim=1),
        encoder_hidden_states=normed[0],
        image_rotary_emb=rotary,
        attention_mask=bias,
    )
    attended = [text, *attended.split([part.shape[1] for part in parts[1:]], dim=1)]
    results = []
    for index, part in enumerate(parts):
        norm, mlp = (block.norm2, block.ff) if index else (block.norm2_context, block.ff_context)
        part = part + gates[index][:, None] * attended[index]
        part = part + mlp_gates[index][:, None] * mlp(
            norm(part) * (1 + scales[index][:, None]) + shifts[index][:, None]
        )
        results.append(part)
    return results


def _single(block, parts, modulations, rotary, bias):
    """A single-stream block of diffusers, in which each part has its own modulation."""
    normed, gates = zip(
        *(block.norm(part, emb=modulation) for part, modulation in zip(parts, modulations, strict=True)), strict=True
    )
    x = torch.cat(normed, dim=1)
    attended = block.attn(hidden_states=x, image_rotary_emb=rotary, attention_mask=bias)
    x = block.proj_out(torch.cat([attended, block.act_mlp(block.proj_mlp(x))], dim=2))
    x = x.split([part.shape[1] for part in parts], dim=1)
    return [part + gate[:, None] * value for part, gate, value in zip(parts, gates, x, strict=True)]
