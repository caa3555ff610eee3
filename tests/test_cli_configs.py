"""Commands that take a config file or a run: what reaches the training functions."""

import sys
from pathlib import Path

import pytest

from editmgt_jax import cli
from editmgt_jax.cli import shared
from editmgt_jax.training.config_files import ConfigError, load_config

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder; no disk cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shared, "use_disk_cache", lambda: None)
    return tmp_path


@pytest.fixture
def trainer(monkeypatch):
    """Records what reaches the training functions."""
    calls = []
    for module, name in (("trainer", "train"), ("export", "export"), ("token_job", "tokenize_scenes")):
        where = f"editmgt_jax.training.{module}.{name}"
        monkeypatch.setattr(where, lambda *args, name=name, **more: calls.append((name, *args, *more.values())))
    monkeypatch.setattr("editmgt_jax.training.runs.is_run", lambda folder: folder == "run")
    return calls


@pytest.fixture
def config_file(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    model = dict(block_out_channels=(4, 8), layers_per_block=1, latent_channels=4, num_vq_embeddings=8,\n"
        "                 norm_num_groups=1)\n"
        "    return ConfigDict(dict(task='vq', steps=10, start_from='', model=model))\n"
    )
    return tmp_path / "configs" / "base.py"


def test_train_gets_the_overridden_config(folder, trainer, config_file):
    overrides = ["--config.steps=20", "--config.model.block_out_channels=(3,4)", "--config.start_from=7"]
    overrides += ["--config.optimizer.learning_rate=1"]
    assert cli.main(["train", "--config", str(config_file), "--workdir", "run", *overrides]) == 0
    ((name, config, workdir, profile, track),) = trainer
    assert (name, workdir, profile, track) == ("train", "run", None, [])
    assert (config.steps, config.start_from, config.optimizer.learning_rate) == (20, "7", 1.0)
    assert config.model.architecture.block_out_channels == (3, 4)


@pytest.mark.parametrize(
    "override, message",
    [
        ("--config.step=20", r"no config key step: did you mean steps\?"),
        ("--config.model.depth=1", "no config key model.depth"),
        ("--config.steps.more=1", "no config section steps"),
        ("--config.steps=many", "steps must be an integer of at least 0; got 'many'"),
        ("--config.steps=1.5", "got 1.5"),
        ("--config.model=3", "model must be a section of keys"),
        ("--config.model.mid_block_add_attention=yes", "model.mid_block_add_attention must be bool; got 'yes'"),
        ("--config.steps", "must read --config.KEY=VALUE"),
        ("--steps=3", "must read --config.KEY=VALUE"),
    ],
)
def test_overrides_must_fit(config_file, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(config_file, [override])


@pytest.mark.parametrize("flag", ["--task-pairs", "--task-rows"])
def test_prepare_takes_the_former_name_of_a_flag(monkeypatch, flag):
    taken = []
    monkeypatch.setattr("editmgt_jax.data.prepare.job.prepare", lambda *args: taken.append(args[2].task_pairs))
    assert cli.main(["prepare", "raw", "--output", "out", flag, "7"]) == 0
    assert taken == [7]


def test_bad_config_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.py"):
        load_config(tmp_path / "gone.py")
    (tmp_path / "a.py").write_text("x = 1")
    with pytest.raises(ConfigError, match="must define get_config"):
        load_config(tmp_path / "a.py")
    (tmp_path / "b.py").write_text("import not_installed_at_all")
    with pytest.raises(ConfigError, match="not_installed_at_all"):
        load_config(tmp_path / "b.py")


def test_files_of_one_folder_import_each_other(config_file):
    other = config_file.with_name("other.py")
    other.write_text("from configs import base\ndef get_config():\n    return base.get_config()\n")

    def imported():
        return sys.path.copy(), {name: sys.modules[name] for name in sys.modules if name.startswith("configs")}

    before = imported()
    assert load_config(ROOT / "configs" / "scenes_vq.py").task == "vq"
    assert load_config(other).model.architecture.latent_channels == 4
    assert imported() == before


def test_bad_override_is_a_line(folder, trainer, config_file, capfd):
    assert cli.main(["train", "--config", str(config_file), "--workdir", "run", "--config.stps=1"]) == 2
    assert capfd.readouterr().err.startswith("editmgt: error: there is no config key stps")
    assert not trainer


def test_tokenize_and_export(folder, trainer, config_file):
    assert cli.main(["tokenize", "--config", str(config_file), "--output", "tokens", "--examples", "64"]) == 0
    assert cli.main(["export", "--workdir", "run", "--output", "model", "--dtype", "float16"]) == 0
    assert cli.main(["export", "--workdir", "run", "--output", "model", "--step", "7", "--raw", "--merge"]) == 0
    assert trainer[0][0] == "tokenize_scenes" and trainer[0][2:] == ("tokens", 64)
    assert trainer[1:] == [
        ("export", "run", "model", None, "float16", False, False, ""),
        ("export", "run", "model", 7, "float32", True, True, ""),
    ]


def test_convert_released_takes_a_run(folder, trainer, capfd):
    assert cli.main("convert released run model --step 7 --raw --verify".split()) == 0
    assert trainer == [("export", "run", "model", 7, "float32", True, True, False)]
    assert cli.main("convert released other model --step 7".split()) == 2
    assert "other is not a training run" in capfd.readouterr().err
