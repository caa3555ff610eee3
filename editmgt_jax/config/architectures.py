"""Architectures with weights, and what their inputs have in common.

Source  the config.json of the released checkpoints (diffusers layout)
"""

import dataclasses

from editmgt_jax.config.json_config import JSONConfig, require

_DTYPE_NAMES = {"bf16": "bfloat16", "f32": "float32", "fp32": "float32", "f16": "float16", "fp16": "float16"}


def micro_conditions(width: float, height: float, top: float = 0.0, left: float = 0.0) -> tuple[float, ...]:
    """What a transformer is told of a picture: its size before cropping, the crop's offset, and one aesthetic score for all."""
    return width, height, top, left, 6.0


def dtype_name(text: str) -> str:
    """The full name of a dtype that weights may have: 'bf16' -> 'bfloat16'. Errors: UserError."""
    name = _DTYPE_NAMES.get(text, text)
    require(name in _DTYPE_NAMES.values(), "a dtype must be float32, bfloat16 (bf16) or float16", text)
    return name


@dataclasses.dataclass(frozen=True)
class MGTConfig(JSONConfig):
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
        require(
            self.connector_type in ("none", "linear"),
            "connector_type must be 'none' or 'linear' ('mlp', 'fmlp' and 'qformer' are not supported)",
            self.connector_type,
        )
        require(
            sum(self.axes_dims_rope) == self.attention_head_dim and all(d % 2 == 0 for d in self.axes_dims_rope),
            f"axes_dims_rope must be even and sum to attention_head_dim {self.attention_head_dim}",
            self.axes_dims_rope,
        )
        require(len(self.axes_dims_rope) == 3, "axes_dims_rope must hold three widths", self.axes_dims_rope)
        require(
            self.vocab_size > self.codebook_size,
            f"vocab_size must exceed codebook_size {self.codebook_size} (the last id is the mask)",
            self.vocab_size,
        )
        require(
            self.downsample == self.upsample,
            "downsample and upsample must be both true or both false",
            (self.downsample, self.upsample),
        )

    @classmethod
    def _check_released(cls, values: dict) -> None:
        require(not values.get("guidance_embeds"), "guidance_embeds must be false", values.get("guidance_embeds"))
        require(values.get("patch_size", 1) == 1, "patch_size must be 1", values.get("patch_size"))

    @property
    def released_problem(self) -> str | None:
        """Why the released PyTorch classes cannot hold the model; None where they can."""
        if self.connector_type == "linear":
            return None
        sizes = {"joint_attention_dim": self.joint_attention_dim, "pooled_projection_dim": self.pooled_projection_dim}
        wrong = [f"{name} is {size}" for name, size in sizes.items() if size != self.width]
        if not wrong:
            return None
        return f"without a connector they have text states and pooled text as wide as the model, {self.width}; {', '.join(wrong)}"

    @property
    def width(self) -> int:
        """D, of the transformer."""
        return self.attention_head_dim * self.num_attention_heads

    @property
    def num_blocks(self) -> int:
        """Transformer blocks of both kinds."""
        return self.num_layers + self.num_single_layers

    @property
    def mask_token_id(self) -> int:
        """The id of a hidden token, the last of the vocabulary."""
        return self.vocab_size - 1

    @property
    def stride(self) -> int:
        """VQ tokens per MGT token along one side."""
        return 2 if self.downsample else 1


@dataclasses.dataclass(frozen=True)
class VQConfig(JSONConfig):
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
        require(values.get("act_fn", "silu") == "silu", "act_fn of the VQ must be 'silu'", values.get("act_fn"))
        require(values.get("norm_type", "group") == "group", "norm_type must be 'group'", values.get("norm_type"))
        for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            require(set(values.get(key, [kind])) == {kind}, f"{key} must all be {kind}", values.get(key))

    def __post_init__(self):
        for name in ("in_channels", "out_channels"):
            require(getattr(self, name) == 3, f"{name} must be 3: pictures are RGB", getattr(self, name))
        require(self.block_out_channels, "block_out_channels must name at least one width", self.block_out_channels)
        bad = [c for c in self.block_out_channels if c < 1 or c % self.norm_num_groups]
        require(
            not bad,
            f"block_out_channels must be positive multiples of norm_num_groups {self.norm_num_groups}",
            bad or None,
        )

    def to_dict(self) -> dict:
        """As released, with the keys that have one value here."""
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
        """Numbers in a vector of the codebook."""
        return self.latent_channels if self.vq_embed_dim is None else self.vq_embed_dim

    @property
    def factor(self) -> int:
        """Pixels per token along one side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig(JSONConfig):
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
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size must be a multiple of num_attention_heads {self.num_attention_heads}",
            self.hidden_size,
        )
        require(self.hidden_act in ("gelu", "quick_gelu"), "hidden_act must be 'gelu' or 'quick_gelu'", self.hidden_act)

    def to_dict(self) -> dict:
        """As transformers writes it: the class under `architectures`."""
        values = super().to_dict()
        del values["_class_name"]
        return values | {"architectures": [self.CLASS_NAME], "model_type": "clip_text_model"}


@dataclasses.dataclass(frozen=True)
class Gemma2Config(JSONConfig):
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
        require(isinstance(rope, dict), "rope_parameters must be a JSON object", rope)
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
        require(not values.get("attention_bias"), "attention_bias must be false", values.get("attention_bias"))
        require(activation in (None, "gelu_pytorch_tanh"), "hidden_activation must be gelu_pytorch_tanh", activation)
        require(rope.get("rope_type", "default") == "default", "rope_type must be 'default'", rope.get("rope_type"))
        require(not values.get("rope_scaling"), "rope_scaling must be absent", values.get("rope_scaling"))
        bidirectional = values.get("use_bidirectional_attention")
        require(not bidirectional, "use_bidirectional_attention must be false", bidirectional)

    def __post_init__(self):
        kinds = ("sliding_attention", "full_attention")
        if not self.layer_types:
            object.__setattr__(self, "layer_types", tuple(kinds[i % 2] for i in range(self.num_hidden_layers)))
        require(
            len(self.layer_types) == self.num_hidden_layers and set(self.layer_types) <= set(kinds),
            f"layer_types must name one of {kinds} for each of the {self.num_hidden_layers} layers",
            self.layer_types,
        )
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_attention_heads must be a multiple of num_key_value_heads {self.num_key_value_heads}",
            self.num_attention_heads,
        )
        require(self.head_dim % 2 == 0, "head_dim must be even, for rotary pairs", self.head_dim)

    def to_dict(self) -> dict:
        """As transformers writes it: the class under `architectures`, and the keys that have one value here."""
        values = super().to_dict()
        del values["_class_name"]
        return values | {
            "architectures": [self.CLASS_NAME],
            "model_type": "gemma2",
            "hidden_activation": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
        }
