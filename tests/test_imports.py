"""Imports point one way: who may import whom is written here, and read off the sources."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "editmgt_jax"

BASE = {"config", "declarations", "files", "errors", "batching", "shapes", "executables", "locks"}
# Module or folder -> the modules and folders of this package that it may import, besides its own folder.
MAY_IMPORT = {
    "batching": set(),
    "config": {"declarations", "errors", "files"},
    "declarations": {"errors"},
    "errors": set(),
    "executables": {"files"},
    "files": {"errors", "locks"},
    "locks": {"errors"},
    "shapes": set(),
    "models": BASE,
    "images": BASE,
    "sampling": {*BASE, "models", "images"},
    "weights": {*BASE, "models"},
    "data": {*BASE, "images"},
    "training": {*BASE, "models", "images", "sampling", "weights", "data"},
    "configs": {"weights", "training", "ablation"},
    "pipeline": {*BASE, "models", "images", "sampling", "weights"},
    "report": {*BASE},
    "serving": {*BASE, "images", "sampling", "weights", "pipeline"},
    "evaluation": {*BASE, "report", "models", "images", "sampling", "weights", "data", "pipeline"},
    "ablation": {
        *BASE,
        "report",
        "models",
        "images",
        "sampling",
        "weights",
        "data",
        "pipeline",
        "evaluation",
        "training",
    },
}
FREE = {"__init__", "__main__", "cli"}  # import everything; nothing imports cli
WITHOUT_JAX = ("data", "images")  # but for the tokenizing job


def _sources():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield path, parts[0]


def _imported(path):
    """Full names of the modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path, owner", list(_sources()), ids=lambda value: str(value)[-40:])
def test_imports_point_one_way(path, owner):
    if owner in FREE:
        return
    assert owner in MAY_IMPORT, f"{owner} is new: say what it may import"
    for name in _imported(path):
        parts = name.split(".")
        if parts[0] == "editmgt_jax":
            assert parts[1] == owner or parts[1] in MAY_IMPORT[owner], f"{path.name} imports {name}"


def test_data_does_not_import_jax():
    for path, owner in _sources():
        if owner in WITHOUT_JAX and path.stem != "tokenize":
            assert not {name.split(".")[0] for name in _imported(path)} & {"jax", "flax"}, path


def test_the_page_of_the_architecture_names_what_exists():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"[\w/]+\.py", page))
    absent = [name for name in named if not any((root / name).is_file() for root in (PACKAGE, PACKAGE.parent))]
    assert named and not absent
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert not [folder for folder in folders if f"{folder}/" not in page]


def test_import_is_cheap():
    code = "import sys, editmgt_jax; assert not {'jax', 'PIL', 'numpy'} & set(sys.modules); editmgt_jax.ImageError"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
