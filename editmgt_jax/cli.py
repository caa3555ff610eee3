"""The command line, `editmgt`: its arguments. What the sub-commands do is in `commands`."""

import argparse
import errno
import os
import sys
import warnings

from editmgt_jax import commands as run
from editmgt_jax.config import dtype_name
from editmgt_jax.supervise import FINAL

TRANSIENT = os.EX_TEMPFAIL
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


# ---- arguments


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="editmgt", description="Edit pictures by instruction; train such editors.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_edit(commands)
    _add_generate(commands)

    command = _add(commands, "scenes", run.scenes, "look at the procedural training scenes")
    command.add_argument("--preview", required=True, metavar="GRID.png", help="picture to write")
    command.add_argument("--size", type=int, default=64, help="pixels a side (default 64)")
    command.add_argument("--objects", default="core", help="core, all or rich (default core)")
    command.add_argument("--split", default="train", help="train or heldout")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--rows", type=_positive, default=8)
    command.add_argument("--columns", type=_positive, default=3)

    overridable = "; keys of the config can be set: --config.optimizer.learning_rate=1e-3"
    command = _add(
        commands, "train", run.train, f"train a model, or go on training it{overridable}", takes_overrides=True
    )
    command.add_argument("--config", required=True, metavar="FILE.py", help="configs/scenes_mgt.py, for example")
    command.add_argument("--workdir", required=True, metavar="DIR", help="checkpoints and metrics of the run")
    command.add_argument(
        "--profile", type=_steps, metavar="START:END", help="steps to trace, into the workdir's `profile`"
    )
    _add_distributed(command)

    text = "run a command and start it again when it dies; a job's processes have a supervisor each"
    command = _add(commands, "supervise", run.supervise, text)
    command.add_argument("--max-restarts", type=_count, default=100, metavar="N", help="deaths in a row (default 100)")
    command.add_argument(
        "--wait", type=float, default=1.0, metavar="SECONDS", help="before the first restart (default 1)"
    )
    text = "of life after which the deaths are counted anew (default 600)"
    command.add_argument("--healthy", type=float, default=600.0, metavar="SECONDS", help=text)
    command.add_argument("command", nargs="+", metavar="-- COMMAND", help="editmgt train ..., for example")

    _add_prepare(commands)

    text = "encode training data once: prepared pairs, or a config's scenes"
    command = _add(commands, "tokenize", run.tokenize, f"{text}{overridable}", takes_overrides=True)
    command.add_argument("--output", required=True, metavar="DIR", help="folder for the token records")
    _add_distributed(command)
    pairs = command.add_argument_group("prepared pairs")
    pairs.add_argument("--records", metavar="DIR", help="what `editmgt prepare` wrote")
    pairs.add_argument("--model", metavar="DIR", help="model whose encoders to use (default: the one in the package)")
    pairs.add_argument(
        "--batch-size", type=_positive, default=32, metavar="N", help="pairs a process encodes at a time"
    )
    pairs.add_argument("--text-states", action="store_true", help="store what the text encoders say, too")
    pairs.add_argument("--dtype", type=_dtype, help="of the text encoders")
    scenes = command.add_argument_group("scenes")
    scenes.add_argument("--config", metavar="FILE.py", help="configs/scenes_mgt.py, for example")
    scenes.add_argument("--examples", type=_positive, help="how many pairs")

    command = _add(commands, "data-stats", run.data_stats, "count what a folder of records holds, and show some of it")
    command.add_argument("directory", metavar="DIR", help="what `editmgt prepare` or `editmgt tokenize` wrote")
    command.add_argument("--grid", metavar="FILE.png", help="picture of sample pairs to write")
    command.add_argument("--model", metavar="DIR", help="whose image tokenizer paints tokens (default: the package's)")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = _add(commands, "export", run.export, "write a run's parameters as a model directory")
    command.add_argument("--workdir", required=True, metavar="RUN")
    command.add_argument("--output", required=True, metavar="DIR", help="new folder")
    _add_exported(command)

    _add_convert(commands)
    command = _add(commands, "inspect", run.inspect, "say what a model consists of, and whether it would load")
    command.add_argument("directory", nargs="?", metavar="DIR", help="model directory")
    command.add_argument("--preset", metavar="NAME", help="a released model, without its weights: editmgt-1024, ...")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = _add(commands, "make-random", run.make_random, "write a model directory of random weights, for tests")
    command.add_argument("--preset", required=True, metavar="NAME", help="editmgt-1024, meissonic-1024 or monetico-512")
    command.add_argument("--out", required=True, metavar="DIR", help="new folder")
    command.add_argument("--text-encoders", default="small", help="small (default) or full")
    command.add_argument("--dtype", default="float32", type=_dtype, help="float32 (default), bfloat16 or float16")
    command.add_argument("--seed", type=int, default=0)

    evaluation = commands.add_parser("evaluate", help="measure a model")
    protocols = evaluation.add_subparsers(required=True, metavar="PROTOCOL")
    command = _add(
        protocols, "scenes", run.evaluate_scenes, "held-out procedural scenes, where the right answer is known"
    )
    command.add_argument("--model", metavar="DIR", help="model directory (default: the one in the package)")
    command.add_argument("--output", metavar="FILE.json", help="where to write the numbers")
    command.add_argument("--gallery", metavar="FILE.png", help="picture of successes and failures to draw")
    command.add_argument("--count", type=_positive, default=500, help="how many scenes (default 500)")
    command.add_argument("--split", default="heldout", help="heldout, or train to choose settings on")
    command.add_argument("--batch-size", type=_positive, default=32)
    command.add_argument("--seed", type=int, default=0)
    _add_settings(command)
    return parser


