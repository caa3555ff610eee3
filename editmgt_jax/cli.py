"""The command line, `editmgt`. One sub-command, one call; what is heavy is imported inside it."""

import argparse
import os
import sys
import warnings
from pathlib import Path

STAGES = ("load", "text", "tokenise", "compile", "decode", "paint", "save")


def main(argv=None) -> int:
    """-> exit code: 0, or 2 after an error of the user's, told in a line."""
    parser = make_parser()
    args, extra = parser.parse_known_args(argv)
    args.overrides = extra
    if extra and not args.takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(extra)}")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            args.run(args)
        except KeyboardInterrupt:
            print("editmgt: interrupted", file=sys.stderr)
            return 130
        except Exception as error:
            if not _is_for_users(error):
                raise
            print(f"editmgt: error: {error}", file=sys.stderr)
            return 2
    return 0


def _is_for_users(error) -> bool:
    """Errors that this package raises, and those of files, state a rule; any other is a defect and keeps its traceback."""
    frame = error.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    is_ours = frame.tb_frame.f_globals.get("__name__", "").startswith("editmgt_jax.")
    return isinstance(error, OSError) or is_ours and isinstance(error, (ValueError, RuntimeError))


def _show_warning(message, category, *_):
    kind = "note" if category is UserWarning else category.__name__
    print(f"editmgt: {kind}: {message}", file=sys.stderr)


def use_disk_cache() -> None:
    """Keeps compiled programs between runs, in EDITMGT_CACHE or the user's cache folder; goes without if it cannot."""
    import jax

    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("EDITMGT_CACHE") or base / "editmgt")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(
            f"editmgt: note: no cache of compiled programs, cannot write {folder} ({error.strerror})", file=sys.stderr
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# ---- sub-commands


def edit(args) -> None:
    from editmgt_jax import images

    outputs = _check_outputs(args)
    image = images.load(args.image)
    mask = None if args.mask is None else images.load_mask(args.mask, image.size)
    inputs = {"mask": mask, "query": args.query, "composite": args.composite}
    _make_pictures(args, outputs, lambda pipe, **more: pipe(image, args.instruction, **inputs, **more), image)


def generate(args) -> None:
    outputs = _check_outputs(args)
    size = None if args.size is None else tuple(args.size)
    _make_pictures(args, outputs, lambda pipe, **more: pipe.generate(args.prompt, size, **more))


def inpaint(args) -> None:
    from editmgt_jax import images

    outputs = _check_outputs(args)
    image = images.load(args.image)
    mask = images.load_mask(args.mask, image.size)
    inputs = {"composite": args.composite}
    _make_pictures(args, outputs, lambda pipe, **more: pipe.inpaint(image, args.prompt, mask, **inputs, **more))


def outpaint(args) -> None:
    from editmgt_jax import images

    outputs = _check_outputs(args)
    image, pad = images.load(args.image), tuple(args.pad)
    inputs = {"composite": args.composite}
    _make_pictures(args, outputs, lambda pipe, **more: pipe.outpaint(image, args.prompt, pad, **inputs, **more))


def _check_outputs(args) -> list[dict]:
    """The files to write for each picture, {flag: path or None}. Errors: those that cannot be written."""
    from editmgt_jax import images

    flags = [name for name in ("output", "save_map", "save_mask", "save_steps") if hasattr(args, name)]
    outputs = [
        {name: _numbered(getattr(args, name), index, args.num_images) for name in flags}
        for index in range(args.num_images)
    ]
    images.check_distinct([path for files in outputs for path in files.values() if path is not None])
    for files in outputs:
        for name, path in files.items():
            if path is not None:
                images.check_output(path, images.FORMATS | images.ANIMATED if name == "save_steps" else None)
    return outputs


def _make_pictures(args, outputs, make, image=None) -> None:
    """Loads the model, calls make(pipeline, options) under a progress bar and saves what comes; maps lie over `image`."""
    from editmgt_jax import images

    with _Stages() as stages:
        stages("load")
        use_disk_cache()
        from editmgt_jax.pipeline import EditPipeline

        pipeline = EditPipeline.from_pretrained(args.model, dtype=args.dtype, strict=args.strict)
        result = make(
            pipeline,
            seed=args.seed,
            num_images=args.num_images,
            negative_prompt=args.negative_prompt,
            record=args.save_steps is not None,
            progress=stages,
            **_settings(args),
        )
        stages("save")
        for index, files in enumerate(outputs):
            images.save(result.images[index], files["output"])
            if files.get("save_map"):
                images.save(images.overlay(image, result.relevance[index]), files["save_map"])
            if files.get("save_mask"):
                images.save(images.mask_picture(result.keep_mask[index], image.size), files["save_mask"])
            if files["save_steps"]:
                images.save_steps(pipeline.paint_steps(result, index), files["save_steps"])


def scenes(args) -> None:
    from editmgt_jax import images
    from editmgt_jax.data.scenes import SceneConfig, preview

    images.check_output(args.preview)
    config = SceneConfig(size=args.size, split=args.split, seed=args.seed)
    images.save(preview(config, rows=args.rows, columns=args.columns), args.preview)


def train(args) -> None:
    from editmgt_jax.training.config_files import load_config

    config = load_config(args.config, args.overrides)
    use_disk_cache()
    from editmgt_jax.training import trainer

    trainer.train(config, args.workdir)


def tokenize(args) -> None:
    from editmgt_jax.training.config_files import load_config

    config = load_config(args.config, args.overrides)
    use_disk_cache()
    from editmgt_jax.training import trainer

    trainer.tokenize(config, args.output, args.examples)


def export(args) -> None:
    from editmgt_jax.training import trainer

    trainer.export(args.workdir, args.output, args.step, args.dtype, args.raw)


def convert_orbax(args) -> None:
    from editmgt_jax import directories

    directories.to_orbax(args.source, args.output, args.verify, args.strict)
    _print_peak_memory()


def convert_released(args) -> None:
    from editmgt_jax import directories

    directories.to_released(args.source, args.output, args.verify)
    _print_peak_memory()


def convert_editor(args) -> None:
    from editmgt_jax import directories

    copied, new = directories.to_editor(args.source, args.output, args.llm_encoder, args.seed)
    print("\n".join([*(f"copied  {key}" for key in copied), *(f"new     {key}" for key in new)]))
    if args.llm_encoder is None:
        print("no llm_encoder: add one to edit with the result (--llm-encoder DIR)")


def convert_lora(args) -> None:
    from editmgt_jax import directories

    directories.convert_lora(args.source, args.output, args.model)


def convert_merge(args) -> None:
    from editmgt_jax import directories

    directories.merge_lora(args.source, args.output, args.lora)


def inspect(args) -> None:
    import json

    from editmgt_jax import directories

    if (args.directory is None) == (args.preset is None):
        raise directories.DirectoryError("inspect takes a model directory or --preset NAME, one of them")
    named = args.preset is not None
    report = directories.inspect_preset(args.preset) if named else directories.inspect(args.directory)
    print(json.dumps(report, indent=2) if args.json else directories.describe(report))
    if not report.get("loads", True):
        raise SystemExit(1)


def make_random(args) -> None:
    from editmgt_jax import directories

    directories.make_random(args.preset, args.out, args.text_encoders, args.dtype, args.seed)


def _print_peak_memory() -> None:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"peak memory {peak / 2**30:.2f} GiB")


