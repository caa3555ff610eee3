"""The outcomes of an evaluation as a Parquet file: the same outcomes give the same bytes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from editmgt_jax.errors import UserError
from editmgt_jax.evaluation.examples import check_extra
from editmgt_jax.files import replacing

FIRST = ("key", "group", "instruction", "output", "cluster", "skipped", "notes")


def plain(values: Any) -> Any:
    """Values for JSON: numpy's as Python's, NaN and infinity as None."""
    if isinstance(values, Mapping):
        return {str(name): plain(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [plain(value) for value in values]
    if isinstance(values, np.generic):
        values = values.item()
    if isinstance(values, float) and not math.isfinite(values):
        return None
    return values


def write(outcomes: Sequence[Mapping[str, Any]], path: Path, about: Mapping[str, str]) -> None:
    """Writes outcomes; a column that some outcomes lack is null there. `about` are the first columns, the same in every outcome."""
    check_extra("pyarrow")
    import pyarrow
    import pyarrow.parquet

    names = [*FIRST, *sorted({name for outcome in outcomes for name in outcome} - {*FIRST})]
    columns = {name: pyarrow.array([value] * len(outcomes), pyarrow.string()) for name, value in about.items()}
    for name in names:
        values = [outcome.get(name) for outcome in outcomes]
        columns[name] = pyarrow.array(values, _type(name, values))
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(columns), temporary, compression="zstd")


def _type(name, values):
    import pyarrow

    kinds = {type(value) for value in values if value is not None}
    if name in FIRST or str in kinds:
        return pyarrow.string()
    return pyarrow.bool_() if kinds == {bool} else pyarrow.float64()


def read(path: Path) -> list[dict[str, Any]]:
    """The outcomes of a file that `write` wrote. Errors: UserError, FileNotFoundError."""
    check_extra("pyarrow")
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise FileNotFoundError(f"an evaluation that is complete has {path.name}; there is none in {path.parent}")
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is no Parquet file of an evaluation: {error}") from error
