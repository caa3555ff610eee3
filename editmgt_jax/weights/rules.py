"""Rules: our modules <-> those of released PyTorch weights. The only module that knows the other world's names.

A rule pairs one of our modules with one of theirs:

    ours    path of a module in our tree; `{0}`, `{1}` stand for numbers
    theirs  name of the PyTorch module; the same numbers, and `{L}` for a layer that our tree stacks on axis 0
    kind    how weight and bias are laid out (`KINDS`)

Source  diffusers / transformers state dicts (torch Linear is [out, in], Conv2d [out, in, y, x])
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from editmgt_jax.config import CLIPTextConfig, Gemma2Config, MGTConfig, VQConfig

ComponentConfig = MGTConfig | VQConfig | CLIPTextConfig | Gemma2Config


@dataclasses.dataclass(frozen=True)
class Rule:
    ours: str
    theirs: str
    kind: str


@dataclasses.dataclass(frozen=True)
class Kind:
    """Layout of one kind of module. Functions map a single layer's array, theirs to ours and back."""

    leaves: dict[str, str]  # our leaf name -> their leaf name
    to_ours: Callable
    to_theirs: Callable


def identity(array: np.ndarray, _config: ComponentConfig) -> np.ndarray:
    """A layout that both sides share."""
    return array


def _halves(array, config):
    """Output channels of a head from pairs (2i, 2i+1) to halves (i, i + K/2); see `layers.rotate`."""
    head = config.attention_head_dim
    grouped = array.reshape(-1, head // 2, 2, *array.shape[1:])
    return grouped.swapaxes(1, 2).reshape(array.shape)


def _pairs(array, config):
    head = config.attention_head_dim
    grouped = array.reshape(-1, 2, head // 2, *array.shape[1:])
    return grouped.swapaxes(1, 2).reshape(array.shape)


def _transpose_matrix(array, _config):
    return array.T if array.ndim == 2 else array


def _conv1x1_to_ours(array, _config):
    if array.ndim == 4 and array.shape[2:] != (1, 1):
        return array  # misshapen on purpose: the shape check names it
    return array[:, :, 0, 0].T if array.ndim == 4 else array


def _conv1x1_to_theirs(array, _config):
    return array.T[:, :, None, None] if array.ndim == 2 else array


def _up_to_ours(array, _config):
    return array.transpose(0, 2, 3, 1).reshape(array.shape[0], -1)  # [in out y x] -> [in y*x*out]


def _up_to_theirs(array, _config):
    return array.reshape(array.shape[0], 2, 2, -1).transpose(0, 3, 1, 2)


AFFINE = {"kernel": "weight", "bias": "bias"}
LORA = {
    "lora_a": "lora_A.weight",
    "lora_b": "lora_B.weight",
}  # beside the kernel of a linear module, as PEFT names them
KINDS = {
    "linear": Kind(AFFINE, _transpose_matrix, _transpose_matrix),
    "rotary_linear": Kind(
        AFFINE,
        lambda a, c: _transpose_matrix(_halves(a, c), c),
        lambda a, c: _pairs(_transpose_matrix(a, c), c),
    ),
    "rotary_norm": Kind({"scale": "weight"}, _halves, _pairs),
    "norm": Kind({"scale": "weight", "bias": "bias"}, identity, identity),
    "embedding": Kind({"embedding": "weight"}, identity, identity),
    "array": Kind({"": "weight"}, identity, identity),
    "conv": Kind(
        AFFINE,
        lambda a, c: a.transpose(2, 3, 1, 0) if a.ndim == 4 else a,
        lambda a, c: a.transpose(3, 2, 0, 1) if a.ndim == 4 else a,
    ),
    "conv1x1": Kind(AFFINE, _conv1x1_to_ours, _conv1x1_to_theirs),
    "transposed_conv2x2": Kind({"kernel": "weight"}, _up_to_ours, _up_to_theirs),
}


def _two_layer(ours, theirs):
    return [Rule(f"{ours}/linear_{i}", f"{theirs}.linear_{i}", "linear") for i in (1, 2)]


_DOUBLE, _SINGLE = "transformer_blocks.{L}", "single_transformer_blocks.{L}"
MGT_RULES = [
    Rule("connector", "connector.projector", "linear"),
    Rule("context_embedder", "context_embedder", "linear"),
    Rule("text_norm", "encoder_proj_layer_norm", "norm"),
    *_two_layer("micro_embedder", "cond_embed"),
    *_two_layer("time_embedder", "time_text_embed.timestep_embedder"),
    *_two_layer("pooled_embedder", "time_text_embed.text_embedder"),
    Rule("token_embedding", "embed.embeddings", "embedding"),
    Rule("token_norm", "embed.layer_norm", "norm"),
    Rule("token_conv", "embed.conv", "conv1x1"),
    Rule("down_norm", "down_block.downsample.norm", "norm"),
    Rule("down_conv", "down_block.downsample.conv", "conv"),
    Rule("project_in_norm", "project_to_hidden_norm", "norm"),
    Rule("project_in", "project_to_hidden", "linear"),
    Rule("project_out_norm", "project_from_hidden_norm", "norm"),
    Rule("project_out", "project_from_hidden", "linear"),
    Rule("up_norm", "up_block.upsample.norm", "norm"),
    Rule("up_conv", "up_block.upsample.conv", "transposed_conv2x2"),
    Rule("head_conv", "mlm_layer.conv1", "conv1x1"),
    Rule("head_norm", "mlm_layer.layer_norm", "norm"),
    Rule("head_logits", "mlm_layer.conv2", "conv1x1"),
    Rule("double_blocks/modulation", f"{_DOUBLE}.norm1.linear", "linear"),
    Rule("double_blocks/text_modulation", f"{_DOUBLE}.norm1_context.linear", "linear"),
    Rule("double_blocks/to_q", f"{_DOUBLE}.attn.to_q", "rotary_linear"),
    Rule("double_blocks/to_k", f"{_DOUBLE}.attn.to_k", "rotary_linear"),
    Rule("double_blocks/to_v", f"{_DOUBLE}.attn.to_v", "linear"),
    Rule("double_blocks/norm_q", f"{_DOUBLE}.attn.norm_q", "rotary_norm"),
    Rule("double_blocks/norm_k", f"{_DOUBLE}.attn.norm_k", "rotary_norm"),
    Rule("double_blocks/to_out", f"{_DOUBLE}.attn.to_out.0", "linear"),
    Rule("double_blocks/text_to_q", f"{_DOUBLE}.attn.add_q_proj", "rotary_linear"),
    Rule("double_blocks/text_to_k", f"{_DOUBLE}.attn.add_k_proj", "rotary_linear"),
    Rule("double_blocks/text_to_v", f"{_DOUBLE}.attn.add_v_proj", "linear"),
    Rule("double_blocks/text_norm_q", f"{_DOUBLE}.attn.norm_added_q", "rotary_norm"),
    Rule("double_blocks/text_norm_k", f"{_DOUBLE}.attn.norm_added_k", "rotary_norm"),
    Rule("double_blocks/text_to_out", f"{_DOUBLE}.attn.to_add_out", "linear"),
    Rule("double_blocks/mlp_in", f"{_DOUBLE}.ff.net.0.proj", "linear"),
    Rule("double_blocks/mlp_out", f"{_DOUBLE}.ff.net.2", "linear"),
    Rule("double_blocks/text_mlp_in", f"{_DOUBLE}.ff_context.net.0.proj", "linear"),
    Rule("double_blocks/text_mlp_out", f"{_DOUBLE}.ff_context.net.2", "linear"),
    Rule("single_blocks/modulation", f"{_SINGLE}.norm.linear", "linear"),
    Rule("single_blocks/to_q", f"{_SINGLE}.attn.to_q", "rotary_linear"),
    Rule("single_blocks/to_k", f"{_SINGLE}.attn.to_k", "rotary_linear"),
    Rule("single_blocks/to_v", f"{_SINGLE}.attn.to_v", "linear"),
    Rule("single_blocks/norm_q", f"{_SINGLE}.attn.norm_q", "rotary_norm"),
    Rule("single_blocks/norm_k", f"{_SINGLE}.attn.norm_k", "rotary_norm"),
    Rule("single_blocks/mlp_in", f"{_SINGLE}.proj_mlp", "linear"),
    Rule("single_blocks/proj_out", f"{_SINGLE}.proj_out", "linear"),
]


def _vq_resnet(ours, theirs):
    return [
        *(Rule(f"{ours}/norm{i}", f"{theirs}.norm{i}", "norm") for i in (1, 2)),
        *(Rule(f"{ours}/conv{i}", f"{theirs}.conv{i}", "conv") for i in (1, 2)),
        Rule(f"{ours}/conv_shortcut", f"{theirs}.conv_shortcut", "conv1x1"),
    ]


def _vq_half(half, level, block, sampler):
    attention = f"{half}/middle/attention_0", f"{half}.mid_block.attentions.0"
    return [
        Rule(f"{half}/conv_in", f"{half}.conv_in", "conv"),
        Rule(f"{half}/norm_out", f"{half}.conv_norm_out", "norm"),
        Rule(f"{half}/conv_out", f"{half}.conv_out", "conv"),
        Rule(f"{half}/{level}_{{0}}_conv", f"{half}.{block}.{{0}}.{sampler}.0.conv", "conv"),
        *_vq_resnet(f"{half}/{level}_{{0}}_resnet_{{1}}", f"{half}.{block}.{{0}}.resnets.{{1}}"),
        *_vq_resnet(f"{half}/middle/resnet_{{0}}", f"{half}.mid_block.resnets.{{0}}"),
        Rule(f"{attention[0]}/norm", f"{attention[1]}.group_norm", "norm"),
        *(Rule(f"{attention[0]}/to_{name}", f"{attention[1]}.to_{name}", "linear") for name in "qkv"),
        Rule(f"{attention[0]}/to_out", f"{attention[1]}.to_out.0", "linear"),
    ]


VQ_RULES = [
    *_vq_half("encoder", "down", "down_blocks", "downsamplers"),
    *_vq_half("decoder", "up", "up_blocks", "upsamplers"),
    Rule("quant_conv", "quant_conv", "conv1x1"),
    Rule("post_quant_conv", "post_quant_conv", "conv1x1"),
    Rule("codebook", "quantize.embedding", "array"),
]

_CLIP = "text_model.encoder.layers.{L}"
CLIP_RULES = [
    Rule("token_embedding", "text_model.embeddings.token_embedding", "embedding"),
    Rule("position_embedding", "text_model.embeddings.position_embedding", "embedding"),
    *(Rule(f"layers/norm{i}", f"{_CLIP}.layer_norm{i}", "norm") for i in (1, 2)),
    *(Rule(f"layers/{n}", f"{_CLIP}.self_attn.{n}", "linear") for n in ("q_proj", "k_proj", "v_proj", "out_proj")),
    *(Rule(f"layers/{n}", f"{_CLIP}.mlp.{n}", "linear") for n in ("fc1", "fc2")),
    Rule("final_norm", "text_model.final_layer_norm", "norm"),
    Rule("text_projection", "text_projection", "linear"),
]

_GEMMA = "model.layers.{L}"
_GEMMA_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
GEMMA_RULES = [
    Rule("token_embedding", "model.embed_tokens", "embedding"),
    *(Rule(f"layers/norm{i + 1}", f"{_GEMMA}.{name}", "norm") for i, name in enumerate(_GEMMA_NORMS)),
    *(Rule(f"layers/{n}", f"{_GEMMA}.self_attn.{n}", "linear") for n in ("q_proj", "k_proj", "v_proj", "o_proj")),
    *(Rule(f"layers/{n}", f"{_GEMMA}.mlp.{n}", "linear") for n in ("gate_proj", "up_proj", "down_proj")),
]


def unused_of_clip(config: CLIPTextConfig) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Tensors that released files carry and our model does not have: a buffer. -> {key: (shape, whether every file has it)}"""
    return {"text_model.embeddings.position_ids": ((1, config.max_position_embeddings), False)}


def unused_of_gemma(config: Gemma2Config) -> dict[str, tuple[tuple[int, ...], bool]]:
    """As `unused_of_clip`: what Gemma 2 does after the states that are used."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = (config.head_dim * n for n in (config.num_attention_heads, config.num_key_value_heads))
    shapes = {f"{name}.weight": (width,) for name in _GEMMA_NORMS}
    shapes |= {f"self_attn.{name}.weight": (keys, width) for name in ("k_proj", "v_proj")}
    shapes |= {"self_attn.q_proj.weight": (queries, width), "self_attn.o_proj.weight": (width, queries)}
    shapes |= {f"mlp.{name}.weight": (inner, width) for name in ("gate_proj", "up_proj")}
    shapes |= {"mlp.down_proj.weight": (width, inner), "model.norm.weight": (width,)}
    last = f"model.layers.{config.num_hidden_layers - 1}."
    named = {key if key.startswith("model.") else last + key: (shape, True) for key, shape in shapes.items()}
    return named | {"lm_head.weight": ((config.vocab_size, width), False)}
