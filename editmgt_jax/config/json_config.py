"""Reading and writing of the released `config.json` files.

Keys that carry no weight are kept out of the dataclasses; unsupported values are errors, never ignored.
"""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Self

from editmgt_jax.errors import UserError
from editmgt_jax.files import parse_json, write_json

LARGEST = 10**7  # of a number in a config: no size of an architecture is near it


def require(condition: object, rule: str, got: object) -> None:
    """Errors: UserError with the rule and what came, unless the condition is true."""
    if not condition:
        raise UserError(f"{rule}; got {got!r}")


def _fits(value, kind) -> bool:
    """Whether a JSON value (lists as tuples) is of an annotated type."""
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(one, typing.get_args(kind)[0]) for one in value)
    if isinstance(kind, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(kind))
    if kind in (int, float):
        return (
            isinstance(value, (int, kind)) and not isinstance(value, bool) and abs(value) < 1e300
        )  # NaN is not, either
    return isinstance(value, kind)


class JSONConfig:
    """Shared reading and writing: fields are the released keys, spelt as released."""

    CLASS_NAME = ""
    MODEL_TYPES = ()  # what transformers calls it

    @classmethod
    def from_dict(cls, values: dict) -> Self:
        """Builds the config from released keys. Errors: UserError that names the key."""
        require(isinstance(values, dict), f"{cls.__name__} must be a JSON object", values)
        for key, allowed in (("_class_name", (cls.CLASS_NAME,)), ("model_type", cls.MODEL_TYPES)):
            if allowed and key in values:
                require(values[key] in allowed, f"{key} must be {' or '.join(allowed)}", values[key])
        values = cls._completed(values)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
        missing = sorted(required - values.keys())
        if missing:
            raise UserError(f"{cls.__name__} needs the config keys {missing}, which are missing; got {sorted(values)}")
        known = {name: value for name, value in values.items() if name in fields}
        cls._check_released(values)
        known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
        for name, value in known.items():
            kind = fields[name].type
            require(_fits(value, kind), f"{name} must be {getattr(kind, '__name__', kind)}", value)
            if kind is int and not name.endswith("_token_id") and not name.startswith("default_"):
                require(0 < value <= LARGEST, f"{name} must be positive, and at most {LARGEST}", value)
        return cls(**known)

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Reads `config.json` at `path`. Errors: FileNotFoundError, UserError naming the file."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"a model component needs its config.json; none at {path}")
        try:
            values = parse_json(path.read_text())
            return cls.from_dict(values)
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: {error}") from error

    def to_dict(self) -> dict:
        """The released keys, with `_class_name`."""
        return {"_class_name": self.CLASS_NAME} | dataclasses.asdict(self)

    def to_json(self, path: str | Path) -> None:
        """Writes what `from_json` reads."""
        write_json(path, self.to_dict(), indent=2, sort_keys=True)

    @classmethod
    def _completed(cls, values: dict) -> dict:
        """`values` with what absent keys mean in released files, where that is not our default."""
        return values

    @classmethod
    def _check_released(cls, values: dict) -> None:
        """Rejects released options this implementation does not have."""
