"""A model directory -> modules with their parameters, checked against each other.

Source  the released diffusers layout: `editmgt` or `transformer`, `vqvae`, `text_encoder`, `tokenizer`, `scheduler`
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from editmgt_jax import editing
from editmgt_jax.config import CLIPTextConfig, MGTConfig, SchedulerConfig, VQConfig
from editmgt_jax.convert import load_params
from editmgt_jax.models.clip_text import CLIPText
from editmgt_jax.models.mgt import MGT, init_mgt
from editmgt_jax.models.vq import VQModel
from editmgt_jax.prompts import PromptTokenizer

DEFAULT_MODEL = Path(__file__).parent / "assets" / "default"
MGT_FOLDERS = ("editmgt", "transformer")


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedText:
    """A prompt's text states."""

    text: str
    states: jax.Array  # [T E]
    pooled: jax.Array  # [P]


class TextEncoder:
    """The tokenizer and the CLIP text tower of a model, one prompt at a time; recent prompts are remembered."""

    def __init__(self, model: CLIPText, params, tokenizer: PromptTokenizer):
        self.model, self.params, self.tokenizer = model, jax.device_put(params), tokenizer
        self.encode = functools.lru_cache(maxsize=64)(self._encode)

    def _encode(self, prompt: str) -> EncodedText:
        """Errors: PromptError when the prompt is too long."""
        states, pooled = editing.encode_text(self.params, self.tokenizer([prompt]), self.model)
        return EncodedText(prompt, states[0], pooled[0])


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel:
    """The parts of a model. Errors at construction: ValueError when they do not fit each other."""

    mgt: MGT
    mgt_params: Any
    vq: VQModel
    vq_params: Any  # always float32
    text: TextEncoder
    scheduler: SchedulerConfig

    def __post_init__(self):
        mgt, vq, scheduler = self.mgt.config, self.vq.config, self.scheduler
        _match("the scheduler's mask_token_id", scheduler.mask_token_id, "the transformer's last id", mgt.mask_token_id)
        _match("the VQ's num_vq_embeddings", vq.num_vq_embeddings, "the transformer's codebook_size", mgt.codebook_size)
        if scheduler.native_size % self.unit:
            raise ValueError(f"native_size must be a multiple of {self.unit} pixels; got {scheduler.native_size}")

    @property
    def unit(self) -> int:
        """Pixels that the sides of an edited picture are multiples of."""
        return self.vq.config.factor * self.mgt.config.stride


def load_model(directory=None, dtype=None) -> LoadedModel:
    """Reads a model directory; None is the default model of the package.

    Args:
      dtype: compute dtype of the transformer; by default float32 on a CPU and bfloat16 elsewhere.
    Errors: FileNotFoundError, WeightsError, ValueError, naming the file.
    """
    if dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    directory, mgt_directory = find_model(directory)
    mgt, mgt_params = load_mgt(mgt_directory, dtype)
    vq, vq_params = load_vq(directory / "vqvae")
    return LoadedModel(
        mgt=mgt,
        mgt_params=mgt_params,
        vq=vq,
        vq_params=vq_params,
        text=_load_text(directory, mgt.config, dtype),
        scheduler=SchedulerConfig.from_json(directory / "scheduler" / "scheduler_config.json"),
    )


def find_model(directory=None) -> tuple[Path, Path]:
    """-> (model directory, its folder with the transformer). Errors: FileNotFoundError saying what was looked for."""
    if directory is None and not DEFAULT_MODEL.is_dir():
        raise FileNotFoundError(f"this installation has no default model at {DEFAULT_MODEL}: name a model directory")
    directory = DEFAULT_MODEL if directory is None else Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"a model must be a local directory; there is no folder {directory}")
    for name in MGT_FOLDERS:
        if (directory / name).is_dir():
            return directory, directory / name
    found = sorted(path.name for path in directory.iterdir())[:10]
    raise FileNotFoundError(f"a model directory has a folder {' or '.join(MGT_FOLDERS)}; {directory} has {found}")


def load_mgt(directory, dtype=jnp.float32) -> tuple[MGT, Any]:
    """Reads a transformer's folder. -> (module, parameters)"""
    mgt = MGT(MGTConfig.from_json(Path(directory) / "config.json"), dtype)
    return mgt, _load(directory, mgt.config, lambda key: init_mgt(mgt, key))


def load_vq(directory) -> tuple[VQModel, Any]:
    """Reads an image tokenizer's folder. -> (module, parameters)"""
    vq = VQModel(VQConfig.from_json(Path(directory) / "config.json"))
    pixels = jnp.zeros((1, 4 * vq.config.factor, 4 * vq.config.factor, 3))
    return vq, _load(directory, vq.config, lambda key: vq.init(key, pixels)["params"])


def load_clip(directory, dtype=jnp.float32) -> tuple[CLIPText, Any]:
    """Reads a text encoder's folder. -> (module, parameters)"""
    clip = CLIPText(CLIPTextConfig.from_json(Path(directory) / "config.json"), dtype)
    ids = jnp.zeros((1, clip.config.max_position_embeddings), jnp.int32)
    return clip, _load(directory, clip.config, lambda key: clip.init(key, ids)["params"])


def _load(directory, config, init):
    return load_params(directory, config, jax.eval_shape(init, jax.random.key(0)))


def _load_text(directory, mgt, dtype) -> TextEncoder:
    if mgt.text_encoder_architecture != "CLIP":
        raise ValueError(
            "this version runs models whose text_encoder_architecture is 'CLIP'; "
            f"{directory} needs {mgt.text_encoder_architecture!r}"
        )
    model, params = load_clip(directory / "text_encoder", dtype)
    config = model.config
    _match("the text hidden_size", config.hidden_size, "joint_attention_dim", mgt.joint_attention_dim)
    _match("the text projection_dim", config.projection_dim, "pooled_projection_dim", mgt.pooled_projection_dim)
    tokenizer = PromptTokenizer(directory / "tokenizer", config.max_position_embeddings)
    _match("the tokenizer's size", tokenizer.special_ids()["vocab_size"], "the text vocab_size", config.vocab_size)
    return TextEncoder(model, params, tokenizer)


def _match(name, value, other_name, other):
    if value != other:
        raise ValueError(f"{name} must equal {other_name}, {other}; got {value}: the folders are of different models")
