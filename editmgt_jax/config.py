"""Architectures as frozen dataclasses, read from and written to the released `config.json` files.

Axes used by every module of this package (one letter, one meaning):

    B batch            T text tokens        E width of the text states   P width of the pooled text vector
    H W VQ grid        L = H*W              h w MGT grid                 N = h*w image tokens in the MGT
    D width of the MGT S joint sequence     G segments of a sequence     A attention heads, K head width
    C codebook size    V vocabulary size    I decoding steps             J blocks whose attention is read
    R weightings of the text tokens for which attention is read

Source: the config.json of the released checkpoints (diffusers layout). Keys that carry no weight are kept
out of the dataclasses; unsupported values are errors, never ignored.
"""

import dataclasses
import json
import types
import typing
from pathlib import Path

from editmgt_jax.declarations import SETTINGS
from editmgt_jax.errors import UserError
from editmgt_jax.files import write_json

RELEASED_NEGATIVE_PROMPT = (
    "worst quality, low quality, low res, blurry, distortion, watermark, logo, signature, text, jpeg artifacts, "
    "signature, sketch, duplicate, ugly, identifying mark"
)
_DTYPE_NAMES = {"bf16": "bfloat16", "f32": "float32", "fp32": "float32", "f16": "float16", "fp16": "float16"}


def micro_conditions(width: float, height: float, top: float = 0.0, left: float = 0.0) -> tuple[float, ...]:
    """What a transformer is told of a picture: its size before cropping, the crop's offset, and one aesthetic score for all."""
    return width, height, top, left, 6.0


def dtype_name(text: str) -> str:
    """The full name of a dtype that weights may have: 'bf16' -> 'bfloat16'. Errors: UserError."""
    name = _DTYPE_NAMES.get(text, text)
    _require(name in _DTYPE_NAMES.values(), "a dtype must be float32, bfloat16 (bf16) or float16", text)
    return name


def _require(condition: bool, rule: str, got) -> None:
    if not condition:
        raise UserError(f"{rule}; got {got!r}")


def _fits(value, kind) -> bool:
    """Whether a JSON value (lists as tuples) is of an annotated type."""
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(one, typing.get_args(kind)[0]) for one in value)
    if isinstance(kind, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(kind))
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


