"""The commands on the pages: short ones are run, long ones are run nightly with less to do, and all are parsed.

A command is a line of a fenced block marked `bash`, with its continuation lines. `&&` separates two commands. A command that is
on no list below is run.
"""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from editmgt_jax import cli
from editmgt_jax.ablation.config import ABLATIONS
from editmgt_jax.cli import make_parser, shared
from editmgt_jax.data.scenes.source import SceneConfig, SceneSource
from editmgt_jax.training.config import RUNS
from editmgt_jax.training.config_files import load_config

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "launch" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]

# Not run: part of a command -> what it needs.
NEEDS = {
    "MODEL": "a full-size model",
    "RUN": "a finished training run",
    "BASE": "a text-to-image model",
    "LORA": "a LoRA",
    "CrispEdit-2M": "the data set",
    "tokens_a": "several token sets",
    "configs/stage": "data and weights of full size",
    "vq_128": "a GPU and the weights of the perceptual loss",
    "runs/mgt_128": "a GPU",
    "benchmarks/gpu.py": "a GPU",
    "benchmarks/tpu_": "libtpu",
    "compile-check": "libtpu; tests/test_compile_ahead.py compiles a small run",
    "benchmarks/decode_steps.py": "an hour",
    "benchmarks/serving.py": "minutes; tests/test_serving.py asks a server",
    "editmgt serve": "a signal to end; tests/test_serving.py starts it",
    "RESULT": "a file of the page; tests/test_recipes.py repeats one",
    "benchmarks/loading.py": "a full-size model",
    "make-random": "the disk space of a full-size model",
    "campaigns/kill.py": "an hour; tests/test_processes.py runs a short campaign",
    "launch/pod.py": "Cloud TPU; tests/test_launch.py has stand-ins",
    "gcloud": "Google Cloud",
    "docker": "Docker, and a registry of images",
    "kubectl": "a cluster",
    "xpk": "a cluster",
    "pip": "a network; .ci/run installs",
    "venv": "a network; .ci/run installs",
    "pytest": "these are the tests",
    "ruff": ".ci/run runs it",
    "lpips": "a network",
    "runs/one_step": "two evaluations that need a network",
}
# Run nightly: beginning of a command -> what is added to it there, so that it does little.
SMALL_RUN = "--config.steps=2 --config.batch_size=8 --config.eval_batches=1 --config.sample_edits=0"
SLOW = {
    "editmgt train": SMALL_RUN,
    "editmgt export": "",
    "editmgt edit --model my_model": "",
    "editmgt edit --lora my_lora": "",
    "editmgt edit --program": "",
    "editmgt tokenize --config": "--examples 64",
    "editmgt evaluate": "--count 8",
    "editmgt ablate run": "--config.examples.count=4 --config.record.chunk=4 --config.record.seeds=(0,) --config.decode.count=2 "
    "--config.decode.seeds=(0,) --config.decode.interventions=() --config.score.sets=('singles',)",
    "editmgt ablate score": "",
    "editmgt ablate decode": "--config.examples.count=4 --config.record.chunk=4 --config.record.seeds=(0,) --config.decode.count=2 "
    "--config.decode.seeds=(0,)",
    "editmgt ablate search": "",
    "editmgt report": "",
    "python benchmarks/forward.py": "--size 256 --blocks 1 1 --text 32",
    "python benchmarks": "",
    "python tests/goldens.py": "",
}
ALWAYS = {"editmgt prepare": "--workers 1"}  # the same, for commands that are run each time
# Flags in the text of pages that are other programs'.
OTHER_FLAGS = {"--runner", "--xla_force_host_platform_device_count", "--xla_backend_optimization_level", "--preload"}


def commands(page):
    """The commands of a page, in order, with shell variables of their block replaced."""
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        variables = {}
        for line in block.replace("\\\n", " ").splitlines():
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            words = shlex.split(line, comments=True)
            if len(words) == 1 and re.fullmatch(r"[A-Z]+=\S+", words[0]):
                variables.update([words[0].split("=", 1)])
                continue
            while "&&" in words:
                yield words[: words.index("&&")]
                words = words[words.index("&&") + 1 :]
            if words:
                yield words[3:] if words[0] == "taskset" else words


def needed(words) -> str | None:
    """What a command needs that tests do not have."""
    line = " ".join(words)
    return next((need for part, need in NEEDS.items() if part in line), None)


def added(table, words) -> list[str] | None:
    line = " ".join(words)
    return next((more.split() for beginning, more in table.items() if line.startswith(beginning)), None)


ALL = [pytest.param(words, id=f"{page.name}: {' '.join(words)}"[:110]) for page in PAGES for words in commands(page)]


# ---- parsed


