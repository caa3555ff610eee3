"""`editmgt evaluate`: measures models and folders of edited pictures, one sub-command for each protocol."""

import argparse
import sys

from editmgt_jax.cli import shared
from editmgt_jax.errors import UserError
from editmgt_jax.evaluation.protocols.table import PROTOCOLS, Entry

READING = ("split", "language", "limit")


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Adds `evaluate` with its protocols."""
    evaluation = commands.add_parser("evaluate", help="measure a model, or a folder of edited pictures")
    protocols = evaluation.add_subparsers(required=True, metavar="PROTOCOL")
    _add_scenes(protocols)
    for name, entry in PROTOCOLS.items():
        if name != "scenes":
            _add_benchmark(protocols, name, entry)


def _add_scenes(protocols) -> None:
    command = shared.add_command(protocols, "scenes", evaluate_scenes, "edit procedural scenes with known targets")
    command.add_argument("--model", metavar="DIR", help="model directory (default: the default model)")
    command.add_argument("--output", metavar="FILE.json", help="where to write the numbers")
    command.add_argument("--gallery", metavar="FILE.png", help="where to draw successes and failures")
    command.add_argument(
        "--workdir", metavar="RUN", help="where to write the outcome of every scene, and the pictures; resumes one"
    )
    command.add_argument("--count", type=shared.positive, default=500, help="number of scenes (default 500)")
    command.add_argument("--split", default="heldout", help="heldout (default), or train for the choice of settings")
    command.add_argument("--objects", default="rich", help="core, all or rich (default): that of the model's training")
    command.add_argument("--batch-size", type=shared.positive, help="scenes at once (default 4 on CPUs, else 32)")
    text = "seeds of the edits (default 0); figures are means over them"
    command.add_argument("--seed", type=shared.seed, nargs="+", default=[0], dest="seeds", metavar="N", help=text)
    text = "side of the scenes in pixels (default: the model's own); they are resized for the model, and its edits back"
    command.add_argument("--size", type=shared.positive, metavar="PIXELS", help=text)
    command.add_argument("--lpips", metavar="FILE", help="weights that `editmgt convert lpips` wrote, for lpips_inside")
    shared.add_distributed(command)
    shared.add_settings(command)


def evaluate_scenes(args: argparse.Namespace) -> None:
    """Runs the protocol `scenes`."""
    from editmgt_jax import images
    from editmgt_jax.declarations import check_choice

    check_choice("split", args.split, ("heldout", "train"))
    images.check_distinct([path for path in (args.output, args.gallery) if path])
    shared.join(args)
    shared.use_disk_cache()
    import jax

    from editmgt_jax.evaluation.protocols import scenes

    names = (
        "model",
        "output",
        "gallery",
        "count",
        "batch_size",
        "seeds",
        "split",
        "objects",
        "workdir",
        "size",
        "lpips",
    )
    given = {name: getattr(args, name) for name in names}
    process = jax.process_index(), jax.process_count()
    scenes.evaluate_scenes(**given, process=process, **shared.settings_of(args))
    shared.leave(args)


def _add_benchmark(protocols, name: str, entry: Entry) -> None:
    text = f"{entry.title}; edits with a model, or scores a folder of edited pictures"
    command = shared.add_command(protocols, name, evaluate_benchmark, text)
    command.set_defaults(protocol=name)
    command.add_argument("--data", required=True, metavar="DIR", help="the benchmark's folder")
    command.add_argument("--workdir", required=True, metavar="RUN", help="folder of this evaluation; resumes one")
    edited = command.add_mutually_exclusive_group(required=True)
    edited.add_argument(
        "--model", metavar="DIR", help="model directory or hub name that edits; 'default' is the default model"
    )
    edited.add_argument("--outputs", metavar="DIR", help="folder of edited pictures in the benchmark's layout")
    command.add_argument("--clip", metavar="DIR", help="CLIP model, a folder or hub name, for clip_*")
    command.add_argument("--dino", metavar="DIR", help="DINO ViT, a folder or hub name, for dino")
    command.add_argument(
        "--structure", metavar="DIR", help="DINO ViT-B/8, a folder or hub name, for structure_distance"
    )
    command.add_argument("--lpips", metavar="FILE", help="weights that `editmgt convert lpips` wrote, for lpips_*")
    judge = command.add_mutually_exclusive_group()
    judge.add_argument("--judge", metavar="MODEL", help="judge behind OPENAI_BASE_URL, with the key OPENAI_API_KEY")
    judge.add_argument("--judged", metavar="PATH", help="judged files in the benchmark's form")
    command.add_argument(
        "--prompts",
        metavar="FILE",
        help="the benchmark's own prompts: JSON {name: text}, or vie_prompts.py of GEdit-Bench",
    )
    command.add_argument(
        "--judge-workers", type=shared.positive, default=8, metavar="N", help="questions at once (default 8)"
    )
    command.add_argument("--split", help="split of the data set (default: the benchmark's)")
    command.add_argument("--language", help="language of the instructions, en or cn (default: the benchmark's)")
    command.add_argument("--limit", type=shared.positive, metavar="N", help="the first N examples only, for a try")
    command.add_argument("--batch-size", type=shared.positive, default=8)
    command.add_argument("--seed", type=shared.seed, default=0)
    text = "also edit with and without region hold of this threshold, and composite both, for the leakage suite"
    command.add_argument("--leakage", type=float, metavar="LAMBDA", help=text)
    shared.add_distributed(command)
    shared.add_settings(command)


def evaluate_benchmark(args: argparse.Namespace) -> None:
    """Edits and scores, or scores, one benchmark; prints the table."""
    shared.join(args)
    shared.use_disk_cache()
    import jax

    from editmgt_jax.evaluation import evaluate, features, report
    from editmgt_jax.evaluation.devices import SpreadPipeline
    from editmgt_jax.evaluation.editing import Editor
    from editmgt_jax.evaluation.protocol import Selection
    from editmgt_jax.evaluation.protocols.table import open_protocol

    editor = None
    if args.leakage is not None and args.model is None:
        raise UserError(
            "--leakage edits with and without region hold: it needs --model, and does nothing for --outputs"
        )
    if args.model is not None:
        name = None if args.model == "default" else args.model
        pipe = SpreadPipeline.from_pretrained(name, batch_size=args.batch_size)
        editor = Editor(pipe, args.seed, shared.settings_of(args), args.leakage)
    kinds = {"clip": features.Clip, "dino": features.Dino, "structure": features.Structure, "lpips": features.Lpips}
    chosen = {name: kind(getattr(args, name)) for name, kind in kinds.items() if getattr(args, name)}
    models = features.Models(**chosen, judge=_judge(args))
    protocol = open_protocol(args.protocol)
    if protocol.judged and models.judge is None:
        print(f"editmgt: note: {protocol.name} has no scores without --judge or --judged", file=sys.stderr)
    summary = evaluate.evaluate(
        protocol,
        args.data,
        args.workdir,
        outputs=args.outputs,
        editor=editor,
        models=models,
        selection=Selection(**{name: getattr(args, name) for name in READING}),
        model=args.model,
        process=(jax.process_index(), jax.process_count()),
    )
    shared.leave(args)
    print(report.benchmark(summary) if summary else "this process is done; others have work left")


def _judge(args):
    """The judge that the flags name, None without one."""
    from editmgt_jax.evaluation.judge import Judge, Judged

    if args.judged is not None:
        return Judged(args.judged)
    if args.judge is None:
        return None
    return Judge(args.judge, shared.cache_folder() / "judge", args.prompts, args.judge_workers)
