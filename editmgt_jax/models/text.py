"""Prompts -> text states: the text encoders of a model with their parameters and their tokenizers, as one object.

A model has one encoder or several, in the order of the component table (`weights.components`). The first gives the pooled
vector; the last gives the states that the transformer attends to, and its tokens are those a query phrase is looked up among.

Axes    as in `editmgt_jax.config`
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from editmgt_jax import executables
from editmgt_jax.models.prompts import PromptTokenizer, PromptTokenizers
from editmgt_jax.models.traces import traces


@dataclasses.dataclass(frozen=True)
class TextRole:
    """How a model uses a text encoder: a column of the component table."""

    name: str  # in a transformer's `text_encoder_architecture`, which joins names with "_"
    ids: str  # the field of its ids in token records and batches
    tokenizer: str  # the folder of its tokenizer in a model directory
    digest: str  # the field of its tokenizer's hash in manifests
    length: Callable[[Any], int]  # config -> T, the length that prompts are padded to
    spare_ids: bool = False  # whether the encoder may have more ids than its tokenizer


class TextStates(NamedTuple):
    """What a transformer is told of texts. As fields of token records: 'text_states' and 'pooled'."""

    states: jax.Array  # [B T E]
    pooled: jax.Array  # [B P]

    @classmethod
    def stored(cls, fields: Mapping) -> "TextStates | None":
        """The states that a batch holds; None if it holds ids alone."""
        return cls(fields["text_states"], fields["pooled"]) if "text_states" in fields else None

    def fields(self) -> dict[str, jax.Array]:
        """As token records hold them: states in bfloat16, pooled vectors in float32."""
        return {"text_states": self.states.astype(jnp.bfloat16), "pooled": self.pooled.astype(jnp.float32)}


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedText:
    """A prompt's text states."""

    text: str
    states: jax.Array  # [T E]
    pooled: jax.Array  # [P]


def stack(texts: Sequence[EncodedText]) -> TextStates:
    """Prompts as a batch."""
    return executables.run(_stack, [TextStates(text.states, text.pooled) for text in texts])


class TextTower(NamedTuple):
    """A text encoder with its parameters and its tokenizer."""

    model: nn.Module  # ids [B T] -> (states [B T E], pooled [B P]) if it is the first of a model, else states
    params: Any
    tokenizer: PromptTokenizer


class TextEncoder:
    """The text encoders of a model.

    Args:
      towers: {field of its ids: encoder}, in the order of the component table.
    """

    def __init__(self, towers: Mapping[str, TextTower]):
        self.towers = dict(towers)
        self.tokenizers = PromptTokenizers({field: tower.tokenizer for field, tower in self.towers.items()})
        self.encode = functools.lru_cache(maxsize=64)(self._encode)

    @property
    def params(self) -> dict:
        """{field: parameters of the encoder}"""
        return {field: tower.params for field, tower in self.towers.items()}

    @functools.cached_property
    def empty_ids(self) -> dict[str, np.ndarray]:
        """{field: ids [1 T]} of the empty prompt."""
        return self.tokenizers([""])

    def apply(self, params: Mapping, ids: Mapping) -> TextStates:
        """{field: parameters}, {field: ids [B T]} -> states and pooled vectors. Pure."""
        return _apply(params, {field: ids[field] for field in self.towers}, self._models)

    def encode_ids(self, ids: Mapping) -> TextStates:
        """{field: ids [B T]} -> states and pooled vectors, in one program."""
        return executables.run(_encode, self.params, {field: ids[field] for field in self.towers}, models=self._models)

    def _encode(self, prompt: str) -> EncodedText:
        """A prompt's states; recent prompts are remembered. Errors: PromptError when the prompt is too long."""
        states = executables.run(_encode_one, self.params, self.tokenizers([prompt]), models=self._models)
        return EncodedText(prompt, *states)

    def weights(self, text: EncodedText, phrase: str) -> np.ndarray:
        """Weights [T] float32 that average over the tokens of `phrase` in a text. Errors: PromptError if it is not there."""
        return list(self.towers.values())[-1].tokenizer.span(text.text, phrase)

    def length(self, batch: Mapping) -> int:
        """T of the states that a batch holds, or that the ids in it will give."""
        stored = TextStates.stored(batch)
        return (batch[list(self.towers)[-1]] if stored is None else stored.states).shape[1]

    @property
    def _models(self) -> tuple:
        return tuple((field, tower.model) for field, tower in self.towers.items())


def _apply(params, ids, models) -> TextStates:
    said = [model.apply({"params": params[field]}, ids[field]) for field, model in models]
    states, pooled = said[0]
    return TextStates(states if len(said) == 1 else said[-1], pooled)


@functools.partial(jax.jit, static_argnames="models")
def _encode(params, ids, models) -> TextStates:
    traces["encode_text"] += 1
    return _apply(params, ids, models)


@functools.partial(jax.jit, static_argnames="models")
def _encode_one(params, ids, models) -> TextStates:
    """The states of a single prompt, without the axis B."""
    return jax.tree.map(lambda x: x[0], _encode(params, ids, models))


@jax.jit
def _stack(texts: list) -> TextStates:
    return jax.tree.map(lambda *parts: jnp.stack(parts), *texts)
