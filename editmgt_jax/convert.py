"""Released PyTorch weights <-> our parameter trees. The only module that knows the other world's names.

One table of rules a model, read in both directions. A rule pairs one of our modules with one of theirs:

    ours    path of a module in our tree; `{0}`, `{1}` stand for numbers
    theirs  name of the PyTorch module; the same numbers, and `{L}` for a layer that our tree stacks on axis 0
    kind    how weight and bias are laid out (`KINDS`)

Source  diffusers / transformers state dicts (torch Linear is [out, in], Conv2d [out, in, y, x])
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from editmgt_jax.config import CLIPTextConfig, MGTConfig, VQConfig, write_json

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
TRANSFORMERS_WEIGHTS_NAME = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class WeightsError(ValueError):
    """A weight file that cannot be loaded: names the keys and both shapes."""


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


def _identity(array, _config):
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


_AFFINE = {"kernel": "weight", "bias": "bias"}
KINDS = {
    "linear": Kind(_AFFINE, _transpose_matrix, _transpose_matrix),
    "rotary_linear": Kind(
        _AFFINE,
        lambda a, c: _transpose_matrix(_halves(a, c), c),
        lambda a, c: _pairs(_transpose_matrix(a, c), c),
    ),
    "rotary_norm": Kind({"scale": "weight"}, _halves, _pairs),
    "norm": Kind({"scale": "weight", "bias": "bias"}, _identity, _identity),
    "embedding": Kind({"embedding": "weight"}, _identity, _identity),
    "array": Kind({"": "weight"}, _identity, _identity),
    "conv": Kind(
        _AFFINE,
        lambda a, c: a.transpose(2, 3, 1, 0) if a.ndim == 4 else a,
        lambda a, c: a.transpose(3, 2, 0, 1) if a.ndim == 4 else a,
    ),
    "conv1x1": Kind(_AFFINE, _conv1x1_to_ours, _conv1x1_to_theirs),
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

RULES = {MGTConfig: MGT_RULES, VQConfig: VQ_RULES, CLIPTextConfig: CLIP_RULES}
# Buffers that some released files carry and that hold no weight.
_BUFFERS = re.compile(r"text_model\.embeddings\.position_ids$")


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """One leaf of our tree and the released keys it comes from (several when layers are stacked)."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    keys: tuple[str, ...]
    kind: Kind
    stacked: bool

    def to_theirs(self, value, config) -> Iterable[tuple[str, np.ndarray]]:
        layers = value if self.stacked else value[None]
        for key, layer in zip(self.keys, layers, strict=True):
            yield key, self.kind.to_theirs(np.asarray(layer), config)

    def their_shape(self, config) -> tuple[int, ...]:
        probe = np.broadcast_to(np.int8(0), self.shape[1:] if self.stacked else self.shape)
        return self.kind.to_theirs(probe, config).shape


def _match(rule: Rule, module: str) -> str | None:
    """Their module name for our module path, or None if the rule is about another module."""
    pattern = re.sub(r"\\\{(\d)\\\}", r"(?P<n\1>\\d+)", re.escape(rule.ours))
    found = re.fullmatch(pattern, module)
    if not found:
        return None
    theirs = rule.theirs
    for name, number in found.groupdict().items():
        theirs = theirs.replace("{" + name[1:] + "}", number)
    return theirs


def _leaves(config, abstract_params) -> list[_Leaf]:
    """Every leaf with its rule. A path that no rule, or more than one, covers is a programming error here."""
    leaves = []
    for path, value in flatten_dict(abstract_params).items():
        found = []
        for rule in RULES[type(config)]:
            kind = KINDS[rule.kind]
            module, leaf = ("/".join(path), "") if "" in kind.leaves else ("/".join(path[:-1]), path[-1])
            theirs = _match(rule, module)
            if theirs is not None and leaf in kind.leaves:
                found.append((f"{theirs}.{kind.leaves[leaf]}", kind))
        if len(found) != 1:
            raise ValueError(f"exactly one conversion rule must cover {'/'.join(path)}; {len(found)} do")
        (name, kind), stacked = found[0], "{L}" in found[0][0]
        keys = tuple(name.replace("{L}", str(i)) for i in range(value.shape[0])) if stacked else (name,)
        leaves.append(_Leaf(path, tuple(value.shape), keys, kind, stacked))
    return leaves


