"""Small folders of token records, made by the tokenizing job with encoders that any reader can undo."""

import ml_dtypes
import numpy as np
from tiny import TEXT_LENGTH

from editmgt_jax.data.tokenize import Encoders, tokenize
from editmgt_jax.models.prompts import PromptError, PromptTokenizer
from editmgt_jax.training.inputs import identity
from editmgt_jax.weights.loading import tokenizer_folders

GRIDS = {"32x32": (4, 4), "64x32": (4, 8)}  # rows, columns


class Pairs:
    """Pair i of a bucket: pictures of one colour, i in its first two channels."""

    def __init__(self, bucket, count, offset=0, categories=("add", "remove", "style")):
        self.bucket, self.count, self.offset, self.categories = bucket, count, offset, categories

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        width, height = map(int, self.bucket.split("x"))
        number = index + self.offset
        picture = np.full((height, width, 3), [number % 256, number // 256, 0], np.uint8)
        return {
            "key": f"{self.bucket}#{index}",
            "source": picture,
            "target": 255 - picture,
            "instruction": f"make it {number}" if number != 7 else "far too long",
            "category": self.categories[number % len(self.categories)],
            "original_size": [2 * width, 2 * height],
            "crop": [3, 5],
        }


def image_ids(pixels):
    """The number of a picture at every token of its 8 x 8 pixels."""
    return pixels[:, ::8, ::8, 0].astype(np.int32) + 256 * pixels[:, ::8, ::8, 1].astype(np.int32)


def text_ids(texts):
    if texts == ["far too long"]:
        raise PromptError("an instruction may have at most 3 tokens")
    numbers = [[ord(c) for c in text[-3:].rjust(3)] for text in texts]
    return {"text_ids": np.array(numbers, np.int32), "llm_ids": np.array(numbers, np.int32)[:, :2]}


ENCODERS = Encoders(image_ids, text_ids)


def write(directory, counts=None, offset=0, **more):
    counts = counts or {"32x32": 50, "64x32": 23}
    sources = {bucket: Pairs(bucket, count, offset) for bucket, count in counts.items()}
    return tokenize(sources, ENCODERS, directory, {"made_of": "colours"}, batch_size=8, **more)


def numbers(batch):
    """The numbers of a batch's pairs."""
    return batch["source_ids"][:, 0, 0].tolist()


def write_random(directory, model, count=64):
    """Records of ids without meaning, with text states, that fit a model directory of `tiny.py`."""
    dice = np.random.default_rng(0)
    states = dice.standard_normal((64, TEXT_LENGTH, 24), dtype=np.float32)
    tokenizer = PromptTokenizer(model / "tokenizer")

    def image(pixels):
        cells = np.arange(64).reshape(8, 8)
        return (pixels[:, :1, :1, 0].astype(np.int32) * 7 + cells * pixels[:, :1, :1, 2]) % 32

    def text(texts):
        return {"text_ids": tokenizer(["make the car red"] * len(texts))}

    def encoded(ids):
        chosen = states[np.arange(len(ids["text_ids"]))]
        return {"text_states": chosen.astype(ml_dtypes.bfloat16), "pooled": chosen[:, 0, :20]}

    facts = identity(model / "vqvae", tokenizer_folders(model)) | {"text_states": True}
    tokenize({"32x32": Pairs("32x32", count)}, Encoders(image, text, encoded), directory, facts, batch_size=8)
