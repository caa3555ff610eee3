"""Decodes as files: one shape and choice of static settings, exported with jax.export for some platforms.

    MAGIC, a line of JSON (`Header`), the serialised program

The program takes the weights as inputs: it belongs to a model's architecture and types, and runs any weights of these.

Axes    as in `editmgt_jax.config`
"""

import dataclasses
import datetime
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from editmgt_jax import executables
from editmgt_jax.errors import UserError, is_of_memory
from editmgt_jax.files import parse_json, replacing
from editmgt_jax.models.mgt import MGT
from editmgt_jax.sampling.edit import TokenEdit, decode_edit
from editmgt_jax.sampling.request import Request
from editmgt_jax.sampling.settings import StaticSettings

MAGIC = b"editmgt decode 1\n"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
KEPT_DAYS = 180  # for which jax promises that newer versions run a program


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of its program.

    Attributes:
      jax: version that exported it; calling_convention: of jax.export; exported, expires: dates, YYYY-MM-DD. jax promises that its
        versions run the program until it expires; later ones may.
      model: fields of the transformer; static: the static settings; inputs: [shape, type] of the flat inputs, weights first.
      weights: how many of the inputs are weights; batch, grid, steps: B, [H, W], I; remasks: whether some of the steps remask.
    """

    jax: str
    calling_convention: int
    exported: str
    expires: str
    platforms: list[str]
    model: dict[str, str]
    static: dict[str, Any]
    weights: int
    batch: int
    grid: list[int]
    steps: int
    inputs: list[list]
    remasks: bool = False


def export_decode(
    path: str | Path, variables: dict, request: Request, mgt: MGT, static: StaticSettings, platforms: Sequence[str]
) -> Header:
    """Writes the decode of requests of one shape to a file. Errors: UserError for an unknown platform; OSError.

    Args:
      request: its values do not matter, but for their shapes and types.
    """
    if unknown := sorted(set(platforms) - set(PLATFORMS)):
        raise UserError(f"platforms are {', '.join(PLATFORMS)}; got {', '.join(unknown)}")
    numbers = _with_key_data(request)
    leaves, tree = jax.tree.flatten((variables, numbers))
    has_keys = numbers is not request

    @jax.jit
    def flat(*leaves):
        variables, request = tree.unflatten(leaves)
        if has_keys:
            request = request._replace(keys=jax.random.wrap_key_data(request.keys))
        return jax.tree.leaves(decode_edit(variables, request, mgt=mgt, static=static))

    exported = export.export(flat, platforms=list(platforms))(*(_shape(x) for x in leaves))
    today = datetime.date.today()
    header = Header(
        jax=jax.__version__,
        calling_convention=exported.calling_convention_version,
        exported=today.isoformat(),
        expires=(today + datetime.timedelta(days=KEPT_DAYS)).isoformat(),
        platforms=list(exported.platforms),
        weights=len(jax.tree.leaves(variables)),
        **_described(leaves, request, mgt, static),
    )
    with replacing(path) as temporary:
        line = json.dumps(dataclasses.asdict(header)).encode()
        temporary.write_bytes(MAGIC + line + b"\n" + bytes(exported.serialize()))
    return header


class ExportedDecode:
    """A decode from a file; called like `decode_edit`, it gives the same tokens.

    Errors: FileNotFoundError; UserError for another file, one of a jax that is too far from this one, or other platforms.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        content = self.path.read_bytes()
        if not content.startswith(MAGIC):
            raise UserError(f"a program must be a file of `editmgt export-decode`; got {path}")
        line, _, program = content.removeprefix(MAGIC).partition(b"\n")
        try:
            self.header = Header(**parse_json(line))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged, or of another version of editmgt: export it again") from error
        self._check_jax()
        try:
            self._exported = export.deserialize(bytearray(program))
        except Exception as error:  # noqa: BLE001  (a damaged program raises errors of many kinds)
            if is_of_memory(error):
                raise
            first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(f"{path} cannot be read, export it again: {first_line}") from error
        self._program = _program_of(self._exported, executables.digest(content))

    def __call__(self, variables: dict, request: Request, mgt: MGT, static: StaticSettings) -> TokenEdit:
        """`decode_edit(variables, request, mgt, static)`. Errors: UserError if the program is not of this kind of decode."""
        leaves = jax.tree.leaves((variables, _with_key_data(request)))
        self._check(_described(leaves, request, mgt, static))
        found = iter(executables.run(self._program, *leaves))
        first, recorded = [next(found) for _ in range(4)], [next(found) if static.record else None for _ in range(2)]
        return TokenEdit(*first, *recorded, next(found))

    def _check_jax(self):
        header = self.header
        lowest = export.minimum_supported_calling_convention_version
        highest = export.maximum_supported_calling_convention_version
        if not lowest <= header.calling_convention <= highest:
            raise UserError(
                f"{self.path} was exported by jax {header.jax} with calling convention {header.calling_convention}; jax "
                f"{jax.__version__} runs {lowest} to {highest}: export it again"
            )
        if _version(header.jax) > _version(jax.__version__):
            raise UserError(
                f"{self.path} was exported by jax {header.jax}, and this is jax {jax.__version__}: a program needs the version of "
                "jax that exported it, or a newer one"
            )
        if datetime.date.today().isoformat() > header.expires:
            warnings.warn(
                f"{self.path} was exported by jax {header.jax}, whose promise to run it ended on {header.expires}: export it again",
                stacklevel=3,
            )
        platform = jax.default_backend()
        names = {"gpu": ("cuda", "rocm")}.get(platform, (platform,))
        if not set(names) & set(header.platforms):
            raise UserError(
                f"{self.path} was exported for {', '.join(header.platforms)}, and this is a {platform}: export it for "
                f"{' or '.join(names)} (--platforms)"
            )

    def _check(self, asked: dict):
        header = dataclasses.asdict(self.header)
        told = {"model": "is of a model with", "static": "was exported for the settings"}
        for part, words in told.items():
            ours, theirs = (json.loads(json.dumps(x[part])) for x in (header, asked))
            names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
            if names:
                ours, theirs = (", ".join(f"{name} {x.get(name)}" for name in names) for x in (ours, theirs))
                raise UserError(f"{self.path} {words} {ours}; got {theirs}: export a program for these")
        sizes = ("batch", "grid", "steps", "remasks")
        if any(header[name] != asked[name] for name in sizes):
            ours, theirs = (_size(x) for x in (header, asked))
            raise UserError(f"{self.path} decodes {ours}; got {theirs}: export a program for these")
        if header["inputs"] != json.loads(json.dumps(asked["inputs"])):
            raise UserError(
                f"{self.path} has other inputs than this version of editmgt, or other weights: export it again"
            )


