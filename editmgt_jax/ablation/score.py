"""The job that scores every setting of a config: tables in RUN/scores, one entry for each example, seed and setting.

    RUN/scores/settings.parquet      what the number of a setting means
    RUN/scores/part-00000.parquet    the scores of some settings, all examples and seeds

Each process writes whole files; one that is there is not written again.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from editmgt_jax.ablation.choices import Part, parts
from editmgt_jax.ablation.config import AblationConfig
from editmgt_jax.ablation.records import Records
from editmgt_jax.ablation.scoring import Scored, Scorer
from editmgt_jax.errors import UserError
from editmgt_jax.files import replacing, write_json
from editmgt_jax.training import processes

FOLDER, SETTINGS, DONE_BY = "scores", "settings.parquet", "scored.json"


def score(config: AblationConfig, workdir: Path, progress: Callable[[Iterable], Iterable] = iter) -> Path:
    """Scores all that `config.score` asks for from the records in a work directory. -> the folder of the tables

    Args:
      progress: wraps the parts that this process scores, such as tqdm.
    Errors: UserError, RecordError.
    """
    records = Records.open(workdir / "records")
    every = parts(config.score, records.manifest, config.statistics.seed)
    folder = workdir / FOLDER
    with processes.first_then_others():
        if processes.is_first():
            _begin(folder, config, records, every)
    mine = [part for part in every if part.number % processes.count() == processes.number()]
    scorer = None
    for part in progress([part for part in mine if not _path(folder, part).exists()]):
        if scorer is None or scorer.view != part.view:
            scorer = Scorer(records, part.view)
        scored = scorer.score(part.sets, part.thresholds)
        write_table(_path(folder, part), _table(part, scored, records.manifest.seeds))
    processes.wait_for_all()
    return folder


def _path(folder: Path, part: Part) -> Path:
    return folder / f"part-{part.number:05d}.parquet"


def _begin(folder, config, records, every) -> None:
    """An empty folder, or the one that the same scores were begun in."""
    facts = [config.to_dict()["score"], config.statistics.seed, records.manifest.fingerprint, records.manifest.shape]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    marker = folder / DONE_BY
    if folder.exists() and (not marker.is_file() or json.loads(marker.read_text())["digest"] != digest):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"digest": digest})
    write_table(folder / SETTINGS, _columns_of([one.columns() for part in every for one in part.settings()]))


def _columns_of(entries: list[dict]) -> dict[str, list]:
    return {name: [entry[name] for entry in entries] for name in entries[0]}


def _table(part: Part, scored: Scored, seeds) -> dict[str, np.ndarray]:
    """Columns, sorted by setting, example and seed."""
    shape = next(iter(scored.columns.values())).shape  # [Z t n seeds]
    numbers = part.first + np.arange(shape[0] * shape[1]).reshape(*shape[:2], 1, 1)
    examples = np.arange(shape[2])[:, None]
    keys = {
        "setting": np.broadcast_to(numbers, shape).astype(np.int32),
        "example": np.broadcast_to(examples, shape).astype(np.int32),
        "seed": np.broadcast_to(np.array(seeds), shape).astype(np.int32),
        "chooses": np.broadcast_to(examples % 2 == 0, shape),
    }
    return {name: column.reshape(-1) for name, column in (keys | scored.columns).items()}


def arrow() -> tuple:
    """pyarrow and its parquet module. Errors: UserError when the extra is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("tables need pyarrow: pip install 'editmgt_jax[ablate]'") from error
    return pyarrow, pyarrow.parquet


def write_table(path: Path, columns: dict) -> None:
    """Writes a Parquet file at once: the same columns give the same bytes."""
    pyarrow, parquet = arrow()
    with replacing(path) as temporary:
        parquet.write_table(pyarrow.table(columns), temporary, compression="zstd", write_statistics=True)


def read_table(path: Path) -> dict[str, np.ndarray | list]:
    """The columns of a Parquet file; lists stay lists. Errors: UserError."""
    _, parquet = arrow()
    if not Path(path).is_file():
        raise UserError(f"a table must have been written: there is no {path}")
    table = parquet.read_table(path)
    return {
        name: column.to_pylist() if "list" in str(column.type) or "string" in str(column.type) else column.to_numpy()
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def read_settings(workdir: Path) -> list[dict]:
    """What the number of each setting means. Errors: UserError when nothing is scored."""
    path = Path(workdir) / FOLDER / SETTINGS
    if not path.is_file():
        raise UserError(f"an ablation needs scores, from `editmgt ablate score`; there is no {path}")
    columns = read_table(path)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def read_scores(workdir: Path, name: str) -> np.ndarray:
    """One measure of all settings. -> float32 [settings n seeds]. Errors: UserError when parts are missing."""
    folder, settings = Path(workdir) / FOLDER, read_settings(workdir)
    _, parquet = arrow()
    found = []
    for path in sorted(folder.glob("part-*.parquet")):
        table = parquet.read_table(path, columns=["setting", "example", "seed", name])
        columns = {column: table[column].to_numpy() for column in table.column_names}
        shape = [len(np.unique(columns[key])) for key in ("setting", "example", "seed")]
        found.append(columns[name].reshape(shape))
    if sum(map(len, found)) != len(settings):
        raise UserError(
            f"scores of {sum(map(len, found))} of {len(settings)} settings are in {folder}: go on with `editmgt ablate score`"
        )
    return np.concatenate(found)
