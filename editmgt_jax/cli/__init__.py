"""The command line, `editmgt`. Each module but `shared` is a family of commands: arguments and actions.

Heavy modules are imported inside the commands.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence

from editmgt_jax.cli import ablate, compile, data, evaluate, models, pictures, serve, train
from editmgt_jax.errors import EditMGTError, exit_code

FAMILIES = (pictures, serve, data, train, models, evaluate, ablate, compile)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. -> exit code: 0, or FINAL or TRANSIENT (see `errors`) after an error meant for users, printed in one line.

    Any other error is a defect and keeps its traceback.
    """
    parser = make_parser()
    args, extra = parser.parse_known_args(argv)
    args.overrides = extra
    args.end_job = lambda code, defect=None: None  # replaced by a command that joins a job of processes
    if extra and not args.takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(extra)}")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.simplefilter("default", UserWarning)  # notes are printed, whatever else makes warnings errors
        try:
            args.run(args)
        except KeyboardInterrupt:
            print("editmgt: interrupted", file=sys.stderr)
            args.end_job(130)
            return 130
        except (EditMGTError, OSError) as error:
            print(f"editmgt: error: {error}", file=sys.stderr)
            code = exit_code(error)
            args.end_job(code)
            return code
        except Exception as defect:
            args.end_job(1, defect)
            raise
    return 0


def _show_warning(message, category, *_):
    kind = "note" if category is UserWarning else category.__name__
    print(f"editmgt: {kind}: {message}", file=sys.stderr)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="editmgt", description="Edit pictures by instruction; train such editors.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for family in FAMILIES:
        family.add_commands(commands)
    return parser