def evaluate_scenes(args) -> None:
    use_disk_cache()
    from editmgt_jax.evaluation import protocols

    names = ("model", "output", "gallery", "count", "batch_size", "seed", "split")
    protocols.evaluate_scenes(**{name: getattr(args, name) for name in names}, **_settings(args))


# ---- arguments


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="editmgt", description="Edit pictures by instruction; train such editors.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_edit(commands)
    _add_generate(commands)

    command = _add(commands, "scenes", scenes, "look at the procedural training scenes")
    command.add_argument("--preview", required=True, metavar="GRID.png", help="picture to write")
    command.add_argument("--size", type=int, default=64, help="pixels a side (default 64)")
    command.add_argument("--split", default="train", help="train or heldout")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--rows", type=_positive, default=8)
    command.add_argument("--columns", type=_positive, default=3)

    overridable = "; keys of the config can be set: --config.optimizer.learning_rate=1e-3"
    command = _add(commands, "train", train, f"train a model, or go on training it{overridable}", takes_overrides=True)
    command.add_argument("--config", required=True, metavar="FILE.py", help="configs/scenes_mgt.py, for example")
    command.add_argument("--workdir", required=True, metavar="DIR", help="checkpoints and metrics of the run")

    command = _add(commands, "tokenize", tokenize, f"encode training data once{overridable}", takes_overrides=True)
    command.add_argument("--config", required=True, metavar="FILE.py")
    command.add_argument("--output", required=True, metavar="DIR", help="folder for the token records")
    command.add_argument("--examples", required=True, type=_positive, help="how many pairs")

    command = _add(commands, "export", export, "write a run's parameters as a model directory")
    command.add_argument("--workdir", required=True, metavar="RUN")
    command.add_argument("--output", required=True, metavar="DIR", help="new folder")
    command.add_argument("--step", type=int, help="checkpoint to take (default: the best one)")
    command.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    command.add_argument("--raw", action="store_true", help="the parameters, not their moving average")

    _add_convert(commands)
    command = _add(commands, "inspect", inspect, "say what a model consists of, and whether it would load")
    command.add_argument("directory", nargs="?", metavar="DIR", help="model directory")
    command.add_argument("--preset", metavar="NAME", help="a released model, without its weights: editmgt-1024, ...")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = _add(commands, "make-random", make_random, "write a model directory of random weights, for tests")
    command.add_argument("--preset", required=True, metavar="NAME", help="editmgt-1024, meissonic-1024 or monetico-512")
    command.add_argument("--out", required=True, metavar="DIR", help="new folder")
    command.add_argument("--text-encoders", default="small", help="small (default) or full")
    command.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    command.add_argument("--seed", type=int, default=0)

    evaluation = commands.add_parser("evaluate", help="measure a model")
    protocols = evaluation.add_subparsers(required=True, metavar="PROTOCOL")
    command = _add(protocols, "scenes", evaluate_scenes, "held-out procedural scenes, where the right answer is known")
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


