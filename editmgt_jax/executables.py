"""Compiled programs that are ready: executables on disk, so that a program is not even traced again.

A program is a jitted function of this package with arguments. With a folder (`keep_in`) its executable is written there, under
a name that stands for all it depends on: the code of this package, the versions of jax and flax, jax's options, the device,
static arguments, shapes and types. jax's own cache of compilations is asked after a program is traced and lowered; this
one before.

Executables are of one process and one device: other programs go the way of jit, and are not kept.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jaxlib
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from editmgt_jax.files import replacing

_PACKAGE = Path(__file__).parent
_CODE = (
    "models",
    "sampling",
    "config",
    "declarations.py",
    "weights/components.py",
    "executables.py",
)  # what traced programs are made of
CACHE_HIT = "/jax/compilation_cache/cache_hits"  # what jax reports when a program comes from its cache on disk
_ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_CHANGES_NOTHING = "jax_compilation_cache_dir="
KEPT = 64  # executables of one process at most

# Held by the thread that looks for a program or compiles it, so that no two compile the same.
preparing = threading.RLock()

_folder: Path | None = None
_ready: dict[str, Callable] = {}


def keep_in(folder: str | Path | None) -> None:
    """Names the folder of executables, which is created when the first is written; None is no folder."""
    global _folder
    _folder = None if folder is None else Path(folder)


def run(function: Callable, *args: Any, **static: Any) -> Any:
    """function(*args, **static) of a jitted function whose static arguments are given by name."""
    if not is_kept(args):
        return function(*args, **static)
    with preparing:
        executable = find(function, *args, **static)
        if executable is None:
            executable, _ = build(function, *args, **static)
    return executable(*args)


def is_kept(args: tuple) -> bool:
    """Whether there is a folder, and all arguments are values of the default device or of the host."""
    if _folder is None or jax.process_count() > 1 or not jax.sharding.get_abstract_mesh().empty:
        return False
    here = {_device()}
    return not any(
        isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and x.sharding.device_set != here)
        for x in jax.tree.leaves(args)
    )


def find(function: Callable, *args: Any, **static: Any) -> Callable | None:
    """The executable of a call that `is_kept`, a function of `args`, if it is in this process or in the folder."""
    name = _name(function, args, static)
    executable = _ready.pop(name, None) or _read(_folder / name)
    if executable is not None:
        _remember(name, executable)
    return executable


def build(function: Callable, *args: Any, **static: Any) -> tuple[Callable, bool]:
    """Compiles a call that `is_kept`, and keeps it. -> (executable, whether it could be written)"""
    name = _name(function, args, static)

    def anew(*args):  # another function: what jit keeps in memory for this one may have been read from jax's cache, too
        return function(*args, **static)

    anew.__name__ = function.__name__
    with _without_cache():
        executable = jax.jit(anew).lower(*args).compile()
    _remember(name, executable)
    try:
        content = pickle.dumps(serialize_executable.serialize(executable))
    except (
        ValueError,
        NotImplementedError,
        jax.errors.JaxRuntimeError,
    ):  # a platform that cannot, or a program with constants
        return executable, False
    return executable, _write(name, content)


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """What jax reports while the block runs: CACHE_HIT is among it if a program came from its cache of compilations."""
    events = []

    def note(event, **_):
        events.append(event)

    jax.monitoring.register_event_listener(note)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_listener(note)


def _remember(name, executable) -> None:
    """Keeps an executable in this process, and of too many those last used: pictures of many sizes need one each."""
    _ready[name] = executable
    while len(_ready) > KEPT:
        _ready.pop(next(iter(_ready)), None)


def shapes(model: Any, make: Callable[[], Any]) -> Any:
    """make(), the shapes of a model's parameters; in the folder, if there is one, so that no model is traced for them."""
    if _folder is None:
        return make()
    name = f"shapes-{digest(repr((_installation(), repr(model))))}"
    try:
        return pickle.loads((_folder / name).read_bytes())
    except Exception:  # noqa: BLE001  (none yet, or a damaged file, which raises errors of many kinds)
        found = make()
        _write(name, pickle.dumps(found))
        return found


def _write(name, content: bytes) -> bool:
    """-> whether the folder could be written"""
    try:
        _folder.mkdir(parents=True, exist_ok=True)
        with replacing(_folder / name) as path:
            path.write_bytes(content)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Without jax's cache of compilations: what was read from it cannot be written again."""
    before = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # which also makes it look at the option again
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _read(path: Path) -> Callable | None:
    """What `keep` wrote; None where there is nothing, or nothing that this installation can load."""
    try:
        return serialize_executable.deserialize_and_load(
            *pickle.loads(path.read_bytes()), execution_devices=[_device()]
        )
    except FileNotFoundError:
        return None
    except Exception:  # noqa: BLE001  (a damaged file raises errors of many kinds, and costs a compilation)
        return None


def _device() -> jax.Device:
    chosen = jax.config.jax_default_device  # a platform's name, where JAX_DEFAULT_DEVICE says it
    return jax.devices(chosen)[0] if chosen is None or isinstance(chosen, str) else chosen


def _name(function, args, static) -> str:
    """The name of a program's file."""
    leaves, tree = jax.tree.flatten(args)
    shapes = [(jax.typeof(x).str_short(), getattr(x, "weak_type", False)) for x in leaves]
    options = [f"{name}={getattr(jax.config, name, value)}" for name, value in sorted(jax.config.values.items())]
    options = [option for option in options if not option.startswith(_CHANGES_NOTHING)]
    whole = _installation(), options, str(tree), shapes, sorted(map(repr, static.items()))
    return f"{function.__name__}-{digest(repr(whole))}"


def digest(content: bytes | str) -> str:
    """A short name of some content."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:32]


@functools.cache
def _installation() -> str:
    """All that programs of this process share."""
    import flax

    device, code = _device(), hashlib.sha256()
    for name in _CODE:
        path = _PACKAGE / name
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            code.update(f"{source.relative_to(_PACKAGE)}\0".encode() + source.read_bytes())
    versions = jax.__version__, jaxlib.__version__, flax.__version__, device.client.platform_version
    processor = _processor() if device.platform == "cpu" else ""
    where = device.platform, device.device_kind, device.id, jax.device_count(), processor
    return repr((code.hexdigest(), versions, where, [os.environ.get(name) for name in _ENVIRONMENT]))


def _processor() -> str:
    """What this machine's processor can do: executables for CPUs use all of it."""
    import platform

    try:
        with open("/proc/cpuinfo") as lines:
            return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()