def weight_files(directory) -> list[Path]:
    """The safetensors files of a component; a pickle alone is refused with the reason."""
    directory = Path(directory)
    files = sorted(directory.glob("*.safetensors"))
    if files:
        return files
    pickles = [path.name for pattern in PICKLES for path in directory.glob(pattern)]
    if pickles:
        raise WeightsError(
            f"{directory} has only pickled weights ({', '.join(pickles)}), and unpickling can run any code: they are "
            "refused. Convert them to safetensors with the library that wrote them"
        )
    raise FileNotFoundError(f"a model component needs *.safetensors weights; none in {directory}")


def _open(directory):
    """{key: (open file, path)} over all weight files. Errors: unreadable file, repeated key."""
    index = {}
    for path in weight_files(directory):
        try:
            handle = safe_open(path, framework="np")
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is not a readable safetensors file ({error}); it may be truncated") from error
        for key in handle.keys():
            if key in index:
                raise WeightsError(f"weight {key} is repeated: in {index[key][1].name} and in {path.name}")
            if not _BUFFERS.search(key):
                index[key] = (handle, path)
    return index


def load_params(directory, config, abstract_params):
    """Reads a component's safetensors straight into our tree, float32.

    Args:
      directory: folder with `*.safetensors`; config: MGTConfig, VQConfig or CLIPTextConfig.
      abstract_params: the tree of shapes, from `jax.eval_shape(model.init, ...)`.
    Errors: WeightsError listing unknown, missing, repeated or misshapen weights with both shapes.
    """
    index, leaves = _open(directory), _leaves(config, abstract_params)
    wanted = {key: leaf.their_shape(config) for leaf in leaves for key in leaf.keys}
    problems = [f"missing: {key} {list(shape)}" for key, shape in wanted.items() if key not in index]
    problems += [f"unknown: {key} {h.get_slice(key).get_shape()}" for key, (h, _) in index.items() if key not in wanted]
    for key in wanted.keys() & index.keys():
        found = tuple(index[key][0].get_slice(key).get_shape())
        if found != tuple(wanted[key]):
            problems.append(f"misshapen: {key} is {list(found)} in the file, {list(wanted[key])} by config.json")
    if problems:
        shown = "\n  ".join(sorted(problems)[:20])
        more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise WeightsError(f"{directory}: weights do not fit config.json:\n  {shown}{more}")

    def read(leaf):
        layers = [leaf.kind.to_ours(index[key][0].get_tensor(key), config) for key in leaf.keys]
        value = np.stack(layers) if leaf.stacked else layers[0]
        return np.ascontiguousarray(value, np.float32)

    return unflatten_dict({leaf.path: read(leaf) for leaf in leaves})


def to_released(params, config) -> dict[str, np.ndarray]:
    """Our tree -> {released key: array}; the exact inverse of `load_params`."""
    values = flatten_dict(params)
    leaves = _leaves(config, params)
    return {
        key: np.ascontiguousarray(array)
        for leaf in leaves
        for key, array in leaf.to_theirs(jax.device_get(values[leaf.path]), config)
    }


def save_component(directory, config, params, dtype=np.float32) -> None:
    """Writes config.json and safetensors of one component into `directory` (created)."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    name = TRANSFORMERS_WEIGHTS_NAME if isinstance(config, CLIPTextConfig) else WEIGHTS_NAME
    weights = {key: array.astype(dtype) for key, array in to_released(params, config).items()}
    save_file(weights, directory / name, metadata={"format": "pt"})
    write_json(config, directory / "config.json")
    (directory / name).chmod((directory / "config.json").stat().st_mode)  # safetensors writes for its owner alone
