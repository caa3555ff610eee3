"""The cache of compiled programs on disk: where it is, and what becomes of one that cannot be used."""

import os
import sys
import zlib
from pathlib import Path

from editmgt_jax.errors import UserError

SUFFIX = "-cache"  # of jax's files
READING, WRITING = (f"Error {doing} persistent compilation cache entry" for doing in ("reading", "writing"))
ZSTANDARD = b"\x28\xb5\x2f\xfd"  # the first bytes of such a file


def folder() -> Path:
    """EDITMGT_CACHE, or a folder in the user's cache folder. Errors: UserError where the user has no home."""
    if chosen := os.environ.get("EDITMGT_CACHE"):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "editmgt"
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise UserError("this user has no home folder: set EDITMGT_CACHE to a folder")
    return Path(home) / ".cache" / "editmgt"


def use() -> None:
    """Caches compiled programs on disk. Prints a note if it cannot."""
    import jax

    try:
        cache = folder()
        cache.mkdir(parents=True, exist_ok=True)
        if not os.access(cache, os.R_OK | os.X_OK):
            raise UserError(f"cannot read {cache}")
    except (UserError, OSError, ValueError) as error:
        reason = f"cannot write {cache} ({error.strerror})" if isinstance(error, OSError) else str(error)
        print(f"editmgt: note: compiled programs are not cached, {reason}", file=sys.stderr)
        return
    if not os.access(cache, os.W_OK):
        print(f"editmgt: note: compiled programs are not added to {cache}, which is read-only", file=sys.stderr)
    from editmgt_jax import executables

    executables.keep_in(cache)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def noted(warning: str) -> str:
    """Acts on a warning of jax about the cache. -> what to tell instead, "" for nothing; other warnings as they are.

    Damaged files are deleted: jax writes the programs again, at once.
    """
    if not warning.startswith((READING, WRITING)):
        return warning
    import jax

    cache = Path(jax.config.jax_compilation_cache_dir or folder())
    if warning.startswith(READING):
        _delete_damaged(cache)
        return f"damaged files in the cache of compiled programs, {cache}, are replaced"
    _delete_damaged(cache)
    if not os.access(cache, os.W_OK):
        return ""  # `use` has said so
    return f"compiled programs cannot be added to {cache}: {warning.rsplit(': ', 1)[-1]}"


def _delete_damaged(cache: Path) -> None:
    for path in cache.glob(f"*{SUFFIX}"):
        try:
            if not _whole(path.read_bytes()):
                path.unlink(missing_ok=True)
        except OSError:
            continue


def _whole(data: bytes) -> bool:
    """Whether a file of the cache can be unpacked."""
    if data.startswith(ZSTANDARD):
        try:
            import zstandard
        except ImportError:
            return False  # neither can jax read it here
        unpacker = zstandard.ZstdDecompressor().decompressobj()
        try:
            unpacker.decompress(data)
            return unpacker.eof
        except zstandard.ZstdError:
            return False
    try:
        return bool(zlib.decompress(data))
    except zlib.error:
        return False
