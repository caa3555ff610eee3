"""The instructions of a training batch -> what the transformer is conditioned on.

Axes    B batch, T text tokens; others as in `editmgt_jax.config`
Source  released trainer: both text encoders frozen; condition dropout as it was meant (Q12)
Differs a small CLIP may be trained along instead; each text is encoded once a step, and not at all where token records hold
        the states
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from editmgt_jax.config import CLIPTextConfig, MGTConfig
from editmgt_jax.models.clip_text import CLIPText
from editmgt_jax.models.prompts import PromptTokenizer
from editmgt_jax.models.text import TextEncoder, TextStates, TextTower
from editmgt_jax.training.config import MGTRun
from editmgt_jax.training.sharding import Put
from editmgt_jax.training.state import Params
from editmgt_jax.weights.components import component, text_components
from editmgt_jax.weights.loading import load_text


class TrainedText:
    """A small CLIP text encoder, trained along: its parameters are the transformer's companions in the train state."""

    def __init__(self, config: CLIPTextConfig, tokenizer_directory: str | Path):
        self.config, self._ids = config, component(config).text.ids
        tower = TextTower(CLIPText(config), None, PromptTokenizer(tokenizer_directory))
        self.encoder = TextEncoder({self._ids: tower})

    def init(self, key: jax.Array) -> Params:
        """Random parameters."""
        return component(self.config).init(self.encoder.towers[self._ids].model, key)

    def frozen(self, _put: Put, _encodes: set[str]) -> dict:
        """Nothing."""
        return {}

    def inputs(self, _frozen: dict, batch: dict, dropped: jax.Array) -> dict:
        """What `states` needs of a batch; samples that are `dropped` [B] get the empty prompt."""
        return _drop(dropped, self.encoder.empty_ids, batch)

    def states(self, params: Params, inputs: dict) -> TextStates:
        """Of the trained encoder with its `params`."""
        return self.encoder.apply({self._ids: params}, inputs)


class FrozenText:
    """The text encoders of a model directory, as they are.

    Args:
      directory: with the folders of text encoders and tokenizers; mgt: config of the transformer they serve.
      dtype: of their matrices.
    """

    def __init__(self, directory: str | Path, mgt: MGTConfig, dtype: DTypeLike):
        dtypes = {entry.folders[0]: jnp.dtype(dtype) for entry in text_components()}
        self._load = functools.partial(load_text, Path(directory), mgt, dtypes)
        self.encoder = self._load({"check_only": True})

    def frozen(self, put: Put, encodes: set[str]) -> dict:
        """The encoders' parameters if steps encode 'text', and what they say of the empty prompt if records hold states.

        Args:
          encodes: what steps encode, see `inputs.encoded_in_steps`.
        """
        frozen = {}
        if "text" in encodes:
            frozen["params"] = self._load({"put": lambda path, value: put(f"text/{path}", value)}).params
        if "empty text" in encodes:
            said = self._load({}).encode_ids(self.encoder.empty_ids)
            frozen["empty"] = TextStates(*(put("", one) for one in said))
        return frozen

    def inputs(self, frozen: dict, batch: dict, dropped: jax.Array) -> TextStates:
        """What `states` needs of a batch; samples that are `dropped` [B] get the empty prompt."""
        stored = TextStates.stored(batch)
        if stored is not None:
            return TextStates(**_drop(dropped, frozen["empty"]._asdict(), stored._asdict()))
        return self.encoder.apply(frozen["params"], _drop(dropped, self.encoder.empty_ids, batch))

    def states(self, _params: Params, inputs: TextStates) -> TextStates:
        """As they were given."""
        return inputs


def _drop(dropped, empty, batch) -> dict:
    """The arrays [B ...] of a batch that `empty` names, and where `dropped` [B] those of the empty prompt."""
    return {
        name: jnp.where(dropped.reshape(-1, *[1] * (batch[name].ndim - 1)), value, batch[name])
        for name, value in empty.items()
    }


def text_of(config: MGTRun, mgt: MGTConfig | None) -> TrainedText | FrozenText:
    """The text side of a run of task `mgt`: frozen encoders if `config.model.encoders` names a model directory."""
    if config.model.encoders:
        return FrozenText(config.model.encoders, mgt, config.model.encoder_dtype)
    special = PromptTokenizer(config.model.tokenizer).special_ids()
    return TrainedText(dataclasses.replace(config.model.text, **special), config.model.tokenizer)
