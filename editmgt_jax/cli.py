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

    outputs = [
        {
            "picture": _numbered(args.output, index, args.num_images),
            "map": _numbered(args.save_map, index, args.num_images),
            "mask": _numbered(args.save_mask, index, args.num_images),
            "steps": _numbered(args.save_steps, index, args.num_images),
        }
        for index in range(args.num_images)
    ]
    images.check_distinct([path for files in outputs for path in files.values() if path is not None])
    for files in outputs:
        for kind, path in files.items():
            if path is not None:
                images.check_output(path, images.FORMATS | images.ANIMATED if kind == "steps" else None)
    image = images.load(args.image)
    mask = None if args.mask is None else images.load_mask(args.mask, image.size)
    with _Stages() as stages:
        stages("load")
        use_disk_cache()
        from editmgt_jax.pipeline import EditPipeline

        pipeline = EditPipeline.from_pretrained(args.model)
        result = pipeline(
            image,
            args.instruction,
            mask=mask,
            query=args.query,
            seed=args.seed,
            num_images=args.num_images,
            negative_prompt=args.negative_prompt,
            composite=args.composite,
            record=args.save_steps is not None,
            progress=stages,
            **_settings(args),
        )
        stages("save")
        for index, files in enumerate(outputs):
            images.save(result.images[index], files["picture"])
            if files["map"]:
                images.save(images.overlay(image, result.relevance[index]), files["map"])
            if files["mask"]:
                images.save(images.mask_picture(result.keep_mask[index], image.size), files["mask"])
            if files["steps"]:
                images.save_steps(pipeline.paint_steps(result, index), files["steps"])


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
    import numpy as np

    from editmgt_jax.training import trainer

    trainer.export(args.workdir, args.output, args.step, np.dtype(args.dtype))


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
    command.add_argument("--dtype", default="float32", choices=["float32", "float16"])

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
    command.add_argument(
        "--output", required=True, metavar="OUT", help="picture to write; OUT_0, OUT_1, ... if several"
    )
    command.add_argument("--model", metavar="DIR", help="model directory (default: the one in the package)")
    command.add_argument("--mask", metavar="PICTURE", help="same size as the image; white = may change")
    command.add_argument("--query", metavar="WORDS", help="words of the instruction that say where (default: all)")
    command.add_argument(
        "--negative-prompt", metavar="TEXT", help="what guidance leads away from (default: the model's)"
    )
    command.add_argument("--seed", type=int, default=0, help="the same seed gives the same picture (default 0)")
    command.add_argument("--num-images", type=_positive, default=1, metavar="N")
    command.add_argument(
        "--no-composite",
        dest="composite",
        action="store_false",
        help="leave held regions as the decoder paints them, not as in the input",
    )
    command.add_argument("--save-map", metavar="FILE", help="heat map of what the instruction is about")
    command.add_argument("--save-mask", metavar="FILE", help="what was allowed to change, white; usable as --mask")
    command.add_argument("--save-steps", metavar="FILE", help="the steps: an animation (.gif) or a strip (.png)")
    _add_settings(command)


def _add_settings(command):
    """Flags of `settings.Settings`. Left out, they are the model's own."""
    group = command.add_argument_group("settings", "by default the model's own")
    group.add_argument("--steps", type=int, help="decoding steps")
    group.add_argument("--guidance-scale", type=float, help="how strictly to follow the instruction; 1 is off")
    group.add_argument("--reference-strength", type=float, help="gamma, pull of the source image; 1 as trained, 0 none")
    group.add_argument(
        "--hold-threshold", type=float, help="lambda; below it a region is held. 0 is off, above 1 is all"
    )
    group.add_argument("--hold", help="'released': at every step, or 'from_step': once, at --hold-step")
    group.add_argument("--hold-step", type=int)
    group.add_argument("--layers", type=int, nargs="+", metavar="BLOCK", help="blocks whose attention says where")
    group.add_argument("--sampling-temperature", type=float, help="of the drawn ids; 1 as the model predicts")
    group.add_argument("--temperature", type=float, nargs="+", help="of the confidence: FIRST LAST, or one number")
    group.add_argument("--filter", help="of the relevance: adaptive, gaussian or none")


def _settings(args) -> dict:
    names = ("steps", "guidance_scale", "reference_strength", "hold_threshold", "hold", "hold_step", "layers")
    names += ("sampling_temperature", "temperature", "filter")
    chosen = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if len(chosen.get("temperature", ())) == 1:
        chosen["temperature"] = chosen["temperature"][0]
    return chosen


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
