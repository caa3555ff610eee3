"""Strings -> padded token ids and token spans.

Source  the released pipelines pad to the encoder's full length with the tokenizer's own pad token and side
Differs an instruction that does not fit is an error, not a silent truncation; a query phrase is looked up among the
        tokens of the encoder whose states the model attends to (Q9)
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from editmgt_jax.errors import UserError, is_of_memory
from editmgt_jax.files import new_folder
from editmgt_jax.models import clip_tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


_PROBES = (
    "",
    "make the sky red",
    "Remove the TREE, add 2 small birds!",
    "  tabs\tand\nlines ",
    "Ünïcode 🐤 日本 x2",
    "don't",
)


_PROBED = 64  # tokens that probes are padded to: the side shows


class PromptError(UserError):
    """An instruction or query phrase that cannot be used."""


class PromptTokenizer:
    """A tokenizer directory of a model (slow or fast, any that transformers reads), padded to a fixed length.

    Args:
      directory: folder with tokenizer files.
      length: T, the padded length; by default the tokenizer's own model_max_length.
      truncate: whether a prompt that is too long loses its end; by default it is an error.
    """

    def __init__(self, directory: str | Path, length: int | None = None, truncate: bool = False):
        directory = Path(directory)
        if not directory.is_dir():
            raise FileNotFoundError(f"a model directory needs its tokenizer; no folder {directory}")
        try:
            self._tokenizer = _read(directory)
        except Exception as error:  # noqa: BLE001  (the libraries raise bare ones for damaged files)
            if is_of_memory(error):
                raise
            raise PromptError(f"{directory} must hold a tokenizer that transformers can read: {error}") from error
        self.length, self.truncate = length or self._tokenizer.model_max_length, truncate
        if self._tokenizer.pad_token_id is None:
            raise PromptError(f"{directory} must hold a tokenizer with a pad token; it names none")

    def __call__(self, prompts: list[str]) -> np.ndarray:
        """[B] strings -> ids [B T] int32, padded. Errors: PromptError naming the limit when one does not fit."""
        for prompt in prompts:
            check_text(prompt)
        encoded = self._tokenizer(
            list(prompts), padding="max_length", max_length=self.length, truncation=self.truncate
        )["input_ids"]
        for prompt, ids in zip(prompts, encoded, strict=True):
            if len(ids) > self.length:
                shown = prompt if len(prompt) <= 60 else prompt[:57] + "..."
                raise PromptError(
                    f"an instruction may have at most {self.length} tokens, its start and end marks included; "
                    f"{shown!r} has {len(ids)}: shorten it"
                )
        return np.array(encoded, np.int32)

    def identity(self) -> str:
        """A hash of what this tokenizer computes, whatever files it was read from: its vocabulary, its marks, and the ids of texts."""
        vocabulary = self._tokenizer.convert_ids_to_tokens(list(range(len(self._tokenizer))))
        texts = [*_PROBES, *filter(None, vocabulary[:: max(1, len(vocabulary) // 2000)])]
        ids = self._tokenizer(texts, padding="max_length", max_length=_PROBED)["input_ids"]
        facts = [vocabulary, self.special_ids(), ids]
        return hashlib.sha256(json.dumps(facts).encode(errors="surrogatepass")).hexdigest()

    def special_ids(self) -> dict[str, int]:
        """What a text encoder's config must say of this tokenizer."""
        tokenizer = self._tokenizer
        return {
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }

    def span(self, prompt: str, phrase: str) -> np.ndarray:
        """Weights [T] float32 that average over the tokens of `phrase` inside `prompt`.

        The first occurrence as whole words counts, letter case aside. Errors: PromptError naming the phrase and the tokens.
        """
        check_text(phrase, "a query")
        words = rf"(?<!\w){re.escape(phrase.strip())}(?!\w)"
        found = re.search(words, prompt, re.IGNORECASE) if phrase.strip() else None
        ids = self([prompt])[0]
        if found is None:
            tokens = self._tokenizer.convert_ids_to_tokens(ids.tolist())
            shown = [t.removesuffix("</w>") for t in tokens if t not in self._tokenizer.all_special_tokens]
            raise PromptError(f"the query phrase must occur in the instruction; {phrase!r} is not among {shown}")
        inside = self._inside(prompt, ids, *found.span()).astype(np.float32)
        return inside / inside.sum()

    def _inside(self, prompt, ids, start, end):
        """bool [T]: the padded tokens that lie in prompt[start:end]."""
        if self._tokenizer.is_fast:
            encoded = self._tokenizer(prompt, padding="max_length", max_length=self.length, return_offsets_mapping=True)
            return np.array([a < end and b > start and b > a for a, b in encoded["offset_mapping"]])
        # A slow tokenizer gives no offsets; but no token crosses the bounds of whole words.
        before, within, whole = (
            self._tokenizer.encode(part, add_special_tokens=False)
            for part in (prompt[:start].rstrip(), prompt[:end], prompt)
        )
        runs = np.lib.stride_tricks.sliding_window_view(ids, len(whole))
        offset = np.flatnonzero((runs == whole).all(axis=1))[0]
        positions = np.arange(len(ids)) - offset
        return (positions >= len(before)) & (positions < len(within))