def _add(commands, name, function, text, takes_overrides=False):
    command = commands.add_parser(name, help=text.split(";")[0], description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=function, takes_overrides=takes_overrides)
    return command


def _add_distributed(command):
    text = "one of several processes: Cloud TPU, Slurm and kin are recognised; else set JAX_COORDINATOR_ADDRESS, ..."
    command.add_argument("--distributed", action="store_true", help=text)
    text = "after so many seconds without a sign of a process the others end (default 30)"
    command.add_argument("--heartbeat", type=_positive, default=30, metavar="SECONDS", help=text)


def _add_edit(commands):
    command = _add(commands, "edit", run.edit, "edit a picture")
    command.add_argument("--image", required=True, metavar="IN", help="picture to edit")
    command.add_argument("--instruction", required=True, metavar="TEXT", help="what to change")
    command.add_argument("--mask", metavar="PICTURE", help="same size as the image; white = may change")
    command.add_argument("--query", metavar="WORDS", help="words of the instruction that say where (default: all)")
    command.add_argument("--save-map", metavar="FILE", help="heat map of what the instruction is about")
    command.add_argument("--save-mask", metavar="FILE", help="what was allowed to change, white; usable as --mask")
    _add_making(command)
    _add_settings(command)


def _add_generate(commands):
    """The commands of text-to-image models."""
    command = _add(commands, "generate", run.generate, "make a picture from text; needs a model trained for it")
    command.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="default: the model's square")
    _add_making(command, needs_model=True, composites=False)
    _add_settings(command, with_reference=False)

    command = _add(commands, "inpaint", run.inpaint, "fill a part of a picture; needs a text-to-image model")
    command.add_argument("--image", required=True, metavar="IN")
    command.add_argument("--mask", required=True, metavar="PICTURE", help="same size as the image; white = fill")
    _add_making(command, needs_model=True)
    _add_settings(command, with_reference=False)

    command = _add(commands, "outpaint", run.outpaint, "extend a picture; needs a text-to-image model")
    command.add_argument("--image", required=True, metavar="IN")
    pad = ("LEFT", "TOP", "RIGHT", "BOTTOM")
    command.add_argument("--pad", required=True, type=int, nargs=4, metavar=pad, help="pixels to add on each side")
    _add_making(command, needs_model=True)
    _add_settings(command, with_reference=False)


def _add_making(command, needs_model=False, composites=True):
    """Flags that all commands which make pictures share."""
    if needs_model:
        command.add_argument("--prompt", required=True, metavar="TEXT", help="what to show")
    which = "text-to-image model" if needs_model else "default: the one in the package"
    command.add_argument(
        "--model", metavar="DIR", required=needs_model, help=f"model directory, or its name on the hub ({which})"
    )
    command.add_argument("--lora", metavar="DIR", help="a LoRA of that model, as PEFT or `editmgt export` writes it")
    command.add_argument("--dtype", type=_dtype, help="float32 or bfloat16 (default: bfloat16 on accelerators)")
    command.add_argument("--strict", action="store_true", help="weights that hold NaN are an error")
    command.add_argument(
        "--output", required=True, metavar="OUT", help="picture to write; OUT_0, OUT_1, ... if several"
    )
    command.add_argument(
        "--negative-prompt", metavar="TEXT", help="what guidance leads away from (default: the model's)"
    )
    command.add_argument("--seed", type=int, default=0, help="the same seed gives the same picture (default 0)")
    command.add_argument("--num-images", type=_positive, default=1, metavar="N")
    if composites:
        command.add_argument(
            "--no-composite",
            dest="composite",
            action="store_false",
            help="leave what is held as the decoder paints it, not as in the input",
        )
    command.add_argument("--save-steps", metavar="FILE", help="the steps: an animation (.gif) or a strip (.png)")


