"""Models on the Hugging Face hub: fetched by name, saved for it, published."""

import os
import re
import tempfile
from pathlib import Path
from typing import TypedDict

from editmgt_jax.errors import UserError, one_line, shown
from editmgt_jax.files import copy_files, new_folder
from editmgt_jax.weights.cards import complete

NAME = r"\w([\w.-]*\w)?/\w([\w.-]*\w)?"
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "README.md")
MESSAGE = "Upload a model of editmgt_jax"


class HubOptions(TypedDict, total=False):
    """How a model is fetched.

    revision          branch, tag or commit; the main branch by default
    cache_dir         folder of fetched files; the hub library's own by default
    token             of a user, for private models; True for the one that is stored on this machine
    local_files_only  whether only what was fetched before is used
    """

    revision: str | None
    cache_dir: str | os.PathLike | None
    token: str | bool | None
    local_files_only: bool


_KINDS = {"revision": (str,), "cache_dir": (str, os.PathLike), "token": (str, bool), "local_files_only": (bool,)}


def check_options(**options: object) -> None:
    """Errors: UserError for what is no option of fetching, or of another type, also where nothing is fetched."""
    if unknown := sorted(options.keys() - HubOptions.__annotations__.keys()):
        known = ", ".join(HubOptions.__annotations__)
        raise UserError(
            f"a model is read with dtype, strict, batch_size, lora, variant, program, {known}; got {unknown}"
        )
    for name, kinds in _KINDS.items():
        if not isinstance(options.get(name), (*kinds, type(None))):
            raise UserError(f"{name} must be {' or '.join(kind.__name__ for kind in kinds)}; got {options[name]!r}")


def fetch(name: str, **options: object) -> Path:
    """The folder with the files of a model, which are fetched unless they are there.

    Args:
      options: those of `HubOptions`.
    Errors: FileNotFoundError for what is no name, or cannot be fetched.
    """
    if not re.fullmatch(NAME, name) or "--" in name or ".." in name:
        raise FileNotFoundError(
            f"a model must be a local folder or a name on the hub such as WeiChow/EditMGT; there is no folder "
            f"{shown(name)}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES), **options))
    except Exception as error:  # noqa: BLE001  (its HTTP library, its parser and itself raise many kinds)
        raise FileNotFoundError(
            f"there is no folder {name}, and it cannot be fetched from the Hugging Face hub: {_said(error)}"
        ) from error


def save(source: str | Path, output: str | Path) -> None:
    """Writes a copy of a model directory, with a model index and a card if it has none. Errors: FileExistsError, UserError."""
    with new_folder(output, source) as target:
        copy_files(source, target)
        complete(target, name=Path(output).name)


def push(
    source: str | Path,
    name: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = MESSAGE,
) -> str:
    """Publishes a model directory under a name, which is made if need be. -> address of the commit

    Args:
      revision: branch, made if need be; the main one by default.
    Errors: UserError for what is no name, and with what the hub says.
    """
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise UserError(f"a model is published under a name such as user/model; got {name!r}")
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        _link_files(Path(source), Path(folder))
        complete(Path(folder), name=name)
        try:
            api = HfApi(token=token, library_name="editmgt_jax")
            api.create_repo(name, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(name, branch=revision, exist_ok=True)
            commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, revision=revision)
        except Exception as error:  # noqa: BLE001  (its HTTP library, its parser and itself raise many kinds)
            raise UserError(f"{name} cannot be published on the Hugging Face hub: {_said(error)}") from error
    return str(commit.commit_url)


def _link_files(source: Path, target: Path) -> None:
    """The files of a folder as links, which take no space."""
    for path in source.rglob("*"):
        if path.is_file():
            link = target / path.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())


def _said(error: Exception) -> str:
    """The first sentences of an error, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(" ".join(lines[:3]))[:300] or type(error).__name__