def check(words) -> None:
    """Errors: SystemExit of a parser, ConfigError, AssertionError."""
    program, *arguments = words
    if program == "editmgt":
        check_editmgt(arguments)
    elif program == "python" and arguments[0] == "launch/pod.py":
        args = load("launch/pod.py").make_parser().parse_args(arguments[1:])
        if hasattr(args, "arguments"):
            check_editmgt(args.arguments if args.command == "run" else ["train", *args.arguments])
    elif program == "python" and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1])
    elif program == "python":
        source = (ROOT / arguments[0]).read_text()
        flags = [argument for argument in arguments if argument.startswith("--")]
        assert not [flag for flag in flags if f'"{flag}"' not in source]
    elif program == "pip":
        extras = re.findall(r"\[(\w+)\]", " ".join(arguments))
        assert all(f'"{extra}": ' in (ROOT / "setup.py").read_text() for extra in extras)
    elif program == "pytest":
        assert all((ROOT / argument).exists() for argument in arguments if argument.startswith("tests/"))
    else:
        assert program in ("ruff", "gcloud", "docker", "kubectl", "sed", "xpk", "tfds", "python3", "."), (
            f"a new program: {program}"
        )


def check_editmgt(arguments) -> None:
    args, extra = make_parser().parse_known_args(arguments)
    assert not extra or args.takes_overrides, extra
    if arguments[0] == "supervise":
        assert args.command[0] == "editmgt"
        check_editmgt(args.command[1:])
    elif arguments[0] == "prepare":
        assert all(flag.split("=")[0] in OTHER_FLAGS for flag in extra)
    elif getattr(args, "config", None):
        load_config(ROOT / args.config, extra, ABLATIONS if arguments[0] == "ablate" else RUNS)


def load(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("words", ALL)
def test_each_command_is_parsed(words, capsys):
    try:
        check(words)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)


def test_a_renamed_option_is_found():
    for wrong in ("edit --picture in.png", "train --config configs/scenes_vq.py --workdir r --config.step=3"):
        with pytest.raises((SystemExit, ValueError)):
            check(["editmgt", *wrong.split()])


def options(parser) -> set[str]:
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action.choices, dict):
            found.update(*(options(choice) for choice in action.choices.values()))
    return found


def test_flags_named_in_the_text_exist():
    known = options(make_parser()) | options(load("launch/pod.py").make_parser()) | OTHER_FLAGS
    known |= {
        flag
        for path in [*ROOT.glob("benchmarks/*.py"), ROOT / "tests" / "compile_gate.py"]
        for flag in re.findall(r'"(--[a-z-]+)"', path.read_text())
    }
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        code = " ".join(re.findall(r"`([^`]+)`", text))
        flags = {flag for flag in re.findall(r"(?<!\S)--[a-z][a-z_-]*", code) if "config" not in flag}
        assert flags <= known, (page.name, flags - known)


def test_links_lead_somewhere():
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), (page.name, link)


def test_the_readme_is_short_and_links_every_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert not [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in text]


# ---- run


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What the commands read: pictures, configs, the default model, and raw pairs in two layouts."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("examples", "configs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("editmgt_jax", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    scenes = SceneSource(SceneConfig(size=128))
    for name, columns in (("my_pairs", ("source", "target")), ("before_and_after", ("before", "after"))):
        (folder / name).mkdir()
        lines = []
        for index in range(12):
            pair = scenes[index]
            files = {column: f"{index}_{column}.png" for column in columns}
            for side, file in zip(("source", "target"), files.values(), strict=True):
                Image.fromarray(np.asarray(pair[side], np.uint8)).save(folder / name / file)
            lines.append(json.dumps(files | {"instruction": pair["instruction"]}))
        (folder / name / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder


DONE = set()  # commands that have run in the folder: two pages may show the same


def run(words, more) -> None:
    """Errors: AssertionError with what the command printed is left to pytest's capture."""
    line = " ".join(words)
    if line in DONE:
        return
    DONE.add(line)
    print(f"$ {line} {' '.join(more)}")
    if words[0] == "editmgt":
        assert cli.main([*words[1:], *more]) == 0, line
    else:
        assert words[0] == "python", f"cannot run {line}"
        subprocess.run([sys.executable, *words[1:], *more], check=True, timeout=1200)


@pytest.fixture
def inside(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(shared, "use_disk_cache", lambda: None)  # the tests have one


def fast(page) -> list:
    return [words for words in commands(page) if needed(words) is None and added(SLOW, words) is None]


@pytest.mark.parametrize("page", [page for page in PAGES if fast(page)], ids=lambda page: page.name)
def test_short_commands_run(page, inside):
    for words in fast(page):
        run(words, added(ALWAYS, words) or [])


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_long_commands_run_with_little_to_do(page, inside):
    for words in commands(page):
        if needed(words) is None:
            run(words, added(SLOW, words) or added(ALWAYS, words) or [])


@pytest.mark.parametrize("page", [ROOT / "docs" / "edit.md"], ids=lambda page: page.name)
def test_python_on_the_pages_runs(page, inside):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, page.name, "exec"), {})
