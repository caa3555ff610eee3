"""A model directory -> modules with their parameters, checked against each other.

Source  the released diffusers layout: `editmgt` or `transformer`, `vqvae`, `text_encoder`, `tokenizer`,
        `llm_encoder`, `scheduler`
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from editmgt_jax.config import CLIPTextConfig, Gemma2Config, MGTConfig, SchedulerConfig, VQConfig, dtype_name
from editmgt_jax.declarations import truth
from editmgt_jax.errors import UserError
from editmgt_jax.models.clip_text import CLIPText
from editmgt_jax.models.gemma2 import Gemma2
from editmgt_jax.models.mgt import MGT
from editmgt_jax.models.prompts import PromptTokenizer
from editmgt_jax.models.text import TextEncoder, TextTower
from editmgt_jax.models.vq import VQModel, ids_to_pixels
from editmgt_jax.weights import lora as adapters
from editmgt_jax.weights.components import COMPONENTS, MGT_FOLDERS, abstract_params, make_module, text_components
from editmgt_jax.weights.conversion import check_weights, load_params
from editmgt_jax.weights.files import check_variant
from editmgt_jax.weights.fingerprints import fingerprint
from editmgt_jax.weights.hub import HubOptions, check_options, fetch

DEFAULT_MODEL = Path(__file__).parents[1] / "assets" / "default"
NATIVE_UNITS = 32  # units a side of the square that a model was trained on, unless its files say otherwise


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel:
    """The parts of a model. Errors at construction: UserError when they do not fit each other."""

    mgt: MGT
    mgt_params: Any
    vq: VQModel
    vq_params: Any  # always float32
    text: TextEncoder
    scheduler: SchedulerConfig
    lora_params: Any = None  # of the LoRA that `mgt.lora` describes
    directory: Path | None = None  # that it was read from
    is_editor: bool = False  # whether its directory calls it one, and not a text-to-image model

    def __post_init__(self):
        mgt, vq, scheduler = self.mgt.config, self.vq.config, self.scheduler
        _match("the scheduler's mask_token_id", scheduler.mask_token_id, "the transformer's last id", mgt.mask_token_id)
        _match("the VQ's num_vq_embeddings", vq.num_vq_embeddings, "the transformer's codebook_size", mgt.codebook_size)
        if outside := [layer for layer in scheduler.default_layers or () if layer not in range(mgt.num_blocks)]:
            raise UserError(f"default_layers must be block numbers below {mgt.num_blocks}; the scheduler has {outside}")
        if scheduler.native_size is None:  # 1024 pixels for the released editor and Meissonic, 512 for Monetico
            object.__setattr__(self, "scheduler", dataclasses.replace(scheduler, native_size=NATIVE_UNITS * self.unit))
        elif scheduler.native_size < 1 or scheduler.native_size % self.unit:
            raise UserError(f"native_size must be a multiple of {self.unit} pixels; got {scheduler.native_size}")

    @property
    def mgt_variables(self) -> dict:
        """What the transformer is applied with."""
        return {"params": self.mgt_params} | ({} if self.lora_params is None else {"lora": self.lora_params})

    def fingerprint(self) -> str:
        """16 letters that tell the weights of transformer and image tokenizer from others."""
        return fingerprint((self.mgt_variables, self.vq_params))

    @property
    def unit(self) -> int:
        """Pixels that the sides of an edited picture are multiples of."""
        return self.vq.config.factor * self.mgt.config.stride


def load_model(
    directory: str | Path | None = None,
    dtype: DTypeLike | dict[str, DTypeLike] | None = None,
    strict: bool = False,
    check_only: bool = False,
    lora: str | Path | None = None,
    variant: str | None = None,
    **hub: Unpack[HubOptions],
) -> LoadedModel:
    """Reads a model directory, one tensor at a time and straight to its device.

    Args:
      directory: local folder, or a name such as WeiChow/EditMGT to fetch from the Hugging Face hub (only then is the
        network used); None is the default model of the package.
      dtype: of the matrices and their products, for the transformer and the text encoders, or a dict of them by folder;
        by default float32 on a CPU and bfloat16 elsewhere. The image tokenizer is always float32: less changes its ids.
      strict: whether weights that hold NaN are errors and not warnings.
      check_only: whether to read only the headers of the weight files; the parameters are then their shapes.
      lora: folder of a LoRA, as PEFT or `editmgt export` writes it, that adapts the transformer; it is not merged.
      variant: of weight files, such as 'fp16' of model.fp16.safetensors, where a component has it. By default the files without
        a variant, or the only variant.
      hub: how a model is fetched, see `HubOptions`.
    Errors: FileNotFoundError, WeightsError, UserError, naming the file.
    """
    truth("strict", strict)
    if not isinstance(lora, (str, os.PathLike, type(None))):
        raise UserError(f"a LoRA must be the path of a folder; got {lora!r}")
    dtypes, reading = _dtypes(dtype), {"strict": strict, "check_only": check_only, "variant": variant}
    directory, mgt_directory = find_model(directory, **hub)
    check_variant(directory, variant)
    mgt_config = MGTConfig.from_json(mgt_directory / "config.json")
    text = load_text(directory, mgt_config, dtypes, reading)
    mgt, mgt_params = load_mgt(mgt_directory, dtypes["editmgt"], **reading)
    lora_params = None
    if lora is not None:
        config, factors = adapters.read(lora, mgt.config, abstract_params(mgt), strict)
        mgt, lora_params = mgt.clone(lora=config), jax.device_put(factors)
        adapters.check_applicable(lora_params, mgt.lora)
    vq, vq_params = load_vq(directory / "vqvae", **reading)
    return LoadedModel(
        mgt=mgt,
        mgt_params=mgt_params,
        vq=vq,
        vq_params=vq_params,
        text=text,
        scheduler=SchedulerConfig.from_json(directory / "scheduler" / "scheduler_config.json"),
        lora_params=lora_params,
        directory=directory,
        is_editor=mgt_directory.name == MGT_FOLDERS[0],
    )


def _dtypes(dtype) -> dict:
    """The dtype of each component whose dtype can be chosen."""
    names = [entry.folders[0] for entry in COMPONENTS.values() if not entry.always_float32]
    default = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    chosen = dtype if isinstance(dtype, dict) else dict.fromkeys(names, dtype)
    for value in chosen.values():
        _check_dtype(value)
    chosen = {name: dtype_name(value) if isinstance(value, str) else value for name, value in chosen.items()}
    if unknown := sorted(chosen.keys() - set(names)):
        raise UserError(f"dtypes may be chosen for {', '.join(names)}; got {unknown}")
    return {name: jnp.dtype(chosen.get(name) or default) for name in names}


def _check_dtype(value) -> None:
    """Errors: UserError for what is no dtype that weights may have."""
    if value is None or isinstance(value, str):
        return
    try:
        name = jnp.dtype(value).name
    except TypeError:
        name = repr(value)
    dtype_name(name)


def find_model(directory: str | Path | None = None, **hub: Unpack[HubOptions]) -> tuple[Path, Path]:
    """-> (model directory, its folder with the transformer). Errors: FileNotFoundError saying what was looked for.

    hub: see `HubOptions`; they matter for a name on the hub alone.
    """
    check_options(**hub)
    if directory is None and not DEFAULT_MODEL.is_dir():
        raise FileNotFoundError(f"this installation has no default model at {DEFAULT_MODEL}: name a model directory")
    directory = DEFAULT_MODEL if directory is None else _local(directory, **hub)
    for name in MGT_FOLDERS:
        if (directory / name).is_dir():
            return directory, directory / name
    found = sorted(path.name for path in directory.iterdir())[:10]
    raise FileNotFoundError(f"a model directory has a folder {' or '.join(MGT_FOLDERS)}; {directory} has {found}")


def _local(directory, **hub) -> Path:
    """A folder that exists as it is; a name on the Hugging Face hub as the folder its files were fetched to."""
    if not isinstance(directory, (str, os.PathLike)) or not isinstance(os.fspath(directory), str):
        raise UserError(f"a model must be the path of a folder, or a name on the hub; got {directory!r}")
    return Path(directory) if os.path.isdir(directory) else fetch(str(directory), **hub)


def load_mgt(directory: str | Path, dtype: DTypeLike = jnp.float32, **reading: Any) -> tuple[MGT, Any]:
    """Reads a transformer's folder. -> (module, parameters)

    `reading` is strict, check_only and variant, as in `load_model`, and put: (path, host array) -> the array where it shall lie.
    """
    return _load(directory, MGTConfig, dtype, **reading)


def load_vq(directory: str | Path, **reading: Any) -> tuple[VQModel, Any]:
    """Reads an image tokenizer's folder. -> (module, parameters)"""
    return _load(directory, VQConfig, jnp.float32, **reading)