def _size(x) -> str:
    remasks = ", some of which remask" if x["remasks"] else ""
    return f"{x['batch']} picture(s) of {x['grid'][1]} x {x['grid'][0]} tokens in {x['steps']} steps{remasks}"


def _described(leaves, request, mgt, static) -> dict:
    """The fields of a header that a call must share."""
    fields = {name: str(getattr(mgt, name)) for name in ("dtype", "head_precision", "attention", "lora")}
    config = {name: str(value) for name, value in dataclasses.asdict(mgt.config).items()}
    batch, *grid = request.start.shape
    return {
        "model": config | fields,
        "static": static._asdict(),
        "batch": batch,
        "grid": grid,
        "steps": len(request.step_weights),
        "remasks": request.knobs.schedule.remasked is not None,
        "inputs": [[list(np.shape(x)), str(x.dtype)] for x in leaves],
    }


def _shape(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _with_key_data(request: Request) -> Request:
    """Random keys as the numbers they are made of, which files can describe."""
    keys = request.keys
    typed = isinstance(keys, jax.Array) and jax.dtypes.issubdtype(keys.dtype, jax.dtypes.prng_key)
    return request._replace(keys=jax.random.key_data(keys)) if typed else request


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def _program_of(exported: export.Exported, digest: str) -> Any:
    """The program as a jitted function, whose name tells it from others."""

    def program(*leaves):
        return exported.call(*leaves)

    program.__name__ = f"exported_{digest}"
    return jax.jit(program)
