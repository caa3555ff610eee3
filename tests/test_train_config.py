"""Configs of runs: what is accepted, what is refused and in which words."""

import dataclasses
import json
import operator
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from setuptools import find_packages
from small_runs import frozen_config, mgt_config, token_batch, vq_config

from editmgt_jax.ablation.config import ABLATIONS
from editmgt_jax.models.text import TextStates
from editmgt_jax.training import declare
from editmgt_jax.training.config import RUNS, MGTRun, Optimizer, read_config, starting_values
from editmgt_jax.training.config_files import SHIPPED, ConfigError, checked, load_config, plain, shipped
from editmgt_jax.training.inputs import resolve
from editmgt_jax.training.mixture import Folder
from editmgt_jax.training.tasks.protocol import Task
from editmgt_jax.training.tasks.table import TASKS, make_task

ROOT = Path(__file__).parents[1]


def mgt():
    return plain(mgt_config("vq", 10))


def vq():
    return plain(vq_config(10))


def overridden(values, text):
    name, _, value = text.partition("=")
    declare.override(RUNS[values["task"]], values, name, value)
    return read_config(values)


# ---- wrong values

WRONG = [
    ("optimizer.learning_rte=1e-3", "did you mean learning_rate"),
    ("optimizer.learning_rate=1e-3x", "a finite number above 0; got '1e-3x'"),
    ("optimizer.learning_rate=None", "above 0; got None"),
    ("optimizer.learning_rate=-1e-3", "above 0; got -0.001"),
    ("optimizer.learning_rate=1e999", "finite number above 0; got inf"),
    ("optimizer.ema_decay=1.5", "at least 0 and below 1; got 1.5"),
    ("optimizer.beta2=1.0", "below 1"),
    ("optimizer.clip_norm=0", "above 0; got 0"),
    ("optimizer.clip_norm=-1", "above 0; got -1"),
    ("optimizer.warmup_steps=-5", "at least 0"),
    ("optimizer.schedule=step", "one of constant, cosine, wsd; got 'step'"),
    ("optimizer.first_moment=float16", "one of float32, bfloat16"),
    ("optimizer=1", "a section of keys, learning_rate"),
    ("steps=1e4", "an integer of at least 0; got 10000.0"),
    ("steps=True", "an integer of at least 0; got True"),
    ("steps=-1", "at least 0; got -1"),
    ("batch_size=0", "at least 1"),
    ("accumulate=0", "at least 1"),
    ("eval_every=0", "at least 1"),
    ("eval_batches=0", "at least 1"),
    ("log_every=0", "at least 1"),
    ("sample_edits=-1", "at least 0"),
    ("seed=-1", "at least 0"),
    ("checkpoint.keep=0", "at least 1"),
    ("checkpoint.every=0", "at least 1"),
    ("mesh.fsdp=0", "at least 1, or -1"),
    ("mesh.data=-2", "at least 1, or -1"),
    ("guard.skip=-1", "at least 0"),
    ("watchdog.end=yes", "True or False; got 'yes'"),
    ("data.threads=0", "at least 1"),
    ("data.objects=few", "one of core, all, rich"),
    ("data.tokens=a:0", "weights above 0.*got 'a:0'"),
    ("data.tokens=a:x", "'FOLDER:WEIGHT,FOLDER'; got 'a:x'"),
    ("data.categories=add", "'CATEGORY:WEIGHT,CATEGORY:WEIGHT'; got 'add'"),
    ("data.categories=add:-1", "at least 0"),
    ("data.categories=add:1,add:2", "got 'add:1,add:2'"),
    ("lora.rank=-4", "at least 0"),
    ("lora.alpha=0.0", "above 0"),
    ("lora.targets=to_q", r"several texts, such as \('to_q', 'to_k'\), at least one; got 'to_q'"),
    ("lora.targets=('to_q')", "several texts"),
    ("lora.targets=()", "at least one"),
    ("start_from=\udcff", "a text"),
]
WRONG_MGT = [
    ("model.reference=false", "True or False; got 'false'"),
    ("model.reference=0", "True or False; got 0"),
    ("model.dtype=float6", "one of float32, bfloat16"),
    ("model.remat=ful", "one of none, dots, products, full"),
    ("model.unroll=0", "at least 1"),
    ("model.timestep_convention=relesed", "one of released, mask_rate"),
    ("model.mgt.num_layers=0", "must be positive, and at most 10000000; got 0"),
    ("model.mgt.num_layers=two", "num_layers must be int; got 'two'"),
    ("model.mgt.depth=2", "there is no config key model.mgt.depth"),
    ("model.text.vocab_size=7", "there is no config key model.text.vocab_size"),
    ("model.scheduler.default_stps=7", "did you mean default_steps"),
    ("loss.mean=bach", "one of batch, sample; got 'bach'"),
    ("loss.condition_dropout=5", "from 0 to 1; got 5"),
    ("loss.min_masking_rate=2.0", "below 1"),
    ("loss.changed_weight=-1.0", "at least 0"),
    ("codebook=0.5", "there is no config key codebook"),
    ("lora.rank=4", "name its directory or run in start_from"),
]
WRONG_VQ = [
    ("model.in_channels=3", "there is no config key model.in_channels"),
    ("model.out_channels=3", "there is no config key model.out_channels"),
    ("model.layers_per_block=0", "model.layers_per_block must be positive"),
    ("model.precision=low", "one of default, high, highest"),
    ("codebook.restart_every=0", "at least 1"),
    ("loss.perceptual=0.5", "loss.lpips"),
    ("loss.steered=0.5", "there is no config key loss.steered"),
    ("loss.adversarial=-1", "at least 0; got -1"),
    ("loss.adversarial_from=0.5", "an integer of at least 0; got 0.5"),
    ("discriminator.width=12", "a positive multiple of 8; got 12"),
    ("discriminator.halvings=0", "at least 1"),
    ("discriminator.learning_rate=0", "above 0"),
    ("discriminator.ahead=-1", "at least 0"),
    ("model.trained=encoder", "one of all, decoder; got 'encoder'"),
    ("model.trained=decoder", "name its model directory or run in start_from"),
    ("accumulate=2", "accumulate must be 1 for task vq; got 2"),
    ("lora.rank=2", "lora.rank must be 0 for task vq"),
    ("data.tokens=a", "must be empty for task vq"),
]


