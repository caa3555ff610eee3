"""Config files of runs: a Python file with `get_config() -> ConfigDict`, and overrides of its keys. No jax.

The files of one folder import each other as `from configs import base`: while they run, the folder above is importable.
"""

import ast
import contextlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from editmgt_jax.errors import UserError

PREFIX = "--config."


class ConfigError(UserError):
    """A config file or an override that cannot be used; names the key."""


def load_config(path, overrides: Sequence[str] = ()):
    """Runs the file's `get_config` and applies overrides, such as '--config.steps=100', in turn. -> ConfigDict"""
    path = Path(path).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"a config must be a Python file; there is none at {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"a config must be a Python file (.py); got {path}")
    module = importlib.util.module_from_spec(spec)
    with _importable(path.parent):
        try:
            spec.loader.exec_module(module)
        except (ImportError, SyntaxError) as error:
            raise ConfigError(f"cannot import the config {path}: {error}") from error
        if not callable(getattr(module, "get_config", None)):
            raise ConfigError(f"a config file must define get_config(); {path} does not")
        config = module.get_config()
    for override in overrides:
        _apply(config, override)
    return config


@contextlib.contextmanager
def _importable(folder):
    """`folder` as a top-level package, and no other of its name."""

    def forget():
        names = [name for name in sys.modules if name.split(".")[0] == folder.name]
        return {name: sys.modules.pop(name) for name in names}

    others = forget()
    sys.path.insert(0, str(folder.parent))
    try:
        yield
    finally:
        sys.path.remove(str(folder.parent))
        forget()
        sys.modules.update(others)


def _apply(config, override):
    name, equals, text = override.partition("=")
    if not name.startswith(PREFIX) or not equals:
        raise ConfigError(f"an override must read {PREFIX}KEY=VALUE; got {override!r}")
    name = name.removeprefix(PREFIX)
    current = _look_up(config, name)
    try:
        config.update_from_flattened_dict({name: text if isinstance(current, str) else _value(text)})
    except TypeError as error:
        raise ConfigError(
            f"config key {name} holds a {type(current).__name__}, such as {current!r}; it cannot become {text!r}"
        ) from error


def _look_up(config, name):
    """The value of a dotted key. Errors: ConfigError naming the keys there are."""
    value = config
    for part in name.split("."):
        keys = sorted(value.keys()) if hasattr(value, "keys") else []
        if part not in keys:
            raise ConfigError(f"no config key {name}: {part!r} is not one of {keys}")
        value = value[part]
    return value


def _value(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
