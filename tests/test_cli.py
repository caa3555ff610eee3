import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from PIL import Image

from editmgt_jax import cli
from editmgt_jax.cli import shared
from editmgt_jax.config import MGTConfig
from editmgt_jax.errors import FINAL, TRANSIENT, UserError
from editmgt_jax.weights.components import COMPONENTS
from editmgt_jax.weights.trees import CheckpointError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a picture in it; no disk cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shared, "use_disk_cache", lambda: None)
    pixels = np.random.default_rng(0).integers(0, 256, (47, 61, 3), np.uint8)
    Image.fromarray(pixels).save("in.png")
    return tmp_path


def edit(model, *arguments, image="in.png", output="out.png", instruction="make the car red"):
    return cli.main(
        ["edit", "--image", image, "--instruction", instruction, "--output", output, "--model", str(model), *arguments]
    )


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- edit


def test_edit_writes_every_picture_that_was_asked_for(model, folder):
    flags = "--steps 3 --num-images 2 --hold-threshold 0.4 --save-map map.png --save-mask mask.png --save-steps s.gif"
    assert edit(model, *flags.split()) == 0
    expected = [
        f"{name}_{i}.{end}"
        for name, end in (("map", "png"), ("mask", "png"), ("out", "png"), ("s", "gif"))
        for i in (0, 1)
    ]
    assert files(folder) == sorted(["in.png", *expected])
    for name in expected:
        with Image.open(name) as image:
            assert image.size == (61, 47)
            assert getattr(image, "n_frames", 1) == (3 if name.endswith("gif") else 1)


def test_flags_reach_the_pipeline(model, folder, monkeypatch):
    from editmgt_jax.pipeline import EditPipeline

    calls = []

    def call(self, image, instruction, **options):
        calls.append((image.size, instruction, options))
        return SimpleNamespace(images=[image], relevance=np.zeros((1, 8, 8)), keep_mask=np.zeros((1, 8, 8), bool))

    monkeypatch.setattr(EditPipeline, "__call__", call)
    Image.new("L", (61, 47), "white").save("mask.png")
    flags = (
        "--steps 5 --guidance-scale 2.5 --reference-strength 0.9 --hold-threshold 0.3 --hold from_step --hold-step 2 "
        "--layers 0 2 --sampling-temperature 0.7 --temperature 1 0 --filter none --seed 9 --no-composite "
        "--negative-prompt blurry --query car --mask mask.png"
    )
    assert edit(model, *flags.split()) == 0
    size, instruction, options = calls[0]
    assert (size, instruction) == ((61, 47), "make the car red")
    assert options.pop("mask").all() and callable(options.pop("progress"))
    assert options == dict(
        steps=5, guidance_scale=2.5, reference_strength=0.9, hold_threshold=0.3, hold="from_step", hold_step=2,
        layers=[0, 2], sampling_temperature=0.7, temperature=[1.0, 0.0], filter="none", seed=9, composite=False,
        negative_prompt="blurry", query="car", num_images=1, record=False, released_mask=False,
    )  # fmt: skip
    assert edit(model, "--temperature", "1.5") == 0
    assert calls[1][2]["temperature"] == 1.5
    assert "steps" not in calls[1][2]


@pytest.mark.parametrize("command", ["prepare", "convert orbax", "train --workdir run --config", "report"])
def test_a_loop_of_links_is_told_in_a_line(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    end = {"prepare": ["--output", "new"], "convert orbax": ["new"], "report": ["--output", "new"]}.get(command, [])
    assert cli.main([*command.split(), "loop", *end]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "loop" in line and not Path("new").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("supervise --wait -1 -- true", "--wait: must be seconds, 0 or more; got '-1'"),
        ("supervise --healthy nan -- true", "--healthy: must be seconds, 0 or more; got 'nan'"),
        ("make-random --preset editmgt-1024 --out new --seed -1", "--seed: must be at least 0"),
        ("convert editor model new --seed 4294967296", "--seed: must be at least 0 and at most 4294967295"),
        ("scenes --preview new.png --rows 99999", "a preview must have at most 100000000 pixels"),
        ("serve --host=", "'' is not loopback"),
    ],
)
def test_flags_out_of_range(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(arguments.split())
    except SystemExit as ended:
        code = ended.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and message in line and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--hold-step", "1"], "--hold-step is read with --hold from_step alone; it is released"),
        (["--entropy-bound", "9"], "--entropy-bound is read with --sampler entropy alone; it is confidence"),
        (["--copy-penalty", "1"], "--copy-penalty is read with --sampler changes_first alone; it is confidence"),
        (["--released-mask"], "give --mask, too"),
        (dict(image="gone.png"), "an image must be a file; there is none at gone.png"),
        (dict(output="out.xyz"), "suffix of an output must be one of .png, .jpg"),
        (dict(output="gone/out.png"), "there is no gone: create it"),
        (dict(image="text.png"), "text.png must be a picture"),
        (dict(image="long.png"), "1 x 5000 pixels"),
        (dict(instruction=" "), "must say what to change"),
        (dict(instruction="car " * 30), "at most 12 tokens"),
        (["--mask", "mask.png"], "mask.png is 9 x 9 pixels"),
        (["--model", "gone"], "there is no folder gone"),
        (["--model", "."], "a folder editmgt or transformer"),
        (["--hold-threshold", "-1"], "hold_threshold must be a number at least 0"),
        (["--layers", "7"], "from 0 to 2"),
        (["--query", "owl"], "'owl' is not among"),
        (["--save-map", "map.svg"], "got '.svg'"),
        (["--save-map", "./out.png"], "out.png is named twice"),
        (["--save-steps", "steps.mp4"], ".gif"),
    ],
)
def test_errors_are_one_line_and_leave_no_file(model, folder, capfd, arguments, message):
    Path("text.png").write_text("text")
    Image.new("RGB", (1, 5000)).save("long.png")
    Image.new("L", (9, 9)).save("mask.png")
    before = files(folder)
    named = arguments if isinstance(arguments, dict) else {}
    extra = arguments if isinstance(arguments, list) else []
    assert edit(model, *extra, **named) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith("editmgt: error: ")
    assert message in line
    assert files(folder) == before