@pytest.mark.parametrize(
    "values, override, message",
    [(vq, *each) for each in WRONG + WRONG_VQ] + [(mgt, *each) for each in WRONG + WRONG_MGT],
    ids=lambda value: value if isinstance(value, str) and "=" in value and value.isprintable() else "",
)
def test_wrong_values_are_told_in_a_line_that_names_the_key(values, override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        overridden(values(), override)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    assert override.partition("=")[0].split(".")[-1] in text


@pytest.mark.parametrize("task", [None, 3, "vae"])
def test_an_unknown_task(task):
    with pytest.raises(ConfigError, match="task must be one of mgt, vq; got"):
        checked(ConfigDict({"task": task}))


def test_what_a_config_needs():
    with pytest.raises(ConfigError, match="needs the section model.mgt"):
        read_config({"task": "mgt"})
    with pytest.raises(ConfigError, match="model: VQConfig needs the config keys"):
        read_config({"task": "vq"})
    with pytest.raises(ConfigError, match="leave model.vq and model.scheduler empty"):
        overridden(mgt(), "model.encoders=m")


# ---- right ones


@pytest.mark.parametrize("name", shipped())
def test_shipped_configs_come_back_from_json_and_are_frozen(name):
    if name in ("base", "ablate_layers"):  # no runs of a training
        with pytest.raises(ConfigError, match="task must be"):
            load_config(name)
        return
    kinds, key = (ABLATIONS, "statistics.seed") if name.startswith("ablate") else (RUNS, "seed")
    config = load_config(name, [f"--config.{key}=5"], kinds)
    assert operator.attrgetter(key)(config) == 5
    assert config == load_config(ROOT / "configs" / f"{name}.py", [f"--config.{key}=5"], kinds)
    assert read_config(json.loads(json.dumps(config.to_dict())), kinds) == config and hash(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.task = "another"


@pytest.mark.parametrize(
    "name", ["scenes_mgt", "scenes_128_mgt", "editmgt_1024", "stage1_adapt", "stage2_finetune", "stage3_refine"]
)
def test_the_released_classes_can_hold_what_a_shipped_config_trains(name):
    model = load_config(name).model
    assert model.mgt.released_problem is None
    if not model.encoders:
        assert model.text.hidden_size == model.mgt.joint_attention_dim
        assert model.text.projection_dim == model.mgt.pooled_projection_dim


def test_a_config_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match="task must be one of mgt, vq; got 'ablate'"):
        load_config("ablate_layers")
    with pytest.raises(ConfigError, match="task must be one of ablate; got 'mgt'"):
        load_config("scenes_mgt", (), ABLATIONS)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("record.signal", "('text_to_image',)", "no config key record.signal: did you mean signals"),
        (
            "record.signals",
            "('text_to_picture',)",
            "record.signals must be distinct names, at least one, of text_to_image",
        ),
        ("record.rates", "(0.0,)", "record.rates must be several finite numbers above 0 and at most 1"),
        ("record.settings", "{'step': 4}", "record.settings must be a dict of settings of an edit .no step."),
        (
            "decode.grid",
            "{'hold_threshold': (7.0,)}",
            "decode.grid must be values that an edit can have: hold_threshold",
        ),
        ("decode.grid", "{'hold_threshold': 0.1}", "decode.grid must be values in a tuple"),
        ("score.filters", "('blur',)", "score.filters must be distinct names"),
        ("examples.count", "1", "examples.count must be an integer of at least 4"),
    ],
)
def test_a_wrong_key_of_an_ablation_is_one_line(key, value, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_config("ablate_layers", [f"--config.{key}={value}"], ABLATIONS)
    assert "\n" not in str(error.value)


def test_each_shipped_config_has_its_file_in_the_folder_configs():
    assert shipped() == sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def test_defaults_keep_their_own_rules():
    for kind in RUNS.values():
        shared = {field.name for field in dataclasses.fields(kind)}
        assert shared >= starting_values().keys()
    for make in (mgt, vq):
        for name, value, declared in declare.leaves(read_config(make())):
            assert declared.rule.holds(value) and (declared.meaning or name.startswith("model.")), name


def test_numbers_of_numpy_and_integers_for_floats():
    config = read_config(mgt() | {"steps": np.int64(3), "batch_size": np.int32(8)})
    assert type(config.steps) is int and type(config.batch_size) is int
    rate = overridden(mgt(), "optimizer.learning_rate=1").optimizer.learning_rate
    assert type(rate) is float and rate == 1


def test_keys_that_a_file_leaves_out_can_be_set():
    assert overridden(mgt(), "loss.steered=0.5").loss.steered == 0.5
    assert overridden(mgt(), "model.vq=7").model.vq == "7"
    assert overridden(mgt(), "lora.targets=('to_q',)").lora.targets == ("to_q",)


def test_a_mixture_has_two_forms():
    folders = (Folder("runs/a", 3.0), Folder("b"))
    values = ({"path": "runs/a", "weight": 3}, {"path": "b"})
    for given in ("runs/a:3, b", values, list(values), ["runs/a:3", "b"]):
        assert read_config(mgt() | {"data": {"tokens": given}}).data.tokens == folders
    for given in ("style:0.5,add:2", {"add": 2, "style": 0.5}):
        assert read_config(mgt() | {"data": {"categories": given}}).data.categories == (("add", 2.0), ("style", 0.5))
    assert read_config(mgt() | {"data": {"tokens": "gs://bucket/a"}}).data.tokens == (Folder("gs://bucket/a"),)
    with pytest.raises(
        ValueError, match=r"data.tokens must lie in a file system that this machine mounts.*gs://bucket"
    ):
        resolve(
            read_config(mgt() | {"model": mgt()["model"] | {"vq": ""}, "data": {"tokens": "gs://bucket/a:2"}}), "runs/a"
        )


# ---- runs


@pytest.mark.parametrize(
    "values, steps, notes",
    [
        (dict(schedule="constant"), 40, []),
        (dict(schedule="wsd", decay_steps=4), 12, []),
        (dict(schedule="wsd", decay_steps=4), 0, []),
        (dict(schedule="wsd", decay_steps=4), 40, ["the last 28 of the 40 steps have learning rate 0"]),
        (dict(schedule="cosine"), 5, ["after the 5 steps: the learning rate does not reach 0"]),
        (dict(schedule="cosine", warmup_steps=3), 2, ["after the 2 steps", "all 2 steps lie in the warm-up"]),
        (dict(schedule="cosine", warmup_steps=50), 12, ["leaves nothing of the schedule", "lie in the warm-up"]),
    ],
)
def test_a_schedule_that_ends_elsewhere_than_the_run_is_told(values, steps, notes):
    found = Optimizer(total_steps=12, **values).notes(steps)
    assert len(found) == len(notes) and all(note in one for one, note in zip(found, notes, strict=True))


# ---- files


def test_errors_of_a_config_file_are_told_with_their_line(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text("def get_config():\n    config = {}\n    return config['steps'] + 1\n")
    with pytest.raises(ConfigError, match=r"wrong.py fails in line 3: KeyError: 'steps'"):
        load_config(path)
    path.write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(ConfigError, match=r"wrong.py fails in line 2: SystemExit: 3"):
        load_config(path)
    path.write_text("def get_config():\n    return 7\n")
    with pytest.raises(ConfigError, match="must return a ConfigDict; .*wrong.py gives a int"):
        load_config(path)
    with pytest.raises(FileNotFoundError, match="or one of ablate_layers, base, editmgt_1024"):
        load_config("scenes_mtg")


def test_a_config_anywhere_imports_a_shipped_one_of_the_installed_package(tmp_path):
    packages = find_packages(str(ROOT), include=["editmgt_jax", "editmgt_jax.*"])
    assert "editmgt_jax.configs" in packages
    for name in packages:  # what is installed, in a place of its own
        folder = tmp_path / "site" / name.replace(".", "/")
        folder.mkdir(parents=True, exist_ok=True)
        for path in (ROOT / name.replace(".", "/")).glob("*.py"):
            shutil.copy(path, folder)
    (tmp_path / "jax").mkdir()  # no name of a folder gets in the way of a package
    (tmp_path / "jax" / "mine.py").write_text(
        "from editmgt_jax.configs import scenes_mgt\n"
        "def get_config():\n"
        "    config = scenes_mgt.get_config()\n"
        "    config.data.tokens = ({'path': 'a', 'weight': 2},)\n"
        "    return config\n"
    )
    code = (
        "import jax\n"
        "from editmgt_jax.training import config_files as files\n"
        "mine = files.load_config('mine.py', ['--config.steps=7'])\n"
        "assert mine.steps == 7 and mine.data.tokens[0].weight == 2 and jax.numpy\n"
        "assert files.load_config('stage2_finetune').model.mgt.num_layers == 14\n"
        "print(files.SHIPPED)\n"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=tmp_path / "jax", env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "site" / "editmgt_jax" / "configs")


def test_reading_a_config_does_not_import_jax():
    code = "import sys; from editmgt_jax.training.config_files import load_config as load; load('scenes_mgt')"
    code += "; assert not {'jax', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=SHIPPED.parents[1])


# ---- tasks


def test_every_task_has_a_config_and_offers_what_the_trainer_asks():
    assert TASKS.keys() == RUNS.keys()
    for task in TASKS.values():
        assert Task in task.__mro__ and not task.__abstractmethods__


def test_evaluations_are_without_the_noise_of_training(tiny_model):
    """Neither wrong known ids nor steered masks nor left out instructions, which a training step has."""

    def measured(**loss):
        config = frozen_config(tiny_model)
        config.loss.update(condition_dropout=0.0, **loss)
        task = make_task(checked(config))
        assert isinstance(task.config, MGTRun)
        prepare = jax.jit(task._prepare, static_argnames="training")
        frozen = {"text": {"empty": TextStates(jnp.zeros((1, 12, 24)), jnp.zeros((1, 20)))}}
        return [prepare(frozen, token_batch(), jax.random.key(3), training=training) for training in (False, True)]

    plain_eval, plain_step = measured()
    noisy_eval, noisy_step = measured(steered=1.0, corruption=1.0)
    jax.tree.map(np.testing.assert_array_equal, plain_eval, noisy_eval)
    assert (noisy_step["mask"] != plain_step["mask"]).any()
    known = ~noisy_step["mask"].reshape(noisy_step["hidden"].shape)
    assert (known & (noisy_step["hidden"] != token_batch()["target_ids"])).any()
    np.testing.assert_array_equal(plain_step["mask"], plain_eval["mask"])
    dropped = frozen_config(tiny_model)
    dropped.loss.condition_dropout = 1.0
    task = make_task(checked(dropped))
    frozen = {"text": {"empty": TextStates(jnp.zeros((1, 12, 24)), jnp.zeros((1, 20)))}}
    assert task._prepare(frozen, token_batch(), jax.random.key(3), training=False)["informed"].all()
    assert not task._prepare(frozen, token_batch(), jax.random.key(3), training=True)["informed"].any()
