"""Tokenizers: padding as their own files say, and the tokens of a phrase."""

import json

import numpy as np
import pytest

from editmgt_jax.models.prompts import PromptError, PromptTokenizer, train_tokenizer

PROMPT, PHRASE = "make the red cube blue", "Red cube"


@pytest.fixture(params=["left", "right"])
def side(request):
    return request.param


@pytest.fixture(params=["fast", "slow"])
def tokenizer(request, side, tmp_path):
    """A byte-pair encoding that is fast, and a byte-level one that exists in Python only."""
    directory = tmp_path / "tokenizer"
    if request.param == "fast":
        train_tokenizer([PROMPT] * 4, directory, merges=60, padding_side=side)
    else:
        directory.mkdir()
        names = {"tokenizer_class": "ByT5Tokenizer", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        (directory / "tokenizer_config.json").write_text(json.dumps(names | {"padding_side": side}))
    tokenizer = PromptTokenizer(directory, 32)
    assert tokenizer._tokenizer.is_fast == (request.param == "fast")
    return tokenizer


def test_padding_is_the_tokenizer_s_own(tokenizer, side):
    ids = tokenizer([PROMPT, "make it blue"])
    assert ids.shape == (2, 32) and ids.dtype == np.int32
    pads = ids == tokenizer.special_ids()["pad_token_id"]
    first, last = (pads[:, 0], pads[:, -2]) if side == "left" else (pads[:, -1], pads[:, 0])
    assert first.all() and not last.any()


def test_a_span_is_the_tokens_of_the_phrase(tokenizer):
    weights = tokenizer.span(PROMPT, PHRASE)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
    text = tokenizer._tokenizer.decode(tokenizer([PROMPT])[0][weights > 0])
    assert text.strip() == PHRASE.lower()


def test_a_span_s_offset_does_not_count_special_tokens_inside_the_prompt(tokenizer):
    """What the vocabulary spells as an unknown or special token is still a part of the prompt."""
    prompt = "</s> make the red cube blue"
    weights = tokenizer.span(prompt, PHRASE)
    assert tokenizer._tokenizer.decode(tokenizer([prompt])[0][weights > 0]).strip() == PHRASE.lower()


def test_a_tokenizer_without_pad_token(tmp_path):
    names = {"tokenizer_class": "CLIPTokenizer", "pad_token": None}
    train_tokenizer([PROMPT] * 4, tmp_path / "t", merges=4)
    config = json.loads((tmp_path / "t" / "tokenizer_config.json").read_text()) | names
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(PromptError, match="pad token"):
        PromptTokenizer(tmp_path / "t", 32)