def _add_edit(commands):
    command = _add(commands, "edit", edit, "edit a picture")
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
    command = _add(commands, "generate", generate, "make a picture from text; needs a model trained for it")
    command.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="default: the model's square")
    _add_making(command, needs_model=True, composites=False)
    _add_settings(command, with_reference=False)

    command = _add(commands, "inpaint", inpaint, "fill a part of a picture; needs a text-to-image model")
    command.add_argument("--image", required=True, metavar="IN")
    command.add_argument("--mask", required=True, metavar="PICTURE", help="same size as the image; white = fill")
    _add_making(command, needs_model=True)
    _add_settings(command, with_reference=False)

    command = _add(commands, "outpaint", outpaint, "extend a picture; needs a text-to-image model")
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


def _add_convert(commands):
    forms = commands.add_parser("convert", help="move weights between forms").add_subparsers(
        required=True, metavar="TO"
    )

    def add(name, function, text, source):
        command = _add(forms, name, function, text)
        command.add_argument("source", metavar="SOURCE", help=source)
        command.add_argument("output", metavar="OUTPUT", help="new folder")
        return command

    verify = "read the result back and compare every tensor, bit for bit"
    command = add("orbax", convert_orbax, "released directory to Orbax", "model directory, or its name on the hub")
    command.add_argument("--verify", action="store_true", help=verify)
    command.add_argument("--strict", action="store_true", help="weights that hold NaN are an error")

    command = add("released", convert_released, "Orbax to a released directory", "what `convert orbax` wrote")
    command.add_argument("--verify", action="store_true", help=verify)

    text = "text-to-image base to an editor to train: a new connector, all else copied"
    command = add("editor", convert_editor, text, "model directory of the base")
    command.add_argument("--llm-encoder", metavar="DIR", help="folder of the Gemma 2 to go with it")
    command.add_argument("--seed", type=int, default=0, help="of the new connector")

    command = add("lora", convert_lora, "LoRA from Orbax to PEFT's safetensors, or back", "folder of the LoRA")
    command.add_argument("--model", required=True, metavar="DIR", help="the model that it adapts")

    command = add("merge", convert_merge, "model directory with a LoRA merged into it", "model directory")
    command.add_argument("--lora", required=True, metavar="DIR")


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


def _settings(args) -> dict:
    names = ("steps", "guidance_scale", "reference_strength", "hold_threshold", "hold", "hold_step", "layers")
    names += ("sampling_temperature", "temperature", "filter")
    chosen = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    if len(chosen.get("temperature", ())) == 1:
        chosen["temperature"] = chosen["temperature"][0]
    return chosen


def _dtype(text):
    names = {"bf16": "bfloat16", "bfloat16": "bfloat16", "float32": "float32", "f32": "float32"}
    if text not in names:
        raise argparse.ArgumentTypeError(f"must be float32 or bfloat16, got {text}")
    return names[text]


def _positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def _numbered(path, index, count):
    """out.png -> out_0.png when there are several; None stays None."""
    if path is None or count == 1:
        return path
    path = Path(path)
    return str(path.with_name(f"{path.stem}_{index}{path.suffix}"))


class _Stages:
    """A progress bar over the stages of an edit, for terminals only."""

    def __enter__(self):
        from tqdm import tqdm

        shown = "{desc:<10}{bar}{n_fmt}/{total_fmt} {elapsed}"
        self._bar = tqdm(total=len(STAGES), bar_format=shown, disable=None, leave=False, dynamic_ncols=True)
        return self

    def __call__(self, stage):
        self._bar.set_description_str(stage, refresh=False)
        self._bar.n = STAGES.index(stage)
        self._bar.refresh()

    def __exit__(self, *_):
        self._bar.close()


if __name__ == "__main__":
    sys.exit(main())
