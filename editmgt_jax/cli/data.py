"""`editmgt scenes`, `prepare`, `tokenize` and `data-stats`: training data."""

import argparse
import os

from editmgt_jax.cli import shared


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Adds `scenes`, `prepare`, `tokenize` and `data-stats`."""
    _add_scenes(commands)
    _add_prepare(commands)
    _add_tokenize(commands)
    _add_data_stats(commands)


def _add_scenes(commands) -> None:
    command = shared.add_command(commands, "scenes", scenes, "draw a grid of procedural training scenes")
    command.add_argument("--preview", required=True, metavar="GRID.png", help="picture to write")
    command.add_argument("--size", type=int, default=64, help="pixels a side (default 64)")
    command.add_argument("--split", default="train", help="train or heldout")
    command.add_argument("--seed", type=shared.seed, default=0)
    command.add_argument("--objects", default="core", help="core, all or rich (default core)")
    command.add_argument("--rows", type=shared.positive, default=8)
    command.add_argument("--columns", type=shared.positive, default=3)


def scenes(args: argparse.Namespace) -> None:
    """Draws a grid of training scenes."""
    from editmgt_jax import images
    from editmgt_jax.data.scenes.source import SceneConfig, preview

    images.check_output(args.preview)
    config = SceneConfig(size=args.size, split=args.split, seed=args.seed, objects=args.objects)
    images.save(preview(config, rows=args.rows, columns=args.columns), args.preview)


def _add_prepare(commands):
    text = "prepare raw edit pairs for training; other flags go to Apache Beam, such as --runner=FlinkRunner"
    command = shared.add_command(commands, "prepare", prepare, text, takes_overrides=True)
    command.add_argument(
        "source", metavar="SOURCE", help="folder, parquet file, tfds:NAME[:SPLIT] or scenes:COUNT[:SEED]"
    )
    command.add_argument(
        "--output", required=True, metavar="DIR", help="new folder, or that of an unfinished preparation"
    )
    command.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="MEANING=NAME",
        help="column of the source, such as source=before",
    )
    command.add_argument(
        "--workers", type=shared.positive, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    group = command.add_argument_group("settings")
    group.add_argument("--resolution", type=int, help="pixels a side of the square bucket (default 1024)")
    group.add_argument(
        "--min-side", type=int, help="pairs with a shorter side are rejected (default: half the resolution)"
    )
    group.add_argument("--max-per-category", type=int, metavar="N", help="most pairs of a category (default: all)")
    group.add_argument(
        "--min-changed",
        type=float,
        metavar="SHARE",
        help="pairs with a smaller share of changed pixels are rejected as unchanged",
    )
    group.add_argument(
        "--max-changed",
        type=float,
        metavar="SHARE",
        help="local edits with a larger share of changed pixels are rejected",
    )
    group.add_argument("--max-instruction", type=int, metavar="CHARACTERS", help="longest instruction")
    group.add_argument("--image-format", help="jpeg (default) or png")
    group.add_argument(
        "--task-pairs", type=int, metavar="N", help="raw pairs that a worker prepares at a time (default 2048)"
    )
    group.add_argument("--task-rows", type=int, dest="task_pairs", help=argparse.SUPPRESS)  # its name once


def prepare(args: argparse.Namespace) -> None:
    """Prepares raw pairs. Errors: PrepareError, SourceError."""
    import dataclasses

    from editmgt_jax.data.prepare import job as preparing
    from editmgt_jax.data.prepare.examine import PrepareConfig

    columns = [column.partition("=") for column in args.column]
    if wrong := ["".join(column) for column in columns if not column[2]]:
        raise preparing.PrepareError(f"--column takes MEANING=NAME; got {wrong}")
    names = [field.name for field in dataclasses.fields(PrepareConfig)]
    chosen = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    mapping = {meaning: name for meaning, _, name in columns}
    preparing.prepare(args.source, args.output, PrepareConfig(**chosen), mapping, args.overrides, args.workers)


def _add_tokenize(commands) -> None:
    text = "encode training data as tokens: prepared pairs, or the scenes of a config"
    command = shared.add_command(commands, "tokenize", tokenize, f"{text}{shared.OVERRIDABLE}", takes_overrides=True)
    command.add_argument("--output", required=True, metavar="DIR", help="folder for the token records")
    shared.add_distributed(command)
    pairs = command.add_argument_group("prepared pairs")
    pairs.add_argument("--records", metavar="DIR", help="output of `editmgt prepare`")
    pairs.add_argument("--model", metavar="DIR", help="model whose encoders are used (default: the default model)")
    pairs.add_argument(
        "--batch-size", type=shared.positive, default=32, metavar="N", help="pairs that a process encodes at a time"
    )
    pairs.add_argument("--text-states", action="store_true", help="also store the states of the text encoders")
    pairs.add_argument("--dtype", type=shared.dtype, help="dtype of the text encoders")
    scenes = command.add_argument_group("scenes")
    scenes.add_argument("--config", metavar="CONFIG", help="a file, or the name of a shipped one: scenes_mgt")
    scenes.add_argument("--examples", type=shared.positive, help="number of pairs")


def tokenize(args: argparse.Namespace) -> None:
    """Encodes prepared pairs, or the scenes of a config. Errors: ConfigError."""
    from editmgt_jax.training.config_files import ConfigError, load_config

    if (args.records is None) == (args.config is None):
        raise ConfigError("tokenize takes either --records DIR or --config FILE.py: exactly one of them")
    if (args.config is None) != (args.examples is None) or args.records is not None and args.overrides:
        raise ConfigError("--examples and config overrides require --config, and --config needs --examples")
    shared.join(args)
    shared.use_disk_cache()
    from editmgt_jax.training import token_job

    if args.records is not None:
        more = (args.batch_size, args.text_states, args.dtype)
        token_job.tokenize_pairs(args.records, args.model, args.output, *more)
        return
    config = load_config(args.config, args.overrides)
    token_job.tokenize_scenes(config, args.output, args.examples)


def _add_data_stats(commands) -> None:
    command = shared.add_command(
        commands, "data-stats", data_stats, "print counts of a folder of records, and draw samples"
    )
    command.add_argument("directory", metavar="DIR", help="output of `editmgt prepare` or `editmgt tokenize`")
    command.add_argument("--grid", metavar="FILE.png", help="where to draw sample pairs")
    command.add_argument(
        "--model", metavar="DIR", help="model whose image tokenizer decodes the samples (default: the default model)"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def data_stats(args: argparse.Namespace) -> None:
    """Prints counts of a folder of records, and draws samples."""
    import json

    from editmgt_jax import images
    from editmgt_jax.data.prepare import stats

    if args.grid is not None:
        images.check_output(args.grid)
    report = stats.collect(args.directory)
    print(json.dumps(report, indent=2) if args.json else stats.describe(report))
    if args.grid is not None:
        paint = None
        if report["kind"] == "tokens":
            shared.use_disk_cache()
            from editmgt_jax.weights.loading import painter

            paint = painter(args.model)
        images.save(stats.grid(args.directory, paint), args.grid)
