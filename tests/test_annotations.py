"""Public functions have type annotations and docstrings; functions and files are short. Read off the sources."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "editmgt_jax"
LONGEST_FUNCTION, LONGEST_FILE = 60, 400


def offences(room: str, name: str, source: str) -> set[str]:
    """'ROOM: PROBLEM: NAME' of each offence of one file."""
    found = set()
    if len(source.splitlines()) > LONGEST_FILE:
        found.add(f"{room}: file over {LONGEST_FILE} lines: {name}")

    def visit(node, prefix, public):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                visit(child, f"{prefix}{child.name}.", public and not child.name.startswith("_"))
            elif isinstance(child, ast.If | ast.Try | ast.With):
                visit(child, prefix, public)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                label = f"{prefix}{child.name}"
                if child.end_lineno - child.lineno >= LONGEST_FUNCTION:
                    found.add(f"{room}: function over {LONGEST_FUNCTION} lines: {label}")
                if public and not child.name.startswith("_"):
                    found.update(f"{room}: {problem}: {label}" for problem in problems(child, method=bool(prefix)))

    visit(ast.parse(source), "", True)
    return found


def problems(function, method: bool) -> list[str]:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    if method and arguments and arguments[0].arg in ("self", "cls"):
        arguments = arguments[1:]
    arguments += [more for more in (function.args.vararg, function.args.kwarg) if more is not None]
    found = []
    if function.returns is None or any(argument.annotation is None for argument in arguments):
        found.append("without annotations")
    if ast.get_docstring(function) is None:
        found.append("without a docstring")
    return found


def all_offences() -> set[str]:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE)
        found |= offences(name.parts[0].removesuffix(".py"), name.name, path.read_text())
    return found


def test_the_package_has_none():
    found = sorted(all_offences())
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source, problem",
    [
        ('def f(x: int) -> int:\n    """Doc."""\n', None),
        ('def f(x) -> int:\n    """Doc."""\n', "without annotations: f"),
        ('def f(*, x=1) -> int:\n    """Doc."""\n', "without annotations: f"),
        ('def f(x: int):\n    """Doc."""\n', "without annotations: f"),
        ('class A:\n    def f(self) -> int:\n        """Doc."""\n', None),
        ("class A:\n    def f(self) -> int: ...\n", "without a docstring: A.f"),
        ("def _f(x): ...\n", None),
        ("class _A:\n    def f(self): ...\n", None),
        ("def _f():\n" + 59 * "    x = 1\n", None),
        ("def _f():\n" + 60 * "    x = 1\n", "function over 60 lines: _f"),
        (400 * "x = 1\n", None),
        (401 * "x = 1\n", "file over 400 lines: a.py"),
    ],
)
def test_each_offence_is_seen(source, problem):
    assert offences("room", "a.py", source) == (set() if problem is None else {f"room: {problem}"})