def painter(model: str | Path | None = None) -> Callable[[np.ndarray], jax.Array]:
    """A function of ids [B H W] that gives a model's pictures of them, float32 [B Y X 3] in [0, 1]."""
    vq, params = load_vq(find_model(model)[0] / "vqvae")
    return lambda ids: ids_to_pixels(params, jnp.asarray(ids, jnp.int32), vq)


def load_clip(directory: str | Path, dtype: DTypeLike = jnp.float32, **reading: Any) -> tuple[CLIPText, Any]:
    """Reads a CLIP text encoder's folder. -> (module, parameters)"""
    return _load(directory, CLIPTextConfig, dtype, **reading)


def load_gemma(directory: str | Path, dtype: DTypeLike = jnp.float32, **reading: Any) -> tuple[Gemma2, Any]:
    """Reads a Gemma 2 text encoder's folder. -> (module, parameters)"""
    return _load(directory, Gemma2Config, dtype, **reading)


def _load(directory, kind, dtype, strict=False, check_only=False, put=None, variant=None):
    config = kind.from_json(Path(directory) / "config.json")
    module = make_module(config, dtype)
    abstract = abstract_params(module)
    if check_only:
        check_weights(directory, config, abstract, variant)
        return module, abstract
    return module, load_params(directory, config, abstract, dtype, put or _to_device, strict, variant)