def _read(directory: Path):
    """The tokenizer of a folder: our own files without transformers, whose import is slow, with or without PyTorch beside."""
    if clip_tokenizer.is_readable(directory):
        return clip_tokenizer.ClipTokenizer(directory)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is not there
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


class PromptTokenizers:
    """The tokenizers of a model's text encoders, by the names of the ids they make. Can be sent to another process."""

    def __init__(self, tokenizers: dict[str, PromptTokenizer]):
        self.tokenizers = tokenizers

    def __call__(self, prompts: list[str]) -> dict[str, np.ndarray]:
        """[B] strings -> {name: ids [B T] int32}. Errors: PromptError."""
        return {name: tokenizer(prompts) for name, tokenizer in self.tokenizers.items()}


def check_text(text: Any, what: str = "an instruction or a prompt") -> None:
    """Errors: PromptError for what is no string, and for half of a pair of surrogates: bytes that were no UTF-8."""
    if not isinstance(text, str):
        raise PromptError(f"{what} must be a string; got {repr(text)[:80]}")
    if broken := [letter for letter in text if "\ud800" <= letter <= "\udfff"]:
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise PromptError(f"{what} must be text that UTF-8 can encode; {shown!r} has {broken[0]!r}")


def _byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes that byte-level BPE uses, in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def train_tokenizer(
    corpus: Iterable[str],
    directory: str | Path,
    merges: int = 1000,
    length: int = 24,
    size: int | None = None,
    padding_side: str = "right",
) -> int:
    """Learns a byte-pair encoding in CLIP's format from instructions and writes it to `directory`, a new folder.

    Args:
      corpus: instructions; merges: how many pairs to merge at most; length: model_max_length, T.
      size: ids that the tokenizer shall have, with ids that no text uses; None is as many as it needs.
    Returns: its size.
    Errors: FileExistsError.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(False)]
    )
    words = Counter(corpus)
    alphabet = _byte_symbols()
    learner.train_from_iterator(
        words.elements(),
        trainers.BpeTrainer(
            vocab_size=4 * len(alphabet) + merges,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            min_frequency=2,
            show_progress=False,
        ),
    )
    learnt = json.loads(learner.to_str())["model"]["merges"][:merges]
    pairs = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learnt]
    vocabulary = [*alphabet, *(symbol + "</w>" for symbol in alphabet), *("".join(pair) for pair in pairs), START, END]
    unused = [] if size is None else [f"<|unused{i}|>" for i in range(size - len(set(vocabulary)))]
    ids = {token: i for i, token in enumerate(dict.fromkeys([*vocabulary[:-2], *unused, *vocabulary[-2:]]))}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "padding_side": padding_side,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
    }
    with new_folder(directory) as folder:
        (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False) + "\n")
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs))
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return len(ids)
