"""Whatever reads files, for the campaign of `fuzz.py`: each target with the inputs that it gets."""

import base64
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import tiny
import tokens
from campaigns.fuzz_inputs import (
    TEXTS,
    changed_bytes,
    changed_json,
    changed_weights,
    lines,
    picture_bytes,
    png,
    tables,
    whole_table,
)
from hypothesis import strategies as st

from editmgt_jax import images
from editmgt_jax.data.prepare.examine import PrepareConfig, Rejected, examine
from editmgt_jax.data.prepare.sources import open_source
from editmgt_jax.data.records import TokenSet
from editmgt_jax.models.prompts import PromptTokenizer
from editmgt_jax.weights import lora
from editmgt_jax.weights.components import abstract_params
from editmgt_jax.weights.files import WeightFiles
from editmgt_jax.weights.loading import load_mgt, load_model


class Target(NamedTuple):
    """What is drawn, and what reads it."""

    strategy: st.SearchStrategy
    read: Callable
    share: float = 1.0  # of the examples, for what takes long


def read_picture(data: bytes) -> None:
    """As an image, a mask and a data URI."""
    for read in (
        lambda: images.load(data, keep_profile=True),
        lambda: images.load_mask(data, (20, 24), may_be_empty=True),
        lambda: images.load("data:image/png;base64," + base64.b64encode(data).decode()),
    ):
        with contextlib.suppress(images.ImageError):
            read()


class Folder:
    """A folder in which one file is replaced."""

    def __init__(self, folder: Path, name: str):
        self.path = folder / name
        self.before = self.path.read_bytes()

    @contextlib.contextmanager
    def having(self, data: bytes):
        """With another content of the file."""
        self.path.write_bytes(data)
        try:
            yield
        finally:
            self.path.write_bytes(self.before)


def replaced(folder: Path, name: str, read: Callable[[], object], how="json", share=1.0) -> Target:
    """Reads a folder with one file changed."""
    one = Folder(folder, name)

    def run(data):
        with one.having(data):
            read()

    whole = changed_bytes([one.before]) if how == "bytes" else changed_json(json.loads(one.before))
    return Target(whole, run, share)


def weights_of(folder: Path, read: Callable[[], object], name: str) -> Target:
    """A folder whose weight file has another header, or other bytes."""
    one = Folder(folder, name)

    def run(data):
        with one.having(data):
            read()

    return Target(changed_weights(one.before) | changed_bytes([one.before]), run)


def read_tensors(folder: Path) -> None:
    """All tensors of a folder."""
    files = WeightFiles(folder)
    for key in files.tensors:
        files.read(key)


def read_pairs(folder: Path) -> None:
    """All raw pairs of a source, examined; what is rejected is."""
    for part in open_source(folder, None, 16):
        for pair in part.read():
            with contextlib.suppress(Rejected):
                examine(pair, PrepareConfig(resolution=32))


def targets(home: Path) -> dict[str, Target]:
    """All, with their whole files in a folder."""
    model = tiny.write_model(home / "model")
    _, config = load_mgt(model / "editmgt")[0], tiny.MGT_CONFIG
    abstract = abstract_params(load_mgt(model / "editmgt", check_only=True)[0])
    adapter = home / "adapter"
    ours = lora.LoRAConfig(r=2, lora_alpha=4.0, target_modules=("to_q", "to_k"))
    lora.save_lora(adapter, ours, config, lora.init_lora(ours, config, abstract, jax.random.key(0)))
    peft = json.loads((adapter / "adapter_config.json").read_text()) | {
        "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_k": 3.0}, "exclude_modules": ["to_v"], "use_rslora": False,
        "layers_to_transform": [0, 1], "layers_pattern": ["transformer_blocks", "single_transformer_blocks"], "peft_type": "LORA",
    }  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(peft))
    tokens.write_random(home / "tokens", model)
    pairs, table, brush = home / "pairs", home / "table", home / "brush"
    for folder in (pairs, table, brush / "images" / "1"):
        folder.mkdir(parents=True)
        for number, name in enumerate(("a.png", "b.png")):
            (folder / name).write_bytes(png(number))
    (pairs / "pairs.jsonl").write_text("{}")
    turn = {"input": "1-input.png", "output": "1-output1.png", "mask": "1-mask1.png", "instruction": "make it red"}
    (brush / "edit_turns.json").write_text(json.dumps([turn, turn]))
    (table / "a.parquet").write_bytes(whole_table())

    def check():
        load_model(model, check_only=True)

    found = {
        "pictures": Target(changed_bytes(picture_bytes()), read_picture),
        "safetensors": weights_of(model / "vqvae", lambda: read_tensors(model / "vqvae"), "diffusion_pytorch_model.safetensors"),
        "weights of a model": weights_of(model / "text_encoder", lambda: load_model(model), "model.safetensors"),
        "jsonl": Target(lines(), reader(Folder(pairs, "pairs.jsonl"), pairs)),
        "edit_turns.json": replaced(brush, "edit_turns.json", lambda: read_pairs(brush)),
        "parquet columns": Target(tables(), reader(Folder(table, "a.parquet"), table)),
        "parquet bytes": replaced(table, "a.parquet", lambda: read_pairs(table), "bytes"),
        "adapter config": replaced(adapter, "adapter_config.json", lambda: lora.read(adapter, config, abstract)),
        "adapter weights": weights_of(adapter, lambda: lora.read(adapter, config, abstract), "adapter_model.safetensors"),
        "token manifest": replaced(home / "tokens", "manifest.json", lambda: read_tokens(home / "tokens")),
        "token shard": replaced(home / "tokens", next((home / "tokens").glob("*.array_record")).name, lambda: read_tokens(home / "tokens"), "bytes"),
        "prompts": Target(st.text(max_size=30) | TEXTS, lambda text: PromptTokenizer(model / "tokenizer")([text]), 0.1),
    }  # fmt: skip
    for name in (
        "editmgt/config.json",
        "vqvae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
    ):
        found[name] = replaced(model, name, check, share=0.3)
    for path in sorted((model / "tokenizer").glob("*.json")):
        found[f"tokenizer/{path.name}"] = replaced(model, f"tokenizer/{path.name}", check, share=0.2)
    return found


def reader(one: Folder, folder: Path) -> Callable[[bytes], None]:
    """Reads the pairs of a folder with another content of a file."""

    def run(data):
        with one.having(data):
            read_pairs(folder)

    return run


def read_tokens(folder: Path) -> None:
    """All records of a folder."""
    for bucket in TokenSet(folder).buckets.values():
        bucket.categories()
        for index in range(len(bucket)):
            bucket[index]
