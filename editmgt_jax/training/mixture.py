"""What training data is mixed of: folders of token records and categories, with weights, as values and as texts. No jax."""

import dataclasses
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from editmgt_jax.training.declare import Misfit, is_text


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of token records in a mixture. `weight` multiplies how often its records come."""

    path: str
    weight: float = 1.0


def _weight(value, lowest) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise Misfit from None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not lowest <= value < float("inf"):
        raise Misfit
    return float(value)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def read_folders(value: Any) -> tuple[Folder, ...]:
    """'runs/a:3,runs/b', or ({'path': 'runs/a', 'weight': 3.0}, {'path': 'runs/b'}) -> folders. Errors: Misfit."""
    words = "folders with weights above 0, ({'path': ..., 'weight': ...},) or 'FOLDER:WEIGHT,FOLDER'"
    try:
        return tuple(map(_folder, _parts(value) if is_text(value) else _sequence(value)))
    except Misfit:
        raise Misfit(words) from None


def _sequence(value):
    if not isinstance(value, (list, tuple)):
        raise Misfit
    return value


def _folder(given) -> Folder:
    if isinstance(given, Folder):
        return given
    if isinstance(given, str):
        path, colon, weight = given.rpartition(":")
        given = {"path": path, "weight": weight} if colon and "/" not in weight else {"path": given}
    if not isinstance(given, Mapping) or not given.keys() <= {"path", "weight"}:
        raise Misfit
    path, weight = given.get("path"), _weight(given.get("weight", 1.0), 0.0)
    if not is_text(path) or not path or not weight:
        raise Misfit
    return Folder(path, weight)


def write_folders(folders: Iterable[Folder]) -> list[dict]:
    """What `read_folders` reads, in values that JSON can hold."""
    return [dataclasses.asdict(folder) for folder in folders]


def read_weights(value: Any) -> tuple[tuple[str, float], ...]:
    """'style:0.5,add:2' or {'style': 0.5, 'add': 2} -> (('add', 2.0), ('style', 0.5)). Errors: Misfit."""
    words = "weights of at least 0, {'CATEGORY': WEIGHT} or 'CATEGORY:WEIGHT,CATEGORY:WEIGHT'"
    try:
        if is_text(value):
            pairs = [part.rpartition(":")[::2] for part in _parts(value)]
        elif isinstance(value, Mapping):
            pairs = list(value.items())
        else:
            pairs = [tuple(_sequence(pair)) for pair in _sequence(value)]
        found = tuple(sorted((name, _weight(weight, 0.0)) for name, weight in pairs if is_text(name) and name))
    except (Misfit, ValueError):
        raise Misfit(words) from None
    if len(found) != len(pairs) or len(dict(found)) != len(found):
        raise Misfit(words)
    return found
