"""`editmgt edit`, `generate`, `inpaint` and `outpaint`: make pictures with a model."""

import argparse
from pathlib import Path

from editmgt_jax.cli import shared
from editmgt_jax.declarations import SETTINGS, SettingsError

STAGES = ("load", "text", "tokenize", "compile", "decode", "paint", "save")


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Adds `edit`, `generate`, `inpaint` and `outpaint`."""
    _add_edit(commands)
    _add_generate(commands)


def _add_edit(commands):
    command = shared.add_command(commands, "edit", edit, "edit a picture")
    command.add_argument("--image", required=True, metavar="IN", help="picture to edit")
    command.add_argument("--instruction", metavar="TEXT", help="instruction, such as 'make the car red'")
    text = "repeat the edit of a picture that the page of `editmgt serve` gave, with its instruction, seed, mask and settings"
    command.add_argument("--from", dest="recipe", metavar="PNG", help=text)
    command.add_argument("--mask", metavar="PICTURE", help="picture of the image's size; white may change")
    text = "hide what may change from the model, too, as the released code does with a mask"
    command.add_argument("--released-mask", action="store_true", help=text)
    command.add_argument(
        "--query", metavar="WORDS", help="words of the instruction that localise the edit (default: all)"
    )
    command.add_argument("--save-map", metavar="FILE", help="where to draw the relevance of each token, as a heat map")
    command.add_argument(
        "--save-mask", metavar="FILE", help="where to draw the tokens that could change, in white; usable as --mask"
    )
    command.add_argument(
        "--program", metavar="FILE", help="a decode that `editmgt export-decode` wrote, for these settings"
    )
    _add_making(command)
    shared.add_settings(command)


def _add_generate(commands):
    """The commands of text-to-image models."""
    command = shared.add_command(
        commands, "generate", generate, "make a picture from text; needs a model trained for it"
    )
    command.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="default: the model's square")
    _add_making(command, needs_model=True, composites=False)
    shared.add_settings(command, with_reference=False)

    command = shared.add_command(commands, "inpaint", inpaint, "fill part of a picture; needs a text-to-image model")
    command.add_argument("--image", required=True, metavar="IN")
    command.add_argument(
        "--mask", required=True, metavar="PICTURE", help="picture of the image's size; white is filled"
    )
    _add_making(command, needs_model=True)
    shared.add_settings(command, with_reference=False)

    command = shared.add_command(commands, "outpaint", outpaint, "extend a picture; needs a text-to-image model")
    command.add_argument("--image", required=True, metavar="IN")
    pad = ("LEFT", "TOP", "RIGHT", "BOTTOM")
    command.add_argument("--pad", required=True, type=int, nargs=4, metavar=pad, help="pixels to add on each side")
    _add_making(command, needs_model=True)
    shared.add_settings(command, with_reference=False)


def _add_making(command, needs_model=False, composites=True):
    """Flags of all commands that make pictures."""
    if needs_model:
        command.add_argument("--prompt", required=True, metavar="TEXT", help="description of the picture")
    which = "text-to-image model" if needs_model else "default: the default model"
    command.add_argument(
        "--model",
        metavar="DIR",
        required=needs_model,
        help=f"model directory, or a name on the Hugging Face hub ({which})",
    )
    command.add_argument("--lora", metavar="DIR", help="a LoRA of that model, as PEFT or `editmgt export` writes it")
    command.add_argument("--dtype", type=shared.dtype, help="float32 or bfloat16 (default: bfloat16 on accelerators)")
    shared.add_variant(command)
    command.add_argument("--strict", action="store_true", help="NaN in weights is an error")
    command.add_argument(
        "--output", required=True, metavar="OUT", help="picture to write; with --num-images, OUT_0, OUT_1, ..."
    )
    command.add_argument(
        "--negative-prompt", metavar="TEXT", help="prompt that guidance leads away from (default: the model's)"
    )
    command.add_argument("--seed", type=shared.seed, default=0, help="the same seed gives the same picture (default 0)")
    command.add_argument("--num-images", type=shared.images_count, default=1, metavar="N")
    if composites:
        command.add_argument(
            "--no-composite",
            dest="composite",
            action="store_false",
            help="keep held regions as the image tokenizer decodes them, not as in the input",
        )
    command.add_argument(
        "--save-steps", metavar="FILE", help="where to draw the decoding steps: an animation (.gif) or a strip (.png)"
    )


def edit(args: argparse.Namespace) -> None:
    """Edits a picture. Errors: SettingsError, ImageError, RecipeError."""
    from editmgt_jax import images

    if args.recipe is not None:
        return _repeat(args)
    if args.instruction is None:
        raise SettingsError("an edit needs --instruction, or --from a picture whose edit is to be repeated")
    if args.released_mask and args.mask is None:
        raise SettingsError("--released-mask hides what a mask opens: give --mask, too")
    outputs = _check_outputs(args)
    image = images.load(args.image, keep_profile=True)
    mask = None if args.mask is None else images.load_mask(args.mask, image.size)
    _check_sizes(outputs, image.size)
    inputs = {"mask": mask, "query": args.query, "composite": args.composite, "released_mask": args.released_mask}
    _make_pictures(args, outputs, lambda pipe, **more: pipe(image, args.instruction, **inputs, **more), image)


# What a recipe holds, and its flags are left out: their defaults.
_OF_RECIPE = {
    **{"instruction": None, "mask": None, "query": None, "negative_prompt": None, "seed": 0, "num_images": 1},
    **{"composite": True, "released_mask": False},
    **dict.fromkeys(setting.name for setting in SETTINGS if setting.about != "result"),
}


def _repeat(args) -> None:
    """Edits a picture by the recipe in a result."""
    given = [name for name, default in _OF_RECIPE.items() if getattr(args, name) != default]
    if given:
        raise SettingsError(f"--from repeats an edit as it was: leave --{given[0].replace('_', '-')} out")
    from editmgt_jax import images
    from editmgt_jax.pipeline.recipes import read_recipe

    outputs = _check_outputs(args)
    images.check_distinct([args.output], [args.recipe])
    recipe, image = read_recipe(args.recipe), images.load(args.image, keep_profile=True)
    _check_sizes(outputs, image.size)

    def make(pipe, **options):
        recipe.check(pipe, image)
        return pipe(image, **recipe.call, **{name: options[name] for name in ("record", "progress")})

    _make_pictures(args, outputs, make, image)


def generate(args: argparse.Namespace) -> None:
    """Makes pictures from a prompt."""
    outputs = _check_outputs(args)
    size = None if args.size is None else tuple(args.size)
    if size is not None:
        _check_sizes(outputs, size)
    _make_pictures(args, outputs, lambda pipe, **more: pipe.generate(args.prompt, size, **more))


def inpaint(args: argparse.Namespace) -> None:
    """Fills the masked part of a picture."""
    from editmgt_jax import images

    outputs = _check_outputs(args)
    image = images.load(args.image, keep_profile=True)
    mask = images.load_mask(args.mask, image.size)
    _check_sizes(outputs, image.size)
    inputs = {"composite": args.composite}
    _make_pictures(args, outputs, lambda pipe, **more: pipe.inpaint(image, args.prompt, mask, **inputs, **more))


def outpaint(args: argparse.Namespace) -> None:
    """Extends a picture at its sides."""
    from editmgt_jax import images

    outputs = _check_outputs(args)
    image, pad = images.load(args.image, keep_profile=True), tuple(args.pad)
    left, top, right, bottom = images.extension(image.size, pad)
    _check_sizes(outputs, (image.width + left + right, image.height + top + bottom))
    inputs = {"composite": args.composite}
    _make_pictures(args, outputs, lambda pipe, **more: pipe.outpaint(image, args.prompt, pad, **inputs, **more))


def _check_outputs(args) -> list[dict]:
    """The files to write for each picture, {flag: path or None}. Errors: ImageError for one that cannot be written, SettingsError."""
    from editmgt_jax import images

    shared.settings_of(args)  # what is wrong with them is found before the model is loaded
    flags = [name for name in ("output", "save_map", "save_mask", "save_steps") if hasattr(args, name)]
    outputs = [
        {name: _numbered(getattr(args, name), index, args.num_images) for name in flags}
        for index in range(args.num_images)
    ]
    inputs = [path for name in ("image", "mask") if (path := getattr(args, name, None)) is not None]
    images.check_distinct([path for files in outputs for path in files.values() if path is not None], inputs)
    for files in outputs:
        for name, path in files.items():
            if path is not None:
                images.check_output(path, images.FORMATS | images.ANIMATED if name == "save_steps" else None)
    return outputs


def _check_sizes(outputs, size) -> None:
    """Errors: ImageError for an output whose format cannot hold a picture of `size`."""
    from editmgt_jax import images

    for files in outputs:
        for name, path in files.items():
            if path is not None and name != "save_steps":  # which scales its frames
                images.check_size_of(path, size)


def _make_pictures(args, outputs, make, image=None) -> None:
    """Loads the model, calls make(pipeline, options) under a progress bar, and saves the result; maps are drawn over `image`."""
    from editmgt_jax import images

    with _Stages() as stages:
        stages("load")
        shared.use_disk_cache()
        from editmgt_jax.pipeline import EditPipeline
        from editmgt_jax.sampling.exported import ExportedDecode

        path = getattr(args, "program", None)
        program = None if path is None else ExportedDecode(path)
        reading = {"dtype": args.dtype, "strict": args.strict, "lora": args.lora, "variant": args.variant}
        pipeline = EditPipeline.from_pretrained(args.model, **reading, program=program)
        chosen = shared.settings_of(args)
        shared.check_read(chosen, pipeline.settings(**chosen))
        result = make(
            pipeline,
            seed=args.seed,
            num_images=args.num_images,
            negative_prompt=args.negative_prompt,
            record=args.save_steps is not None,
            progress=stages,
            **chosen,
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
