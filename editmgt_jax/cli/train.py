"""`editmgt train`, `supervise` and `export`: training runs."""

import argparse

from editmgt_jax.cli import shared


def add_commands(commands) -> None:
    _add_train(commands)
    _add_supervise(commands)
    _add_export(commands)


def _add_train(commands) -> None:
    command = shared.add_command(
        commands, "train", train, f"train a model, or go on training it{shared.OVERRIDABLE}", takes_overrides=True
    )
    command.add_argument(
        "--config", required=True, metavar="CONFIG", help="a file, or the name of a shipped one: scenes_mgt"
    )
    command.add_argument("--workdir", required=True, metavar="DIR", help="checkpoints and metrics of the run")
    command.add_argument(
        "--profile", type=_step_range, metavar="START:END", help="steps to trace, into the workdir's `profile`"
    )
    shared.add_distributed(command)


def train(args) -> None:
    from editmgt_jax.training.config_files import load_config

    try:
        config = load_config(args.config, args.overrides)
    finally:  # even if only this process cannot: the others hear of it
        shared.join(args)
    shared.use_disk_cache()
    from editmgt_jax.training import trainer

    trainer.train(config, args.workdir, args.profile)


def _add_supervise(commands) -> None:
    text = "run a command and start it again when it dies; a job's processes have a supervisor each"
    command = shared.add_command(commands, "supervise", supervise, text)
    command.add_argument("--max-restarts", type=_count, default=100, metavar="N", help="deaths in a row (default 100)")
    command.add_argument(
        "--wait", type=float, default=1.0, metavar="SECONDS", help="before the first restart (default 1)"
    )
    text = "of life after which the deaths are counted anew (default 600)"
    command.add_argument("--healthy", type=float, default=600.0, metavar="SECONDS", help=text)
    command.add_argument("command", nargs="+", metavar="-- COMMAND", help="editmgt train ..., for example")


def supervise(args) -> None:
    from editmgt_jax.training.supervise import supervise as keep_running

    raise SystemExit(keep_running(args.command, args.max_restarts, args.wait, args.healthy))


def _add_export(commands) -> None:
    command = shared.add_command(commands, "export", export, "write a run's parameters as a model directory")
    command.add_argument("--workdir", required=True, metavar="RUN")
    command.add_argument("--output", required=True, metavar="DIR", help="new folder")
    shared.add_exported(command)


def export(args) -> None:
    from editmgt_jax.training.export import export as write_model

    write_model(args.workdir, args.output, args.step, args.dtype, args.raw, merged=args.merge)


def _step_range(text) -> tuple[int, int]:
    first, colon, end = text.partition(":")
    if not (colon and first.isdigit() and end.isdigit() and int(first) < int(end)):
        raise argparse.ArgumentTypeError(f"steps are given as START:END, START before END; got {text!r}")
    return int(first), int(end)


def _count(text) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be 0 or more; got {text!r}")
    return int(text)
