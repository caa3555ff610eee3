"""`editmgt train`, `supervise` and `export`: training runs."""

import argparse
import math

from editmgt_jax.cli import shared


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Adds `train`, `supervise` and `export`."""
    _add_train(commands)
    _add_supervise(commands)
    _add_export(commands)


def _add_train(commands) -> None:
    command = shared.add_command(
        commands, "train", train, f"train a model, or resume training{shared.OVERRIDABLE}", takes_overrides=True
    )
    command.add_argument(
        "--config", required=True, metavar="CONFIG", help="a file, or the name of a shipped one: scenes_mgt"
    )
    command.add_argument("--workdir", required=True, metavar="DIR", help="folder for checkpoints and metrics")
    command.add_argument("--profile", type=_step_range, metavar="START:END", help="steps to trace into DIR/profile")
    shared.add_tracking(command)
    shared.add_distributed(command)


def train(args: argparse.Namespace) -> None:
    """Trains, or resumes training."""
    from editmgt_jax.training.config_files import load_config

    try:
        config = load_config(args.config, args.overrides)
    finally:  # also after an error, so that the other processes end too
        shared.join(args)
    shared.use_disk_cache()
    from editmgt_jax.training import trainer

    trainer.train(config, args.workdir, args.profile, args.track)


def _add_supervise(commands) -> None:
    text = "run a command and restart it when it dies; each process of a job has its own supervisor"
    command = shared.add_command(commands, "supervise", supervise, text)
    command.add_argument(
        "--max-restarts", type=_count, default=100, metavar="N", help="restarts in a row (default 100)"
    )
    command.add_argument(
        "--wait", type=_seconds, default=1.0, metavar="SECONDS", help="wait before the first restart (default 1)"
    )
    text = "a run of this length resets the count of restarts (default 600)"
    command.add_argument("--healthy", type=_seconds, default=600.0, metavar="SECONDS", help=text)
    command.add_argument("command", nargs="+", metavar="-- COMMAND", help="such as editmgt train ...")


def supervise(args: argparse.Namespace) -> None:
    """Runs a command until it ends. Errors: SystemExit with its exit code."""
    from editmgt_jax.training.supervise import supervise as keep_running

    raise SystemExit(keep_running(args.command, args.max_restarts, args.wait, args.healthy))


def _add_export(commands) -> None:
    command = shared.add_command(commands, "export", export, "write a run's parameters as a model directory")
    command.add_argument("--workdir", required=True, metavar="RUN")
    command.add_argument("--output", required=True, metavar="DIR", help="new folder")
    shared.add_exported(command)
    command.add_argument("--licence", default="", metavar="NAME", help="for the model card, such as apache-2.0")


def export(args: argparse.Namespace) -> None:
    """Writes a training run as a model directory or a LoRA."""
    from editmgt_jax.training.export import export as write_model

    write_model(args.workdir, args.output, args.step, args.dtype, args.raw, merged=args.merge, licence=args.licence)


def _step_range(text) -> tuple[int, int]:
    first, colon, end = text.partition(":")
    if not (colon and first.isdigit() and end.isdigit() and int(first) < int(end)):
        raise argparse.ArgumentTypeError(f"steps are given as START:END, START before END; got {text!r}")
    return int(first), int(end)


def _seconds(text) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be seconds, 0 or more; got {text!r}")
    return seconds


def _count(text) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be 0 or more; got {text!r}")
    return int(text)
