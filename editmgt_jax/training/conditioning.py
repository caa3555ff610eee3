"""The instructions of a training batch -> what the transformer is conditioned on.

Axes    B batch, T text tokens; others as in `editmgt_jax.config`
Source  released trainer: both text encoders frozen; condition dropout as it was meant (Q12)
Differs a small CLIP may be trained along instead; each text is encoded once a step, and not at all where token records hold
        the states
"""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from editmgt_jax.config import CLIPTextConfig
from editmgt_jax.models.clip_text import CLIPText
from editmgt_jax.models.prompts import PromptTokenizer, PromptTokenizers
from editmgt_jax.weights.loading import load_text


class TrainedText:
    """A small CLIP text encoder, trained along: its parameters are the transformer's companions in the train state."""

    def __init__(self, config: CLIPTextConfig, tokenizer_directory):
        self.config, self.model = config, CLIPText(config)
        self.tokenizer = PromptTokenizers({"text_ids": PromptTokenizer(tokenizer_directory)})

    def init(self, key):
        return self.model.init(key, jnp.zeros((1, self.config.max_position_embeddings), jnp.int32))["params"]

    def frozen(self, _put, _encodes) -> dict:
        return {}

    def inputs(self, _frozen, batch, dropped) -> dict:
        """What `states` needs of a batch; samples that are `dropped` [B] get the empty prompt."""
        return {"text_ids": jnp.where(dropped[:, None], self.empty_ids(), batch["text_ids"])}

    def states(self, params, inputs):
        """-> states [B T E], pooled [B P]"""
        return self.model.apply({"params": params}, inputs["text_ids"])

    def words(self, batch):
        """Weights [B T] of the tokens of an instruction's words, for its relevance."""
        return _words(batch["text_ids"], self.tokenizer.tokenizers["text_ids"])

    def empty_ids(self):
        """[1 T]: start mark, end mark, padding."""
        ids = np.full((1, self.config.max_position_embeddings), self.config.pad_token_id, np.int32)
        ids[0, :2] = self.config.bos_token_id, self.config.eos_token_id
        return ids


class FrozenText:
    """The text encoders of a model directory, as they are.

    Args:
      directory: with `text_encoder`, `tokenizer` and perhaps `llm_encoder`; mgt: config of the transformer they serve.
      dtype: of their matrices.
    """

    def __init__(self, directory, mgt, dtype):
        self._directory, self._mgt, self._dtype = Path(directory), mgt, jnp.dtype(dtype)
        towers = self._load(check_only=True)
        self._models = {name: tower.model for name, tower in towers.items()}
        self.tokenizer = PromptTokenizers({name: tower.tokenizer for name, tower in towers.items()})
        self._empty_ids = self.tokenizer([""])

    def _load(self, **reading) -> dict:
        text = load_text(self._directory, self._mgt, {"text_encoder": self._dtype, "llm_encoder": self._dtype}, reading)
        return {"text_ids": text.clip} | ({} if text.llm is None else {"llm_ids": text.llm})

    def frozen(self, put, encodes) -> dict:
        """The encoders' parameters if steps encode 'text', and what they say of the empty prompt if records hold states.

        Args:
          put: (name, host array) -> array of the mesh.
        """
        frozen = {}
        if "text" in encodes:
            towers = self._load(place=lambda path, value: put(f"text/{path}", value))
            frozen |= {name: tower.params for name, tower in towers.items()}
        if "empty text" in encodes:
            towers = self._load()
            states, pooled = towers["text_ids"].encode(self._empty_ids["text_ids"])
            if "llm_ids" in towers:
                states = towers["llm_ids"].encode(self._empty_ids["llm_ids"])
            frozen |= {"empty_states": put("", states), "empty_pooled": put("", pooled)}
        return frozen

    def inputs(self, frozen, batch, dropped) -> dict:
        """What `states` needs of a batch; samples that are `dropped` [B] get the empty prompt."""
        if "text_states" in batch:
            states = jnp.where(dropped[:, None, None], frozen["empty_states"], batch["text_states"])
            return {"states": states, "pooled": jnp.where(dropped[:, None], frozen["empty_pooled"], batch["pooled"])}
        ids = {name: jnp.where(dropped[:, None], empty, batch[name]) for name, empty in self._empty_ids.items()}
        said = {name: model.apply({"params": frozen[name]}, ids[name]) for name, model in self._models.items()}
        states, pooled = said["text_ids"]
        return {"states": said.get("llm_ids", states), "pooled": pooled}

    def states(self, _params, inputs):
        """-> states [B T E], pooled [B P]"""
        return inputs["states"], inputs["pooled"]

    def words(self, batch):
        """Weights [B T] of the tokens of an instruction's words, for its relevance."""
        name = list(self._models)[-1]  # of the encoder whose states the transformer attends to
        return _words(batch[name], self.tokenizer.tokenizers[name])


def _words(ids, tokenizer):
    special = [value for name, value in tokenizer.special_ids().items() if name.endswith("_token_id")]
    weights = (~jnp.isin(ids, jnp.array(special))).astype(jnp.float32)
    return weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1.0)


def text_of(config, mgt):
    """The text side of a run of task `mgt`: frozen encoders if `config.model.encoders` names a model directory."""
    if config.model.encoders:
        return FrozenText(config.model.encoders, mgt, config.model.encoder_dtype)
    special = PromptTokenizer(config.model.tokenizer).special_ids()
    return TrainedText(dataclasses.replace(config.model.text, **special), config.model.tokenizer)
