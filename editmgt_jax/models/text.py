"""Prompts -> text states: the text encoders of a model with their parameters and their tokenizers.

Axes    as in `editmgt_jax.config`
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax

from editmgt_jax.models.clip_text import CLIPText
from editmgt_jax.models.gemma2 import Gemma2
from editmgt_jax.models.prompts import PromptTokenizer
from editmgt_jax.models.traces import traces


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedText:
    """A prompt's text states."""

    text: str
    states: jax.Array  # [T E]
    pooled: jax.Array  # [P]


class TextTower(NamedTuple):
    """A text encoder with its parameters and its tokenizer."""

    model: CLIPText | Gemma2
    params: Any
    tokenizer: PromptTokenizer

    def __call__(self, prompt: str):
        """What the encoder says of a prompt, with a batch axis of 1."""
        return self.encode(self.tokenizer([prompt]))

    def encode(self, ids):
        """What the encoder says of padded ids [B T]."""
        return encode_text(self.params, ids, self.model)


class TextEncoder:
    """The text towers of a model, one prompt at a time; recent prompts are remembered.

    Args:
      clip: gives the pooled vector, and the token states if it is alone.
      llm: gives the token states.
    """

    def __init__(self, clip: TextTower, llm: TextTower | None = None):
        self.clip, self.llm = clip, llm
        self.encode = functools.lru_cache(maxsize=64)(self._encode)

    @property
    def tokenizer(self) -> PromptTokenizer:
        """Of the encoder whose states the transformer attends to."""
        return (self.llm or self.clip).tokenizer

    def _encode(self, prompt: str) -> EncodedText:
        """Errors: PromptError when the prompt is too long."""
        states = None if self.llm is None else self.llm(prompt)
        clip_states, pooled = self.clip(prompt)
        return EncodedText(prompt, (clip_states if states is None else states)[0], pooled[0])


@functools.partial(jax.jit, static_argnames="model")
def encode_text(params, ids, model: CLIPText | Gemma2):
    """ids [B T] -> what the encoder says of them: (states [B T E], pooled [B P]) of CLIP, states of Gemma 2"""
    traces["encode_text"] += 1
    return model.apply({"params": params}, ids)
