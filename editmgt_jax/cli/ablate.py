"""`editmgt ablate`: large ablations of the choices of consolidation, from recorded attention."""

import argparse

from editmgt_jax.cli import shared


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Adds `ablate` with its steps, and `report`."""
    ablation = commands.add_parser("ablate", help="ablate the choices of consolidation")
    steps = ablation.add_subparsers(required=True, metavar="STEP")
    for name, text in (
        ("record", "record the attention of all blocks on examples with a truth, or go on recording"),
        ("decode", "decode with other settings and with blocks switched off, or go on decoding"),
        ("run", "record, score, search, decode and report"),
    ):
        command = shared.add_command(steps, name, run_step, text + shared.OVERRIDABLE, takes_overrides=True)
        command.add_argument("--config", metavar="CONFIG", help="a file, or the name of a shipped one: ablate_layers")
        command.add_argument("--workdir", required=True, metavar="RUN", help="folder for all that comes of it")
        shared.add_distributed(command)
        shared.add_tracking(command)
        command.set_defaults(step=name)
    for name, text in (
        ("score", "score every set of blocks that the config names from the records"),
        ("search", "choose sets on the even examples and test them on the odd ones"),
    ):
        command = shared.add_command(steps, name, run_step, text + shared.OVERRIDABLE, takes_overrides=True)
        command.add_argument("workdir", metavar="RUN", help="folder with records")
        command.add_argument("--config", metavar="CONFIG", help="another config, of the same records")
        shared.add_distributed(command)
        shared.add_tracking(command)
        command.set_defaults(step=name)

    text = "write one HTML file and a Markdown summary of an ablation, a run, or evaluations side by side"
    command = shared.add_command(commands, "report", write_report, text)
    text = "folder of an ablation, a training run or an evaluation, or an evaluation's JSON file; several evaluations of one protocol"
    command.add_argument("folders", nargs="+", metavar="RUN", help=text)
    command.add_argument("--labels", nargs="+", metavar="NAME", help="names of evaluations (default: their folders')")
    command.add_argument("--metric", help="figure whose differences put the pictures in order (default: the pixels)")
    command.add_argument("--pictures", type=int, default=24, metavar="N", help="examples to show (default 24)")
    command.add_argument("--output", metavar="DIR", help="where to write the report (default: the first folder)")


def write_report(args: argparse.Namespace) -> None:
    """Writes a report and prints its path."""
    from editmgt_jax.evaluation import comparison, comparison_report

    if len(args.folders) > 1 or comparison.is_evaluation(args.folders[0]):
        evaluated = comparison.read(args.folders, args.labels)
        print(comparison_report.write(evaluated, args.output or args.folders[0], args.metric, args.pictures))
        return
    from editmgt_jax.ablation.report.report import report

    print(report(args.folders[0]))


def run_step(args: argparse.Namespace) -> None:
    """Runs one step, or all."""
    from editmgt_jax.ablation.config import ABLATIONS
    from editmgt_jax.ablation.workdir import open_workdir
    from editmgt_jax.training.config import read_config
    from editmgt_jax.training.config_files import load_config, overridden

    try:
        if args.config:
            config = load_config(args.config, args.overrides, ABLATIONS)
        else:
            before = open_workdir(args.workdir, None)[0].to_dict()
            config = read_config(overridden(before, args.overrides, ABLATIONS), ABLATIONS)
        config, folder = open_workdir(args.workdir, config)
    finally:  # also after an error, so that the other processes end too
        shared.join(args)
    shared.use_disk_cache()
    from editmgt_jax.ablation import steps

    steps.run(args.step, config, folder, args.track)
