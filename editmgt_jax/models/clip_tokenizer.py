"""CLIP's tokenizer as `prompts.train_tokenizer` writes it, without transformers, whose import takes longer than an edit's text.

Source  the tokenizer of CLIP: a byte-level BPE of lower case words, between a start and an end mark
"""

import json
from pathlib import Path

import numpy as np

from editmgt_jax.files import parse_json

SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_FILES = {"vocab.json", "merges.txt", "tokenizer_config.json"}
_KEYS = {"tokenizer_class", "model_max_length", "padding_side", *SPECIAL}
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokenizer:
    """The part of transformers' interface that `prompts.PromptTokenizer` uses.

    Args:
      directory: a folder that `is_readable`.
    """

    is_fast = True

    def __init__(self, directory: Path):
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

        config = json.loads((directory / "tokenizer_config.json").read_text())
        vocabulary, merges = str(directory / "vocab.json"), str(directory / "merges.txt")
        self.model_max_length, self._side = config["model_max_length"], config["padding_side"]
        start, end, self._pad, unknown = (config[name] for name in SPECIAL)
        model = models.BPE.from_file(vocabulary, merges, unk_token=unknown, end_of_word_suffix="</w>")
        self._tokenizer = tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        marks = r"<\|startoftext\|>|<\|endoftext\|>|"
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(marks + _WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        self.all_special_tokens = list(dict.fromkeys((start, end, self._pad, unknown)))
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in self.all_special_tokens])
        self.bos_token_id, self.eos_token_id, self.pad_token_id = map(tokenizer.token_to_id, (start, end, self._pad))
        marks = (end, self.eos_token_id), (start, self.bos_token_id)
        tokenizer.post_processor = processors.RobertaProcessing(*marks, trim_offsets=False, add_prefix_space=False)

    def __len__(self):
        return self._tokenizer.get_vocab_size()

    def __call__(self, text, padding, max_length, truncation=False, return_offsets_mapping=False) -> dict:
        """A string or a list of them -> {"input_ids", "offset_mapping"}, padded; `padding` is "max_length"."""
        tokenizer = self._tokenizer
        tokenizer.enable_padding(direction=self._side, pad_id=self.pad_token_id, pad_token=self._pad, length=max_length)
        tokenizer.enable_truncation(max_length) if truncation else tokenizer.no_truncation()
        found = tokenizer.encode_batch([text] if isinstance(text, str) else text)
        ids, offsets = [one.ids for one in found], [one.offsets for one in found]
        return {
            "input_ids": ids[0] if isinstance(text, str) else ids,
            "offset_mapping": offsets[0] if isinstance(text, str) else offsets,
        }

    def convert_ids_to_tokens(self, ids: list[int] | np.ndarray) -> list[str]:
        """The strings of ids."""
        return [self._tokenizer.id_to_token(i) for i in ids]

    def decode(self, ids: list[int] | np.ndarray) -> str:
        """The text of ids, special tokens included."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text.replace("</w>", " ").strip()


def is_readable(directory: Path) -> bool:
    """Whether a folder holds what `prompts.train_tokenizer` writes, and nothing that changes its meaning."""
    if {path.name for path in directory.iterdir()} != _FILES:
        return False
    try:
        config = parse_json((directory / "tokenizer_config.json").read_text())
    except ValueError:
        return False
    if not isinstance(config, dict) or config.keys() != _KEYS or config["tokenizer_class"] != "CLIPTokenizer":
        return False
    sides = config["padding_side"] in ("left", "right")
    return sides and isinstance(config["model_max_length"], int) and all(isinstance(config[x], str) for x in SPECIAL)
