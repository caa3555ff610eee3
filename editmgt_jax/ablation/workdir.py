"""The work directory of an ablation: its config, and what a config that goes on may change."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from editmgt_jax.ablation.config import ABLATIONS, AblationConfig
from editmgt_jax.errors import UserError
from editmgt_jax.files import mounted, read_json, write_json, write_text
from editmgt_jax.training import declare
from editmgt_jax.training.config import read_config
from editmgt_jax.training.declare import ConfigError

CONFIG = "config.json"


def is_ablation(folder: str | Path) -> bool:
    """Whether a folder is the work directory of an ablation."""
    path = Path(folder) / CONFIG
    return path.is_file() and read_json(path, dict).get("task") in ABLATIONS


def read_workdir(workdir: str | Path) -> AblationConfig:
    """The config that an ablation was last called with. Errors: FileNotFoundError, ConfigError."""
    path = mounted(workdir, "an ablation") / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"an ablation is a folder with {CONFIG}, from `editmgt ablate record`; there is no {path}"
        )
    try:
        return read_config(read_json(path, dict), ABLATIONS)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def open_workdir(workdir: str | Path, config: AblationConfig | None) -> tuple[AblationConfig, Path]:
    """The config to use in a work directory, and its path: what is given, or else what is there.

    Errors: ConfigError when a key differs that belongs to what is recorded already; FileNotFoundError.
    """
    folder = mounted(workdir, "an ablation")
    if config is None:
        return read_workdir(folder), folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--workdir must be a folder; {folder} is a file")
    if (folder / "records").is_dir() and (folder / CONFIG).is_file():
        fixed, _ = declare.changes(read_workdir(folder), config)
        if fixed:
            raise ConfigError(
                f"the records in {folder} were begun with another config: {'; '.join(fixed)}. Take a new workdir"
            )
    return config, folder


def write_workdir(folder: Path, config: AblationConfig) -> None:
    """Writes what `read_workdir` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, config.to_dict(), indent=2)


@contextlib.contextmanager
def unchanged_if_refused(folder: Path) -> Iterator[None]:
    """A UserError leaves the config in a work directory as it was before."""
    path = folder / CONFIG
    before = path.read_text() if path.is_file() else None
    try:
        yield
    except UserError:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            write_text(path, before)
        raise
