"""Raw edit pairs from parquet files, folders, TFDS or procedural scenes.

A source consists of parts. A part is small and picklable, and any machine can read it. It yields raw pairs lazily, with encoded
pictures. An entry that is no pair is yielded with the reason.

Source  the columns of CrispEdit-2M, AnyEdit and ImgEdit; the folders of MagicBrush
"""

from pathlib import Path

from editmgt_jax.data.prepare.sources.folders import jsonl_parts, magicbrush_parts
from editmgt_jax.data.prepare.sources.parquet import parquet_parts
from editmgt_jax.data.prepare.sources.parts import COLUMNS, OPTIONAL, Part, RawPair, SourceError, category_name
from editmgt_jax.data.prepare.sources.scenes import scene_parts
from editmgt_jax.data.prepare.sources.tfds import tfds_parts
from editmgt_jax.files import mounted

__all__ = ["Part", "RawPair", "SourceError", "category_name", "open_source"]


def _is_table(path: Path) -> bool:
    """Whether it is a file that a user sees: a folder `train.parquet` holds others, and systems leave `._train.parquet`."""
    return path.is_file() and not path.name.startswith((".", "_"))


def open_source(where: str | Path, mapping: dict[str, str] | None = None, resolution: int = 1024) -> list[Part]:
    """Lists the parts of a source, in an order that depends on names only.

    Args:
      where: a folder (with *.parquet anywhere below it; with pairs.jsonl; or with MagicBrush's edit_turns.json or
        edit_sessions.json), one parquet file, `tfds:NAME_OR_FOLDER[:SPLIT]`, or `scenes:COUNT[:SEED]`.
      mapping: {"source": column, "target": ..., "instruction": ..., "mask": ..., "category": ...} where names differ from
        those of `COLUMNS`.
      resolution: of the scenes, in pixels.
    Errors: SourceError, FileNotFoundError.
    """
    mapping = mapping or {}
    if unknown := sorted(mapping.keys() - COLUMNS.keys() - OPTIONAL.keys()):
        raise SourceError(f"--column takes {', '.join([*COLUMNS, *OPTIONAL])}; got {unknown}")
    kind, _, rest = str(where).partition(":")
    if kind == "scenes":
        return scene_parts(rest, resolution)
    if kind == "tfds":
        return tfds_parts(rest, mapping)
    path = mounted(where, "a source")
    if path.is_file() and path.suffix == ".parquet":
        return parquet_parts(path.parent, [path], mapping)
    if not path.is_dir():
        raise FileNotFoundError(
            f"a source must be a folder, a parquet file, tfds:NAME or scenes:COUNT; {where} does not exist"
        )
    if (path / "pairs.jsonl").is_file():
        return jsonl_parts(path, mapping)
    for name in ("edit_turns.json", "edit_sessions.json"):
        if (path / name).is_file():
            return magicbrush_parts(path, path / name)
    files = sorted(file for file in path.rglob("*.parquet") if _is_table(file))
    if not files:
        raise SourceError(
            f"a folder of pairs must have *.parquet, pairs.jsonl, edit_turns.json or edit_sessions.json; {path} has none"
        )
    return parquet_parts(path, files, mapping)
