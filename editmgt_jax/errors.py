"""Errors meant for users: they state a rule, what came and what to do. So do those of files (OSError).

Any other exception is a defect of this package and keeps its traceback.
"""

import errno
import os
import unicodedata

FINAL = 2  # exit code of errors that a restart cannot fix, as of most commands that were called wrongly
TRANSIENT = os.EX_TEMPFAIL  # of errors that a restart may fix
_OF_DEVICES = ("JaxRuntimeError", "XlaRuntimeError")
_OF_LOADER = ("failed to map segment", "cannot map zero-fill pages")  # of ld.so, for a library that does not fit
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH}


class EditMGTError(Exception):
    """Base class of all errors meant for users. `transient`: whether a restart may fix it."""

    def __init__(self, message: str = "", transient: bool = False):
        super().__init__(one_line(message))
        self.transient = transient

    @property
    def exit_code(self) -> int:
        """FINAL or TRANSIENT."""
        return TRANSIENT if self.transient else FINAL


class UserError(EditMGTError, ValueError):
    """A value, a file or a request that breaks a rule."""


def exit_code(error: EditMGTError | OSError) -> int:
    """The exit code of a command that ends with `error`: FINAL or TRANSIENT."""
    if isinstance(error, EditMGTError):
        return error.exit_code
    return TRANSIENT if error.errno in _PASSING else FINAL


def is_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, the host's or a device's, for an error or for what caused it."""
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ in _OF_DEVICES and "RESOURCE_EXHAUSTED" in text:
        return True
    if isinstance(error, ImportError) and any(words in text for words in _OF_LOADER):
        return True
    return error.__cause__ is not None and is_of_memory(error.__cause__)


def one_line(text: str) -> str:
    """A text as one line that any terminal can show: control characters and halves of pairs are escaped."""
    if text.isprintable():
        return text
    broken = {"Cc", "Cs", "Zl", "Zp"}
    return "".join(repr(letter)[1:-1] if unicodedata.category(letter) in broken else letter for letter in text)


def shown(path: object) -> str:
    """A path for messages: one line, its middle left out if it is long."""
    text = one_line(str(path))
    return text if len(text) <= 160 else f"{text[:100]}...{text[-40:]}"