class _JSONConfig:
    """Shared reading and writing: fields are the released keys, spelt as released."""

    CLASS_NAME = ""
    MODEL_TYPES = ()  # what transformers calls it

    @classmethod
    def from_dict(cls, values: dict):
        """Builds the config from released keys; a required key that is missing is named."""
        _require(isinstance(values, dict), f"{cls.__name__} must be a JSON object", values)
        for key, allowed in (("_class_name", (cls.CLASS_NAME,)), ("model_type", cls.MODEL_TYPES)):
            if allowed and key in values:
                _require(values[key] in allowed, f"{key} must be {' or '.join(allowed)}", values[key])
        values = cls._completed(values)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
        missing = sorted(required - values.keys())
        if missing:
            raise UserError(f"{cls.__name__} needs the config keys {missing}, which are missing; got {sorted(values)}")
        known = {name: value for name, value in values.items() if name in fields}
        cls._check_released(values)
        known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
        for name, value in known.items():
            kind = fields[name].type
            _require(_fits(value, kind), f"{name} must be {getattr(kind, '__name__', kind)}", value)
            if kind is int and not name.endswith("_token_id") and not name.startswith("default_"):
                _require(value > 0, f"{name} must be positive", value)
        return cls(**known)

    @classmethod
    def from_json(cls, path):
        """Reads `config.json` at `path`. Errors: FileNotFoundError, UserError naming the file."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"a model component needs its config.json; none at {path}")
        try:
            values = json.loads(path.read_text())
            return cls.from_dict(values)
        except (json.JSONDecodeError, ValueError, TypeError) as error:
            raise UserError(f"{path}: {error}") from error

    def to_dict(self) -> dict:
        """The released keys, with `_class_name`."""
        return {"_class_name": self.CLASS_NAME} | dataclasses.asdict(self)

    def to_json(self, path) -> None:
        """Writes what `from_json` reads."""
        write_json(path, self.to_dict(), indent=2, sort_keys=True)

    @classmethod
    def _completed(cls, values: dict) -> dict:
        """`values` with what absent keys mean in released files, where that is not our default."""
        return values

    @classmethod
    def _check_released(cls, values: dict) -> None:
        """Rejects released options this implementation does not have."""


@dataclasses.dataclass(frozen=True)
class MGTConfig(_JSONConfig):
    """The masked generative transformer. Defaults are the released editor's values."""

    num_layers: int = 14  # double-stream blocks
    num_single_layers: int = 28
    attention_head_dim: int = 128
    num_attention_heads: int = 8
    joint_attention_dim: int = 2304  # E
    pooled_projection_dim: int = 1024  # P
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    vocab_size: int = 8256
    codebook_size: int = 8192
    downsample: bool = True
    upsample: bool = True
    connector_type: str = "linear"
    text_encoder_architecture: str = "CLIP_Gemma2"

    CLASS_NAME = "Transformer2DModel"

    @classmethod
    def _completed(cls, values: dict) -> dict:
        """As the text-to-image base's class understands its config: it has no connector and knows CLIP alone."""
        absent = {"downsample": False, "upsample": False}
        named = {"connector_type": "none", "text_encoder_architecture": "CLIP"}
        return absent | values | {key: values.get(key) or value for key, value in named.items()}

    def __post_init__(self):
        _require(
            self.connector_type in ("none", "linear"),
            "connector_type must be 'none' or 'linear' ('mlp', 'fmlp' and 'qformer' are not supported)",
            self.connector_type,
        )
        _require(
            sum(self.axes_dims_rope) == self.attention_head_dim and all(d % 2 == 0 for d in self.axes_dims_rope),
            f"axes_dims_rope must be even and sum to attention_head_dim {self.attention_head_dim}",
            self.axes_dims_rope,
        )
        _require(len(self.axes_dims_rope) == 3, "axes_dims_rope must hold three widths", self.axes_dims_rope)
        _require(
            self.vocab_size > self.codebook_size,
            f"vocab_size must exceed codebook_size {self.codebook_size} (the last id is the mask)",
            self.vocab_size,
        )
        _require(
            self.downsample == self.upsample,
            "downsample and upsample must be both true or both false",
            (self.downsample, self.upsample),
        )

    @classmethod
    def _check_released(cls, values: dict) -> None:
        _require(not values.get("guidance_embeds"), "guidance_embeds must be false", values.get("guidance_embeds"))
        _require(values.get("patch_size", 1) == 1, "patch_size must be 1", values.get("patch_size"))

    @property
    def width(self) -> int:
        return self.attention_head_dim * self.num_attention_heads

    @property
    def num_blocks(self) -> int:
        return self.num_layers + self.num_single_layers

    @property
    def mask_token_id(self) -> int:
        return self.vocab_size - 1

    @property
    def stride(self) -> int:
        """VQ tokens per MGT token along one side."""
        return 2 if self.downsample else 1


