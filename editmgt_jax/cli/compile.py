"""`editmgt compile-check`: the programs of a run, compiled for TPUs that are not there. `export-decode`: an edit's, as a file."""

import argparse
import sys

from editmgt_jax.cli import shared


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Adds `compile-check` and `export-decode`."""
    _add_export(commands)
    text = "compile a run's programs for TPUs without one, and estimate memory and time" + shared.OVERRIDABLE
    command = shared.add_command(commands, "compile-check", compile_check, text, takes_overrides=True)
    command.add_argument("--config", metavar="CONFIG", help="a file, or the name of a shipped one")
    text = "compile the table of docs/tpu.md; rows whose files are there are skipped, and --markdown writes the tables"
    command.add_argument("--all", action="store_true", help=text)
    command.add_argument("--rows", default="docs/tpu_rows", metavar="FOLDER", help="of --all: a JSON file a row")
    command.add_argument("--topology", nargs="+", default=["v5e:4x4"], metavar="CHIP:SHAPE", help="such as v5e:4x4")
    command.add_argument(
        "--slices", type=shared.positive, default=1, metavar="N", help="slices of the topology (default 1)"
    )
    command.add_argument(
        "--programs",
        nargs="+",
        default=["train"],
        metavar="NAME",
        help="train, evaluate, tokenize, decode (default: train)",
    )
    command.add_argument("--states", action="store_true", help="records hold text states: steps encode no text")
    command.add_argument("--json", metavar="FILE", help="write all figures")
    command.add_argument("--markdown", metavar="FILE", help="write a table")


def _add_export(commands):
    text = "write the decode of an edit to a file, for one size and choice of settings; for machines that need not trace it"
    command = shared.add_command(commands, "export-decode", export_decode, text)
    command.add_argument(
        "--model", metavar="DIR", help="model directory, or a name on the hub (default: the default model)"
    )
    command.add_argument("--lora", metavar="DIR", help="a LoRA of that model")
    command.add_argument("--dtype", type=shared.dtype, help="float32 or bfloat16 (default: bfloat16 on accelerators)")
    command.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="default: the model's square")
    command.add_argument(
        "--batch", type=shared.positive, default=1, metavar="N", help="pictures of a decode (default 1)"
    )
    text = "cpu, cuda, rocm, tpu: which machines will run it (default: as this one)"
    command.add_argument("--platforms", nargs="+", metavar="NAME", help=text)
    command.add_argument("--output", required=True, metavar="FILE", help="file to write")
    shared.add_settings(command)


def export_decode(args: argparse.Namespace) -> None:
    """Writes the decode of an edit. Errors: those of `EditPipeline.export_decode`."""
    shared.use_disk_cache()
    import jax

    from editmgt_jax.pipeline import EditPipeline

    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    size = None if args.size is None else tuple(args.size)
    pipeline = EditPipeline.from_pretrained(args.model, dtype=args.dtype, lora=args.lora)
    more = {"batch": args.batch, "platforms": args.platforms or [here]}
    pipeline.export_decode(args.output, size, **more, **shared.settings_of(args))


def compile_check(args: argparse.Namespace) -> None:
    """Prints what each program would cost. Errors: SystemExit with code 1 if one does not fit or compile."""
    from editmgt_jax.errors import UserError
    from editmgt_jax.files import write_json, write_text
    from editmgt_jax.training.compile_job import NAMES, check
    from editmgt_jax.training.compile_report import describe, markdown
    from editmgt_jax.training.config_files import load_config

    if args.all:
        return _fill_table(args)
    if args.config is None:
        raise UserError("compile-check needs --config, or --all for the table of the shipped ones")
    unknown = sorted(set(args.programs) - set(NAMES))
    if unknown:
        raise UserError(f"programs are {', '.join(NAMES)}; got {', '.join(unknown)}")
    load_config(args.config, args.overrides)  # its errors are told once, and here
    entries = []
    for topology in args.topology:
        for program in args.programs:
            entry = check(args.config, args.overrides, topology, args.slices, program, args.states)
            print(describe(entry), flush=True)
            entries.append(entry)
    print("editmgt: note: times are estimates from the compiler's static numbers", file=sys.stderr)
    if args.json:
        write_json(args.json, entries, indent=2)
    if args.markdown:
        write_text(args.markdown, markdown(entries))
    if not all(entry.get("fits") for entry in entries):
        raise SystemExit(1)


def _fill_table(args) -> None:
    from editmgt_jax.errors import UserError
    from editmgt_jax.files import write_text
    from editmgt_jax.training import compile_table

    if args.config is not None or args.overrides:
        raise UserError(f"--all compiles the shipped configs as they are; got {[args.config, *args.overrides]}")
    for described in compile_table.fill(args.rows):
        print(described, flush=True)
        if args.markdown:
            write_text(args.markdown, compile_table.tables(args.rows))
    if args.markdown:
        write_text(args.markdown, compile_table.tables(args.rows))
