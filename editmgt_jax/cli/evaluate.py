"""`editmgt evaluate`: measures models, one sub-command for each protocol."""

import argparse

from editmgt_jax.cli import shared


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Adds `evaluate` with its protocols."""
    evaluation = commands.add_parser("evaluate", help="measure a model")
    protocols = evaluation.add_subparsers(required=True, metavar="PROTOCOL")
    command = shared.add_command(protocols, "scenes", evaluate_scenes, "edit procedural scenes with known targets")
    command.add_argument("--model", metavar="DIR", help="model directory (default: the default model)")
    command.add_argument("--output", metavar="FILE.json", help="where to write the numbers")
    command.add_argument("--gallery", metavar="FILE.png", help="where to draw successes and failures")
    command.add_argument("--count", type=shared.positive, default=500, help="number of scenes (default 500)")
    command.add_argument("--split", default="heldout", help="heldout (default), or train for the choice of settings")
    command.add_argument("--objects", default="rich", help="core, all or rich (default): that of the model's training")
    command.add_argument("--batch-size", type=shared.positive, default=32)
    command.add_argument("--seed", type=int, default=0)
    shared.add_settings(command)


def evaluate_scenes(args: argparse.Namespace) -> None:
    """Runs the protocol `scenes`."""
    shared.use_disk_cache()
    from editmgt_jax.evaluation.protocols import scenes

    names = ("model", "output", "gallery", "count", "batch_size", "seed", "split", "objects")
    scenes.evaluate_scenes(**{name: getattr(args, name) for name in names}, **shared.settings_of(args))