def _add_prepare(commands):
    text = "make a training set of raw edit pairs; other flags are Apache Beam's: --runner=FlinkRunner"
    command = _add(commands, "prepare", run.prepare, text, takes_overrides=True)
    command.add_argument(
        "source", metavar="SOURCE", help="folder, parquet file, tfds:NAME[:SPLIT] or scenes:COUNT[:SEED]"
    )
    command.add_argument("--output", required=True, metavar="DIR", help="new folder, or one that was begun")
    command.add_argument("--column", action="append", default=[], metavar="MEANING=NAME", help="source=before.png, ...")
    command.add_argument(
        "--workers", type=_positive, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    group = command.add_argument_group("settings")
    group.add_argument("--resolution", type=int, help="pixels a side of the square bucket (default 1024)")
    group.add_argument("--min-side", type=int, help="shortest side that is kept (default: half the resolution)")
    group.add_argument("--max-per-category", type=int, metavar="N", help="pairs of a category (default: all)")
    group.add_argument("--min-changed", type=float, metavar="SHARE", help="of the pixels, or a pair is unchanged")
    group.add_argument("--max-changed", type=float, metavar="SHARE", help="of the pixels, for a local edit")
    group.add_argument("--max-instruction", type=int, metavar="CHARACTERS")
    group.add_argument("--image-format", help="jpeg (default) or png")
    group.add_argument(
        "--task-rows", type=int, metavar="N", help="rows that a worker prepares at a time (default 2048)"
    )


def _add_convert(commands):
    forms = commands.add_parser("convert", help="move weights between forms").add_subparsers(
        required=True, metavar="TO"
    )

    def add(name, function, text, source):
        command = _add(forms, name, function, text)
        command.add_argument("source", metavar="SOURCE", help=source)
        command.add_argument("output", metavar="OUTPUT", help="new folder")
        command.add_argument(
            "--verify", action="store_true", help="read the result back and compare every tensor, bit for bit"
        )
        command.add_argument("--strict", action="store_true", help="weights that hold NaN are an error")
        return command

    add("orbax", run.convert_orbax, "released directory to Orbax", "model directory, or its name on the hub")
    command = add(
        "released", run.convert_released, "Orbax or a run to a released directory", "of `convert orbax`, or a run"
    )
    _add_exported(command)

    text = "text-to-image base to an editor to train: a new connector, all else copied"
    command = add("editor", run.convert_editor, text, "model directory of the base")
    command.add_argument("--llm-encoder", metavar="DIR", help="folder of the Gemma 2 to go with it")
    command.add_argument("--seed", type=int, default=0, help="of the new connector")

    command = add("lora", run.convert_lora, "LoRA from Orbax to PEFT's safetensors, or back", "folder of the LoRA")
    command.add_argument("--model", required=True, metavar="DIR", help="the model that it adapts")

    command = add("merge", run.convert_merge, "model directory with a LoRA merged into it", "model directory")
    command.add_argument("--lora", required=True, metavar="DIR")


def _add_exported(command):
    """Flags that choose what of a training run is written."""
    command.add_argument("--step", type=int, help="checkpoint of the run to take (default: the best one)")
    command.add_argument("--dtype", default="float32", type=_dtype, help="float32 (default), bfloat16 or float16")
    command.add_argument("--raw", action="store_true", help="the run's parameters, not their moving average")
    command.add_argument("--merge", action="store_true", help="of a LoRA: the model that it adapts, with it merged in")


def _add_settings(command, with_reference=True):
    """Flags of `settings.Settings`. Left out, they are the model's own."""
    group = command.add_argument_group("settings", "by default the model's own")
    group.add_argument("--steps", type=int, help="decoding steps")
    group.add_argument("--guidance-scale", type=float, help="how strictly to follow the text; 1 is off")
    group.add_argument("--sampling-temperature", type=float, help="of the drawn ids; 1 as the model predicts")
    group.add_argument("--temperature", type=float, nargs="+", help="of the confidence: FIRST LAST, or one number")
    if not with_reference:
        return
    group.add_argument("--reference-strength", type=float, help="gamma, pull of the source image; 1 as trained, 0 none")
    group.add_argument(
        "--hold-threshold", type=float, help="lambda; below it a region is held. 0 is off, above 1 is all"
    )
    group.add_argument("--hold", help="'released': at every step, or 'from_step': once, at --hold-step")
    group.add_argument("--hold-step", type=int)
    group.add_argument("--layers", type=int, nargs="+", metavar="BLOCK", help="blocks whose attention says where")
    group.add_argument("--filter", help="of the relevance: adaptive, gaussian or none")


def _dtype(text):
    try:
        return dtype_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _steps(text) -> tuple[int, int]:
    first, colon, end = text.partition(":")
    if not (colon and first.isdigit() and end.isdigit() and int(first) < int(end)):
        raise argparse.ArgumentTypeError(f"steps are given as START:END, START before END; got {text!r}")
    return int(first), int(end)


def _count(text) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be 0 or more; got {text!r}")
    return int(text)


def _positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