def _to_device(_path, value):
    return jax.device_put(value)


def load_text(
    directory: str | Path, mgt: MGTConfig, dtypes: dict[str, DTypeLike], reading: dict[str, Any]
) -> TextEncoder:
    """The text encoders that a transformer of config `mgt` needs, checked against it.

    Args:
      dtypes: {folder: dtype} of the encoders; reading: strict, check_only and put, as in `load_mgt`.
    """
    entries = text_components(mgt.text_encoder_architecture)
    towers = {
        entry.text.ids: _load_tower(Path(directory), entry, entry is entries[-1], dtypes, reading) for entry in entries
    }
    first, last = (towers[entry.text.ids].model.config for entry in (entries[0], entries[-1]))
    _match("the text hidden_size", last.hidden_size, "joint_attention_dim", mgt.joint_attention_dim)
    _match("the text projection_dim", first.projection_dim, "pooled_projection_dim", mgt.pooled_projection_dim)
    return TextEncoder(towers)


def _load_tower(directory, entry, is_last, dtypes, reading) -> TextTower:
    """A text encoder; a prompt that is too long is an error of the last one, and loses its end for the others."""
    (folder,) = entry.folders
    model, params = _load(directory / folder, entry.config, dtypes[folder], **reading)
    tokenizer = PromptTokenizer(directory / entry.text.tokenizer, entry.text.length(model.config), truncate=not is_last)
    size, most = tokenizer.special_ids()["vocab_size"], model.config.vocab_size
    if not entry.text.spare_ids:
        _match("the tokenizer's size", size, "the text vocab_size", most)
    elif size > most:
        raise UserError(
            f"the tokenizer in {directory / entry.text.tokenizer} may have at most {most} ids; it has {size}"
        )
    return TextTower(model, params, tokenizer)


def tokenizer_folders(directory: str | Path) -> dict[str, Path]:
    """{field of its hash in manifests: folder} of the text tokenizers that a model directory has."""
    folders = {entry.text.digest: Path(directory) / entry.text.tokenizer for entry in text_components()}
    return {digest: folder for digest, folder in folders.items() if folder.is_dir()}


def _match(name, value, other_name, other):
    if value != other:
        raise UserError(f"{name} must equal {other_name}, {other}; got {value}: the folders are of different models")
