"""Config files of runs: a Python file with `get_config() -> ConfigDict`, and overrides of its keys. No jax.

Shipped ones are the modules of `editmgt_jax.configs`, which any config file may import. The files of one folder import each
other, too, as `from FOLDER import NAME`: while one runs, the folder above is importable.
"""

import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from editmgt_jax.files import real
from editmgt_jax.training import declare
from editmgt_jax.training.config import RUNS, TrainConfig, read_config, run_type
from editmgt_jax.training.declare import ConfigError

PREFIX = "--config."
SHIPPED = Path(__file__).parents[1] / "configs"


def load_config(config: str | Path, overrides: Sequence[str] = (), kinds: Mapping[str, type] = RUNS) -> Any:
    """Runs a file's `get_config`, applies overrides, such as '--config.steps=100', in turn, and checks every key.

    Args:
      config: path of a config file, or the name of a shipped one, such as 'scenes_mgt'.
      kinds: {task: class}, the kinds of config that are meant: those of training runs, or of `ablation/config.py`.
    Returns: the typed config, of one of these classes.
    Errors: FileNotFoundError, ConfigError.
    """
    values = plain(_run(_find(config)))
    if not isinstance(values, dict):
        raise ConfigError(f"get_config() must return a ConfigDict; {config} gives a {type(values).__name__}")
    return read_config(overridden(values, overrides, kinds), kinds)


def overridden(values: dict, overrides: Sequence[str], kinds: Mapping[str, type] = RUNS) -> dict:
    """Plain values with overrides, such as '--config.steps=100', applied in turn. Errors: ConfigError."""
    for text in overrides:
        name, equals, value = text.partition("=")
        if not name.startswith(PREFIX) or not equals:
            raise ConfigError(f"an override must read {PREFIX}KEY=VALUE; got {text!r}")
        name = name.removeprefix(PREFIX)
        declare.override(run_type(values | {"task": value} if name == "task" else values, kinds), values, name, value)
    return values


def checked(config: ConfigDict) -> TrainConfig:
    """The typed config of a ConfigDict, as `get_config` gives it. Errors: ConfigError."""
    return read_config(plain(config))


def plain(value: Any) -> Any:
    """A ConfigDict as a dict, and so within it."""
    if isinstance(value, Mapping) or hasattr(value, "to_dict") and hasattr(value, "items"):
        return {name: plain(one) for name, one in value.items()}
    return tuple(map(plain, value)) if isinstance(value, (list, tuple)) else value


def shipped() -> list[str]:
    """Names of the configs in the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.py") if path.stem != "__init__")


def _find(config) -> Path:
    path = real(config)
    if path.is_file():
        return path
    if str(config) in shipped():
        return SHIPPED / f"{config}.py"
    known = f", or one of {', '.join(shipped())}" if Path(config).name == str(config) else ""
    raise FileNotFoundError(f"a config must be a Python file{known}; there is none at {path}")


def _run(path):
    """What the file's `get_config` returns."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"a config must be a Python file (.py); got {path}")
    module = importlib.util.module_from_spec(spec)
    with _importable(path.parent):
        try:
            spec.loader.exec_module(module)
            if not callable(getattr(module, "get_config", None)):
                raise ConfigError(f"a config file must define get_config(); {path} does not")
            return module.get_config()
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:  # the file is the user's, and any kind of error may come of it
            raise ConfigError(f"the config {path} {_failure(path, error)}") from error


def _failure(path, error) -> str:
    """'cannot be imported: ...' or 'fails in line 7: ...'"""
    text = " ".join(str(error).split())
    if isinstance(error, (ImportError, SyntaxError)):
        return f"cannot be imported: {text}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f" in line {lines[-1]}" if lines else ""
    return f"fails{where}: {type(error).__name__}: {text}"


@contextlib.contextmanager
def _importable(folder):
    """`folder` as a top-level package, and no other of its name; but installed packages keep their names."""

    def forget():
        names = [name for name in sys.modules if name.split(".")[0] == folder.name]
        return {name: sys.modules.pop(name) for name in names}

    if getattr(sys.modules.get(folder.name), "__file__", None):
        yield
        return
    others = forget()
    sys.path.insert(0, str(folder.parent))
    try:
        yield
    finally:
        sys.path.remove(str(folder.parent))
        forget()
        sys.modules.update(others)
