"""The command line, `editmgt`. Each module but `shared`, `surroundings`, `backend` and `compile_cache` is a family of commands: arguments and actions.

Heavy modules are imported inside the commands.
"""

import argparse
import importlib
import os
import re
import sys
import warnings
from collections.abc import Sequence

from editmgt_jax.cli import backend, surroundings
from editmgt_jax.errors import EditMGTError, exit_code, one_line

FAMILIES = ("pictures", "serve", "data", "train", "models", "evaluate", "ablate", "compile")
PIPE_CLOSED = 141  # exit code of a command whose reader has gone, as of one that SIGPIPE ends


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. -> exit code: 0, or FINAL or TRANSIENT (see `errors`) after an error meant for users, printed in one line.

    Any other error is a defect and keeps its traceback.

    Args:
      argv: arguments; None is those of this process, whose signals and streams are then the command's, too.
    """
    if argv is not None:
        return _run(argv)
    surroundings.guard_streams()
    surroundings.hush_others()
    try:
        try:
            code = _run(sys.argv[1:], _begin)
        except SystemExit as ended:  # of argparse, for one
            code = ended.code
        sys.stdout.flush()
    except OSError as error:  # nobody reads, or the disk that stdout is on is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            return PIPE_CLOSED
        return _failed(error)
    return code


def _begin() -> None:
    """Prepares the process for a command. Errors: UserError."""
    surroundings.watch_signals()
    backend.check_flags()


def _run(argv, begin=lambda: None) -> int:
    """`main` for arguments, after `begin`, whose errors are told like a command's."""
    parser = make_parser()
    args, extra = parser.parse_known_args(argv)
    args.overrides = extra
    args.end_job = lambda code, defect=None: None  # replaced by a command that joins a job of processes
    if extra and not args.takes_overrides:
        before = (
            [word for word in argv[: list(argv).index(extra[0])] if word.startswith("--")] if extra[0] in argv else []
        )
        parser.error(f"unrecognized arguments: {' '.join(extra)}{f' (after {before[-1]})' if before else ''}")
    with warnings.catch_warnings():
        warnings.showwarning = _Notes()
        warnings.simplefilter("default", UserWarning)  # notes are printed, whatever else makes warnings errors
        try:
            begin()
            args.run(args)
        except KeyboardInterrupt:
            print("editmgt: interrupted", file=sys.stderr)
            args.end_job(130)
            return 130
        except BrokenPipeError:
            raise
        except (EditMGTError, OSError) as error:
            code = _failed(error)
            args.end_job(code)
            return code
        except Exception as defect:
            if (error := backend.for_users(defect)) is None:
                args.end_job(1, defect)
                raise
            code = _failed(error)
            args.end_job(code)
            return code
    return 0


def _failed(error) -> int:
    """Prints an error meant for users, in one line. -> exit code"""
    text = str(error)
    if isinstance(error, FileNotFoundError) and error.filename is None and not _has_folder():
        text = "the folder that this process is in is gone: change to another one"
    elif isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename is not None else ""
        text = f"{named}{error.strerror}"
    print(f"editmgt: error: {one_line(text)}", file=sys.stderr)
    return exit_code(error)


def _has_folder() -> bool:
    """Whether the folder of this process still exists."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True


class _Notes:
    """Prints warnings of this package and of jax, each once; of other packages, none."""

    def __init__(self):
        self._said = set()

    def __call__(self, message, category, filename, *_):
        from editmgt_jax.cli import compile_cache

        text = one_line(compile_cache.noted(str(message)) if filename and "jax" in filename else str(message))
        own = os.path.abspath(filename).startswith(surroundings.OWN + os.sep)
        of_jax = f"{os.sep}jax{os.sep}" in filename and issubclass(category, UserWarning)
        if (own or of_jax or sys.warnoptions) and text and text not in self._said:
            self._said.add(text)
            print(f"editmgt: {'note' if category is UserWarning else category.__name__}: {text}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message):
        if match := re.fullmatch(r"argument (--\S+): expected one argument", message):
            message += f": a value that begins with a dash is given as {match[1]}=-VALUE"
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Prints the versions of this package, of Python and of jax."""

    def __call__(self, parser, *_):
        from importlib.metadata import PackageNotFoundError, version

        found = [f"Python {sys.version.split()[0]}"]
        for name in ("jax", "flax"):
            try:
                found.append(f"{name} {version(name)}")
            except PackageNotFoundError:
                found.append(f"no {name}")
        from editmgt_jax import __version__

        print(f"editmgt {__version__} ({', '.join(found)})")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(prog="editmgt", description="Edit pictures by instruction; train such editors.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for family in FAMILIES:
        importlib.import_module(f"editmgt_jax.cli.{family}").add_commands(commands)
    return parser
