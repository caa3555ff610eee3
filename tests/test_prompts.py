"""Tokenizers: padding as their own files say, and the tokens of a phrase."""

import json

import numpy as np
import pytest

from editmgt_jax.models.clip_tokenizer import ClipTokenizer, is_readable
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


# Words, marks inside of text, letters that Unicode writes in two ways, more tokens than there is room for.
PROMPTS = [
    *(PROMPT, "", "don't we'll I'm a's 123 4.5!!", "  tabs\t\n and  spaces ", "Ünïcode ß ½ 日本 naïve", "e\u0301 é 😀"),
    *("<|endoftext|> x <|startoftext|>y", "a<|ENDOFTEXT|>b", "</w> a</w>b", "__x--y", "a" * 300),
]


@pytest.mark.parametrize("truncation", [False, True])
def test_our_reader_equals_transformers(tmp_path, side, truncation):
    from transformers import AutoTokenizer

    train_tokenizer([PROMPT] * 4, tmp_path / "t", merges=60, padding_side=side)
    ours, theirs = ClipTokenizer(tmp_path / "t"), AutoTokenizer.from_pretrained(tmp_path / "t")
    for prompt in PROMPTS:
        options = {"padding": "max_length", "max_length": 32, "truncation": truncation}
        found, expected = (one(prompt, **options, return_offsets_mapping=True) for one in (ours, theirs))
        assert found["input_ids"] == expected["input_ids"] and found["offset_mapping"] == expected["offset_mapping"]
        ids = expected["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert ours(PROMPTS, **options)["input_ids"] == theirs(PROMPTS, **options)["input_ids"]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "model_max_length"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert len(ours) == len(theirs) and set(ours.all_special_tokens) == set(theirs.all_special_tokens)


def test_other_files_are_left_to_transformers(tmp_path):
    """A config with a key, or a folder with a file, that `train_tokenizer` does not write."""
    train_tokenizer([PROMPT] * 4, tmp_path / "t", merges=4)
    assert is_readable(tmp_path / "t")
    config = json.loads((tmp_path / "t" / "tokenizer_config.json").read_text())
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps(config | {"clean_up_tokenization_spaces": True}))
    assert not is_readable(tmp_path / "t")
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "t" / "added_tokens.json").write_text("{}")
    assert not is_readable(tmp_path / "t")


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


def test_memory_that_does_not_suffice_is_no_damaged_tokenizer(tokenizer, tmp_path, monkeypatch):
    def read(_):
        raise ImportError("tokenizers.so: failed to map segment from shared object")

    monkeypatch.setattr("editmgt_jax.models.prompts._read", read)
    with pytest.raises(ImportError):
        PromptTokenizer(tmp_path / "tokenizer")