@dataclasses.dataclass(frozen=True)
class VQConfig(_JSONConfig):
    """The image tokenizer (diffusers `VQModel`). Pixels are in [0, 1] on both sides."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    num_vq_embeddings: int
    norm_num_groups: int = 32
    vq_embed_dim: int | None = None
    in_channels: int = 3
    out_channels: int = 3
    mid_block_add_attention: bool = True

    CLASS_NAME = "VQModel"

    @classmethod
    def _check_released(cls, values: dict) -> None:
        _require(values.get("act_fn", "silu") == "silu", "act_fn of the VQ must be 'silu'", values.get("act_fn"))
        _require(values.get("norm_type", "group") == "group", "norm_type must be 'group'", values.get("norm_type"))
        for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            _require(set(values.get(key, [kind])) == {kind}, f"{key} must all be {kind}", values.get(key))

    def __post_init__(self):
        for name in ("in_channels", "out_channels"):
            _require(getattr(self, name) == 3, f"{name} must be 3: pictures are RGB", getattr(self, name))
        _require(self.block_out_channels, "block_out_channels must name at least one width", self.block_out_channels)
        bad = [c for c in self.block_out_channels if c < 1 or c % self.norm_num_groups]
        _require(
            not bad,
            f"block_out_channels must be positive multiples of norm_num_groups {self.norm_num_groups}",
            bad or None,
        )

    def to_dict(self) -> dict:
        levels = len(self.block_out_channels)
        return super().to_dict() | {
            "act_fn": "silu",
            "norm_type": "group",
            "lookup_from_codebook": True,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
        }

    @property
    def code_dim(self) -> int:
        return self.latent_channels if self.vq_embed_dim is None else self.vq_embed_dim

    @property
    def factor(self) -> int:
        """Pixels per token along one side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig(_JSONConfig):
    """CLIP text tower with projection (transformers `CLIPTextModelWithProjection`)."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    bos_token_id: int = 49406
    pad_token_id: int = 1

    CLASS_NAME = "CLIPTextModelWithProjection"
    MODEL_TYPES = ("clip_text_model",)

    def __post_init__(self):
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size must be a multiple of num_attention_heads {self.num_attention_heads}",
            self.hidden_size,
        )
        _require(
            self.hidden_act in ("gelu", "quick_gelu"), "hidden_act must be 'gelu' or 'quick_gelu'", self.hidden_act
        )

    def to_dict(self) -> dict:
        values = super().to_dict()
        del values["_class_name"]
        return values | {"architectures": [self.CLASS_NAME], "model_type": "clip_text_model"}


@dataclasses.dataclass(frozen=True)
class Gemma2Config(_JSONConfig):
    """Gemma 2 (transformers `Gemma2ForCausalLM`). Defaults are gemma-2-2b-it's values."""

    vocab_size: int = 256_000
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    query_pre_attn_scalar: int = 256
    sliding_window: int = 4096
    attn_logit_softcapping: float | None = 50.0
    layer_types: tuple[str, ...] = ()  # by default 'sliding_attention' and 'full_attention' in turn
    bos_token_id: int = 2
    eos_token_id: int = 1
    pad_token_id: int = 0

    CLASS_NAME = "Gemma2ForCausalLM"
    MODEL_TYPES = ("gemma2",)

    @classmethod
    def _completed(cls, values: dict) -> dict:
        rope = values.get("rope_parameters") or {}
        _require(isinstance(rope, dict), "rope_parameters must be a JSON object", rope)
        completed = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
        completed |= {key: value for key, value in values.items() if value is not None}
        if "attn_logit_softcapping" in values:
            completed["attn_logit_softcapping"] = values["attn_logit_softcapping"]
        if isinstance(values.get("eos_token_id"), list) and values["eos_token_id"]:
            completed["eos_token_id"] = values["eos_token_id"][0]
        return completed

    @classmethod
    def _check_released(cls, values: dict) -> None:
        rope, activation = values.get("rope_parameters") or {}, values.get("hidden_activation")
        _require(not values.get("attention_bias"), "attention_bias must be false", values.get("attention_bias"))
        _require(activation in (None, "gelu_pytorch_tanh"), "hidden_activation must be gelu_pytorch_tanh", activation)
        _require(rope.get("rope_type", "default") == "default", "rope_type must be 'default'", rope.get("rope_type"))
        _require(not values.get("rope_scaling"), "rope_scaling must be absent", values.get("rope_scaling"))
        bidirectional = values.get("use_bidirectional_attention")
        _require(not bidirectional, "use_bidirectional_attention must be false", bidirectional)

    def __post_init__(self):
        kinds = ("sliding_attention", "full_attention")
        if not self.layer_types:
            object.__setattr__(self, "layer_types", tuple(kinds[i % 2] for i in range(self.num_hidden_layers)))
        _require(
            len(self.layer_types) == self.num_hidden_layers and set(self.layer_types) <= set(kinds),
            f"layer_types must name one of {kinds} for each of the {self.num_hidden_layers} layers",
            self.layer_types,
        )
        _require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_attention_heads must be a multiple of num_key_value_heads {self.num_key_value_heads}",
            self.num_attention_heads,
        )
        _require(self.head_dim % 2 == 0, "head_dim must be even, for rotary pairs", self.head_dim)

    def to_dict(self) -> dict:
        values = super().to_dict()
        del values["_class_name"]
        return values | {
            "architectures": [self.CLASS_NAME],
            "model_type": "gemma2",
            "hidden_activation": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
        }


