"""The component table: one entry for each architecture whose weights a model directory holds.

What differs between architectures is a column here; loading, conversion and model directories read the table.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from editmgt_jax import executables
from editmgt_jax.config import CLIPTextConfig, Gemma2Config, MGTConfig, VQConfig
from editmgt_jax.errors import UserError
from editmgt_jax.models.clip_text import CLIPText
from editmgt_jax.models.gemma2 import Gemma2
from editmgt_jax.models.mgt import MGT, init_mgt
from editmgt_jax.models.text import TextRole
from editmgt_jax.models.vq import VQModel
from editmgt_jax.weights import rules
from editmgt_jax.weights.rules import ComponentConfig, Rule

DIFFUSERS_NAME = "diffusion_pytorch_model.safetensors"
TRANSFORMERS_NAME = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Component:
    """An architecture."""

    config: type  # its frozen dataclass, with `from_json`
    module: Callable[[Any, Any], nn.Module]  # (config, dtype) -> module
    init: Callable[[Any, jax.Array], Any]  # (module, key) -> parameters, from a dummy input
    rules: list[Rule]  # our modules <-> those of released files
    file_name: str  # of its weights: the one that the library which reads them looks for
    folders: tuple[str, ...]  # of a model directory that may hold it; the first is where it is written
    unused: Callable[[Any], dict] = lambda _: {}  # config -> {key: (shape, whether every file has it)}, see `rules`
    always_float32: bool = False  # whether no other dtype may be chosen for it
    text: TextRole | None = None  # of a text encoder


def _init_vq(vq: VQModel, key):
    side = 4 * vq.config.factor
    return vq.init(key, jnp.zeros((1, side, side, 3)))["params"]


def _init_text(model: nn.Module, key):
    return model.init(key, jnp.zeros((1, 2), jnp.int32))["params"]


COMPONENTS = {
    entry.config: entry
    for entry in (
        Component(
            config=MGTConfig,
            module=MGT,
            init=init_mgt,
            rules=rules.MGT_RULES,
            file_name=DIFFUSERS_NAME,
            folders=("editmgt", "transformer"),
        ),
        Component(
            config=VQConfig,
            module=lambda config, _: VQModel(config),
            init=_init_vq,
            rules=rules.VQ_RULES,
            file_name=DIFFUSERS_NAME,
            folders=("vqvae",),
            always_float32=True,  # lower precision changes its ids
        ),
        Component(
            config=CLIPTextConfig,
            module=CLIPText,
            init=_init_text,
            rules=rules.CLIP_RULES,
            file_name=TRANSFORMERS_NAME,
            folders=("text_encoder",),
            unused=rules.unused_of_clip,
            text=TextRole(
                name="CLIP",
                ids="text_ids",
                tokenizer="tokenizer",
                digest="text_tokenizer",
                length=lambda config: config.max_position_embeddings,
            ),
        ),
        Component(
            config=Gemma2Config,
            module=Gemma2,
            init=_init_text,
            rules=rules.GEMMA_RULES,
            file_name=TRANSFORMERS_NAME,
            folders=("llm_encoder",),
            unused=rules.unused_of_gemma,
            text=TextRole(
                name="Gemma2",
                ids="llm_ids",
                tokenizer="llm_encoder",
                digest="llm_tokenizer",
                length=lambda _: 256,  # as the released editor pads an instruction
                spare_ids=True,
            ),
        ),
    )
}
MGT_FOLDERS = COMPONENTS[MGTConfig].folders


def component(config: ComponentConfig) -> Component:
    """The entry of a config."""
    return COMPONENTS[type(config)]


def make_module(config: ComponentConfig, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module of an architecture."""
    return component(config).module(config, dtype)


def abstract_params(model: nn.Module) -> dict:
    """The shapes of a module's parameters. Nothing is computed."""
    init = component(model.config).init
    return executables.shapes(model, lambda: jax.eval_shape(lambda: init(model, jax.random.key(0))))


def folder_configs() -> dict[str, type]:
    """{folder of a model directory: the config class of what it holds}, in the table's order."""
    return {folder: entry.config for entry in COMPONENTS.values() for folder in entry.folders}


def text_components(architecture: str | None = None) -> list[Component]:
    """The entries of text encoders: of those that a `text_encoder_architecture` names, or of all. Errors: UserError."""
    entries = [entry for entry in COMPONENTS.values() if entry.text]
    if architecture is None:
        return entries
    chosen = [entry for entry in entries if entry.text.name in architecture.split("_")]
    if "_".join(entry.text.name for entry in chosen) != architecture or not chosen:
        names = [entry.text.name for entry in entries]
        raise UserError(
            f"text_encoder_architecture must be the first of {names}, alone or with others after it, joined by '_'; "
            f"got {architecture!r}"
        )
    return chosen


def companion_folders() -> list[str]:
    """The folders of a model directory besides the transformer's."""
    folders = [folder for entry in COMPONENTS.values() if entry.config is not MGTConfig for folder in entry.folders]
    return list(dict.fromkeys([*folders, *(entry.text.tokenizer for entry in text_components()), "scheduler"]))
