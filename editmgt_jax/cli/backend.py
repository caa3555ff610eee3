"""JAX as the environment of a process sets it up: its errors, and those of memory, as ones for users. Imports no jax."""

import os
import subprocess
import sys
import traceback

from editmgt_jax.errors import EditMGTError, UserError, is_of_memory

_NO_BACKEND = ("Unable to initialize backend", "Unknown backend")
_OF_DEVICES = ("JAX_DEFAULT_DEVICE", "JAX_NUM_CPU_DEVICES", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS")
_PARSE = "from jaxlib import xla_client; xla_client.CompileOptions()"


def check_flags() -> None:
    """Errors: UserError for XLA_FLAGS that XLA cannot read. It would end this process, and say so in its own words."""
    flags = os.environ.get("XLA_FLAGS", "")
    if not flags:
        return
    tried = subprocess.run([sys.executable, "-c", _PARSE], capture_output=True, text=True, errors="replace")
    complaints = [line.partition("] ")[2] for line in tried.stderr.splitlines() if "_flags" in line.partition("] ")[0]]
    if tried.returncode and complaints:
        raise UserError(
            f"XLA_FLAGS must be flags of this XLA, such as --xla_dump_to=DIR; got {flags!r}: {complaints[0]}"
        )


def for_users(error: Exception) -> EditMGTError | None:
    """An error of memory, of threads or of JAX's environment variables as one for users; None for others."""
    if error_of_devices := _of_devices(error):
        return error_of_devices
    if _raised_in(error, "config.py") and _while_importing(error):
        return UserError(f"an environment variable of JAX, JAX_..., has a value that JAX does not know: {error}")
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return EditMGTError("this user may not start another thread: raise the limit (ulimit -u)", transient=True)
    if not is_of_memory(error):
        return None
    first_line = next(iter(str(error).strip().splitlines()), "nothing more is known")
    advice = "take fewer or smaller pictures, smaller batches or a smaller model, or free memory"
    return EditMGTError(f"there is not enough memory ({first_line}): {advice}", transient=True)


def _of_devices(error) -> UserError | None:
    """No device can be used."""
    told = isinstance(error, RuntimeError) and str(error).startswith(_NO_BACKEND)
    if not (told or isinstance(error, AssertionError) and _raised_in(error, "xla_bridge.py")):
        return None
    others = "".join(f", with {name}={os.environ[name]!r}" for name in _OF_DEVICES if os.environ.get(name))
    platforms = os.environ.get("JAX_PLATFORMS", "")
    reason = str(error) or "there is none"
    return UserError(
        f"JAX_PLATFORMS must name devices of this machine, such as cpu; got {platforms!r}{others}: {reason}"
    )


def _raised_in(error, name) -> bool:
    """Whether an error was raised in a file of jax."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.endswith(os.path.join("jax", "_src", name))


def _while_importing(error) -> bool:
    """Whether jax was being imported: a module of it is among the callers."""
    own = os.path.join("jax", "_src", "")
    return any(
        own in frame.filename and frame.name == "<module>" for frame in traceback.extract_tb(error.__traceback__)
    )