_OF_MODELS = tuple(setting for setting in SETTINGS if setting.key)
_ModelDefaults = dataclasses.make_dataclass(
    "_ModelDefaults",
    [(setting.key, setting.key_type, setting.default) for setting in _OF_MODELS],
    frozen=True,
    kw_only=True,
)


@dataclasses.dataclass(frozen=True)
class SchedulerConfig(_ModelDefaults, _JSONConfig):
    """Decode constants that a model directory states in `scheduler/scheduler_config.json`.

    `timestep_convention` is ours: "released" passes the step index counting down, as released weights expect;
    "mask_rate" passes the share of hidden tokens, in training and in decoding alike (Q1). The released files lack the key.
    `negative_prompt` is what guidance leads away from, unless the caller says otherwise.
    `native_size` is the side in pixels of the squares that the model was trained on; where it is not stated, as in released
    files, the model's architecture tells (`loading`). The remaining keys, `default_NAME` of each setting NAME
    (`declarations.SETTINGS`), are the operating point at which a model was evaluated; the pipeline's defaults come from them.
    """

    mask_token_id: int
    masking_schedule: str = "cosine"
    timestep_convention: str = "released"
    native_size: int | None = None
    negative_prompt: str = RELEASED_NEGATIVE_PROMPT

    CLASS_NAME = "Scheduler"

    def __post_init__(self):
        _require(
            self.masking_schedule in ("cosine", "linear"),
            "masking_schedule must be 'cosine' or 'linear'",
            self.masking_schedule,
        )
        _require(
            self.timestep_convention in ("released", "mask_rate"),
            "timestep_convention must be 'released' or 'mask_rate'",
            self.timestep_convention,
        )
        for setting in _OF_MODELS:
            if setting.rule and getattr(self, setting.key) != setting.default:
                setting.rule(setting.key, getattr(self, setting.key))

    def to_dict(self) -> dict:
        """All keys; a setting that files need not state only where it is not the default."""
        values = super().to_dict()
        for setting in _OF_MODELS:
            if not setting.stated and values[setting.key] == setting.default:
                del values[setting.key]
        return values


@dataclasses.dataclass(frozen=True)
class LoRAConfig(_JSONConfig):
    """Low-rank adaptation of a transformer's linear modules (PEFT's keys). Defaults are the released trainer's.

    `target_modules` are ends of released module names. `scope` is ours: the tokens that the adapted weights see, 'all' or
    those of the 'reference'.
    """

    r: int = 16
    lora_alpha: float = 32.0
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v")
    scope: str = "all"

    @classmethod
    def _check_released(cls, values: dict) -> None:
        """Only plain LoRA: whatever else PEFT offers would change the result, and is refused."""
        missing = sorted({"r", "lora_alpha", "target_modules"} - values.keys())
        _require(not missing, "a LoRA's config must state r, lora_alpha and target_modules", f"none for {missing}")
        _require(values.get("peft_type", "LORA") == "LORA", "peft_type must be LORA", values.get("peft_type"))
        _require(values.get("bias") in (None, "none"), "bias of a LoRA must be 'none'", values.get("bias"))
        begun = values.get("init_lora_weights", True)
        _require(
            isinstance(begun, bool) or begun in (None, "gaussian"),
            "init_lora_weights must leave the base's weights as they are (true, false or 'gaussian')",
            begun,
        )
        refused = ("use_rslora", "use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "modules_to_save")
        refused += (
            "layers_to_transform",
            "exclude_modules",
            "fan_in_fan_out",
            "megatron_config",
            "trainable_token_indices",
        )
        for key in refused:
            _require(not values.get(key), f"{key} of a LoRA is not supported and must be absent", values.get(key))

    def __post_init__(self):
        _require(self.scope in ("all", "reference"), "scope must be 'all' or 'reference'", self.scope)

    def to_dict(self) -> dict:
        values = {"peft_type": "LORA"} | dataclasses.asdict(self) | {"bias": "none"}
        if self.scope == "all":
            del values["scope"]
        return values

    @property
    def scale(self) -> float:
        return self.lora_alpha / self.r
