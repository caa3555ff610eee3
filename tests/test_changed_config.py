"""The config of a run that goes on: older ones are understood, and what may change is told."""

import json
from pathlib import Path

import pytest
from test_train_config import mgt, overridden, vq

from editmgt_jax.training.config import read_config
from editmgt_jax.training.config_files import ConfigError
from editmgt_jax.training.mixture import Folder
from editmgt_jax.training.runs import CHECKPOINTS, changed_keys, run_config, write_config


def old_run(folder, values=None) -> Path:
    """The folder of a run with a checkpoint."""
    (folder / CHECKPOINTS / "4").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values or mgt()))
    return folder


def test_the_config_of_an_older_run_is_understood(tmp_path):
    """Without keys that came later, with texts for mixtures, with the tokenizer's keys as 0."""
    values = json.loads(json.dumps(mgt()))
    for name in ("attention", "head_precision", "vq_precision", "copy_friendly"):
        values["model"].pop(name, None)
    for name in ("steered", "corruption", "area_power"):
        values["loss"].pop(name, None)
    del values["guard"], values["lora"]
    values["data"] |= {"tokens": "/data/a:3,/data/b:1", "categories": "add:2"}
    values["model"]["text"] |= dict.fromkeys(("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"), 0)
    config = run_config(old_run(tmp_path, values))
    assert config.model.attention == "auto" and config.model.vq_precision == "highest" and config.loss.steered == 0
    assert config.data.tokens[0] == Folder("/data/a", 3.0) and config.lora.rank == 0
    write_config(tmp_path, config)
    assert run_config(tmp_path) == config


@pytest.mark.parametrize(
    "change, message",
    [
        ("model.mgt.num_layers=3", "model.mgt.num_layers was 1, is 3"),
        ("optimizer.first_moment=bfloat16", "optimizer.first_moment was 'float32', is 'bfloat16'"),
        ("optimizer.ema_decay=0.0", "optimizer.ema_decay was 0.999, is 0.0"),
        ("data.seed=5", "data.seed was 0, is 5"),
        ("data.categories=add:3", r"data.categories was {}, is {'add': 3.0} \(the weights in the mixture"),
        ("batch_size=16", "batch_size was 8, is 16"),
        ("model.reference=False", "model.reference was True, is False"),
        ("model.text.hidden_size=32", "model.text.hidden_size was 16, is 32"),
    ],
)
def test_a_key_that_a_run_must_keep_is_named(tmp_path, change, message):
    old_run(tmp_path)
    with pytest.raises(ConfigError, match=f"was begun with another config: {message}"):
        changed_keys(tmp_path, overridden(mgt(), change))


@pytest.mark.parametrize(
    "change, notes",
    [
        ("steps=99", []),
        ("log_every=3", []),
        ("eval_every=7", []),
        ("watchdog.seconds=9", []),
        ("data.workers=2", []),
        ("mesh.fsdp=2", []),
        ("model.remat=full", []),
        ("optimizer.learning_rate=0.5", ["optimizer.learning_rate was 0.0015, is 0.5 (the peak of the schedule)"]),
        ("optimizer.ema_decay=0.9", ["optimizer.ema_decay was 0.999, is 0.9"]),
        ("loss.steered=0.25", ["loss.steered was 0.0, is 0.25"]),
    ],
)
def test_keys_that_a_run_may_change(tmp_path, change, notes):
    found = changed_keys(old_run(tmp_path), overridden(mgt(), change))
    assert len(found) == len(notes) and all(one.startswith(note) for one, note in zip(found, notes, strict=True))


def test_before_its_first_checkpoint_a_run_may_change_anything(tmp_path):
    old_run(tmp_path)
    (tmp_path / CHECKPOINTS / "4").rmdir()
    assert changed_keys(tmp_path, overridden(mgt(), "model.mgt.num_layers=3")) == []


def test_a_run_of_another_task_is_named(tmp_path):
    with pytest.raises(ConfigError, match="task was 'mgt', is 'vq'"):
        changed_keys(old_run(tmp_path), read_config(vq()))


def test_the_config_of_a_run_may_be_damaged(tmp_path):
    old_run(tmp_path)
    (tmp_path / "config.json").write_text('{"task": "mgt", ')
    with pytest.raises(ConfigError, match="config.json"):
        run_config(tmp_path)
