"""The command line, `editmgt`. Each module but `shared` is a family of commands: their arguments and what they do.

What is heavy is imported inside the commands.
"""

import argparse
import errno
import os
import sys
import warnings

from editmgt_jax.cli import data, evaluate, models, pictures, train
from editmgt_jax.training.supervise import FINAL

TRANSIENT = os.EX_TEMPFAIL
FAMILIES = (pictures, data, train, models, evaluate)
PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH}


def main(argv=None) -> int:
    """-> exit code: 0, 2 after an error of the user's, told in a line, or TRANSIENT after one that may not come again."""
    parser = make_parser()
    args, extra = parser.parse_known_args(argv)
    args.overrides = extra
    args.end_job = lambda code, defect=None: None  # a command that joins a job puts what ends its processes here
    if extra and not args.takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(extra)}")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            args.run(args)
        except KeyboardInterrupt:
            print("editmgt: interrupted", file=sys.stderr)
            args.end_job(130)
            return 130
        except Exception as error:
            if not _is_for_users(error):
                args.end_job(1, error)
                raise
            print(f"editmgt: error: {error}", file=sys.stderr)
            passing = getattr(error, "transient", False) or getattr(error, "errno", None) in PASSING
            args.end_job(TRANSIENT if passing else FINAL)
            return TRANSIENT if passing else FINAL
    return 0


def _is_for_users(error) -> bool:
    """Errors that this package raises, and those of files, state a rule; any other is a defect and keeps its traceback."""
    frame = error.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    raised_by = frame.tb_frame.f_globals.get("__name__") or ""  # errors of data workers come without their frames
    kind = type(error).__module__
    is_ours = raised_by.startswith("editmgt_jax.") or kind.startswith("editmgt_jax.")
    return isinstance(error, OSError) or is_ours and isinstance(error, (ValueError, RuntimeError))


def _show_warning(message, category, *_):
    kind = "note" if category is UserWarning else category.__name__
    print(f"editmgt: {kind}: {message}", file=sys.stderr)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="editmgt", description="Edit pictures by instruction; train such editors.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for family in FAMILIES:
        family.add_commands(commands)
    return parser