def test_outputs_are_checked_before_the_model_is_loaded(folder, capfd):
    assert edit("no-model", output="out.xyz") == 2
    assert "suffix" in capfd.readouterr().err


def test_defects_keep_their_traceback(model, folder, monkeypatch):
    monkeypatch.setattr("editmgt_jax.images.load", lambda *_, **more: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        edit(model)


def test_a_lost_conversion_rule_is_a_defect(model, monkeypatch):
    row = COMPONENTS[MGTConfig]
    fewer = [rule for rule in row.rules if rule.ours != "project_in"]
    monkeypatch.setitem(COMPONENTS, MGTConfig, dataclasses.replace(row, rules=fewer))
    with pytest.raises(ValueError, match="exactly one conversion rule must cover project_in/kernel; 0 do"):
        cli.main(["inspect", str(model)])


@pytest.mark.parametrize(
    "error, code",
    [
        (UserError("rule"), FINAL),
        (CheckpointError("rule", transient=True), TRANSIENT),
        (CheckpointError("rule"), FINAL),
        (FileNotFoundError("none"), FINAL),
        (OSError(errno.ESTALE, "stale"), TRANSIENT),
    ],
)
def test_exit_codes(model, folder, monkeypatch, capfd, error, code):
    def fail(*_, **more):
        raise error

    monkeypatch.setattr("editmgt_jax.images.load", fail)
    assert edit(model) == code
    assert f"editmgt: error: {getattr(error, 'strerror', None) or error}\n" in capfd.readouterr().err


def test_transparency_is_a_note(model, folder, capfd):
    Image.new("RGBA", (32, 32), (255, 0, 0, 100)).save("in.png")
    assert edit(model, "--steps", "1") == 0
    assert "editmgt: note: in.png is partly transparent: its background becomes white\n" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["edit"],
        ["paint"],
        ["scenes", "--preview", "a.png", "--nonsense"],
        ["scenes", "--preview", "a.png", "--rows", "0"],
    ],
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom editmgt_jax import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'jax', 'flax', 'numpy', 'PIL', 'transformers'} & set(sys.modules)\nassert not heavy, heavy"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    for command in ("edit", "scenes", "train", "tokenize", "export", "evaluate"):
        assert command in shown


def test_disk_cache_is_used_by_the_next_run(model, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "in.png")
    command = [sys.executable, "-m", "editmgt_jax.cli", "edit", "--model", str(model), "--steps", "1"]
    command += ["--image", "in.png", "--instruction", "make the car red", "--output", "out.png"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    environment.pop("EDITMGT_CACHE", None)

    told = []

    def run():
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        told.append("first use of these shapes; cached on disk" in done.stderr)
        written = {path.name for path in (tmp_path / "cache" / "editmgt").iterdir()}
        return written, (tmp_path / "out.png").read_bytes()

    first = run()
    assert {name.partition("-")[0] for name in first[0]} > {"decode_edit", "pixels_to_ids", "ids_to_pixels", "shapes"}
    assert run() == first
    assert told == [True, False]


def test_a_warm_edit_traces_nothing_and_imports_nothing_that_takes_long(model, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "in.png")
    code = (
        "import sys\nfrom editmgt_jax.cli import main\nassert main(sys.argv[1:]) == 0\n"
        "from editmgt_jax.models.traces import traces\n"
        "foreign = {'transformers', 'torch', 'orbax', 'gradio', 'starlette', 'uvicorn', 'prometheus_client', 'openai'}\n"
        "print(sum(traces.values()), foreign & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, "edit", "--model", str(model), "--steps", "1"]
    command += ["--image", "in.png", "--instruction", "make the car red", "--output", "out.png"]
    environment = os.environ | {"EDITMGT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    run = lambda: subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert not run().stdout.startswith("0")
    assert run().stdout == "0 set()\n"


def test_no_cache_folder_is_only_a_note(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDITMGT_CACHE", str(tmp_path / "file" / "cache"))
    shared.use_disk_cache()
    assert "note: compiled programs are not cached" in capsys.readouterr().err


# ---- the others


def test_scenes_writes_a_grid(folder):
    assert cli.main("scenes --preview grid.png --size 32 --rows 1 --columns 2 --split heldout".split()) == 0
    assert files(folder) == ["grid.png", "in.png"]


def test_scenes_with_a_bad_split(folder, capfd):
    assert cli.main("scenes --preview grid.png --split test".split()) == 2
    assert "split must be one of" in capfd.readouterr().err
    assert files(folder) == ["in.png"]


def test_evaluate_calls_the_protocol(monkeypatch, folder):
    calls = []

    def evaluate_scenes(
        model, output, gallery, count, batch_size, seeds, split, objects, workdir, size, lpips, process, **settings
    ):
        calls.append((model, count, split, settings))

    monkeypatch.setattr("editmgt_jax.evaluation.protocols.scenes.evaluate_scenes", evaluate_scenes)
    assert cli.main("evaluate scenes --count 5 --hold-threshold 0.2".split()) == 0
    assert calls == [(None, 5, "heldout", {"hold_threshold": 0.2})]
