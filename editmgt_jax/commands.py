"""What the sub-commands of `editmgt` do: one function each, of the parsed arguments. What is heavy is imported inside."""

import os
import sys
from pathlib import Path

STAGES = ("load", "text", "tokenise", "compile", "decode", "paint", "save")


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

        pipeline = EditPipeline.from_pretrained(args.model, dtype=args.dtype, strict=args.strict, lora=args.lora)
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
    config = SceneConfig(size=args.size, split=args.split, seed=args.seed, objects=args.objects)
    images.save(preview(config, rows=args.rows, columns=args.columns), args.preview)


def train(args) -> None:
    from editmgt_jax.training.config_files import load_config

    try:
        config = load_config(args.config, args.overrides)
    finally:  # even if only this process cannot: the others hear of it
        _join(args)
    use_disk_cache()
    from editmgt_jax.training import trainer

    trainer.train(config, args.workdir, args.profile)


def supervise(args) -> None:
    from editmgt_jax.supervise import supervise as keep_running

    raise SystemExit(keep_running(args.command, args.max_restarts, args.wait, args.healthy))


def _join(args) -> None:
    """Joins the other processes of the job, if there are any."""
    if args.distributed:
        from editmgt_jax.training import processes

        processes.join(args.heartbeat)
        args.end_job = processes.end_job


def prepare(args) -> None:
    import dataclasses

    from editmgt_jax.data import prepare as preparing
    from editmgt_jax.data.examine import PrepareConfig

    columns = [column.partition("=") for column in args.column]
    if wrong := ["".join(column) for column in columns if not column[2]]:
        raise preparing.PrepareError(f"--column must read MEANING=NAME; got {wrong}")
    names = [field.name for field in dataclasses.fields(PrepareConfig)]
    chosen = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    mapping = {meaning: name for meaning, _, name in columns}
    preparing.prepare(args.source, args.output, PrepareConfig(**chosen), mapping, args.overrides, args.workers)


def tokenize(args) -> None:
    from editmgt_jax.training.config_files import ConfigError, load_config

    if (args.records is None) == (args.config is None):
        raise ConfigError("tokenize takes --records DIR or --config FILE.py, one of them")
    if (args.config is None) != (args.examples is None) or args.records is not None and args.overrides:
        raise ConfigError("--examples and overrides of keys belong to --config, which needs --examples")
    _join(args)
    use_disk_cache()
    from editmgt_jax.training import token_job

    if args.records is not None:
        more = (args.batch_size, args.text_states, args.dtype)
        token_job.tokenize_pairs(args.records, args.model, args.output, *more)
        return
    config = load_config(args.config, args.overrides)
    token_job.tokenize_scenes(config, args.output, args.examples)


def data_stats(args) -> None:
    import json

    from editmgt_jax import images
    from editmgt_jax.data import stats

    if args.grid is not None:
        images.check_output(args.grid)
    report = stats.collect(args.directory)
    print(json.dumps(report, indent=2) if args.json else stats.describe(report))
    if args.grid is not None:
        paint = None
        if report["kind"] == "tokens":
            use_disk_cache()
            from editmgt_jax.loading import painter

            paint = painter(args.model)
        images.save(stats.grid(args.directory, paint), args.grid)


def export(args) -> None:
    from editmgt_jax.training.export import export as write_model

    write_model(args.workdir, args.output, args.step, args.dtype, args.raw, merged=args.merge)


def convert_orbax(args) -> None:
    from editmgt_jax import directories

    directories.to_orbax(args.source, args.output, args.verify, args.strict)
    _print_peak_memory()


def convert_released(args) -> None:
    from editmgt_jax import directories
    from editmgt_jax.training.export import export as write_model
    from editmgt_jax.training.runs import is_run

    if is_run(args.source):
        write_model(args.source, args.output, args.step, args.dtype, args.raw, args.verify, args.merge)
    elif args.step is not None or args.raw or args.merge or args.dtype != "float32":
        raise directories.DirectoryError(
            f"--step, --raw, --merge and --dtype choose among what a training run keeps; {args.source} is no folder of a run"
        )
    else:
        directories.to_released(args.source, args.output, args.verify, args.strict)
    _print_peak_memory()


def convert_editor(args) -> None:
    from editmgt_jax import directories

    copied, new = directories.to_editor(args.source, args.output, args.llm_encoder, args.seed, args.verify, args.strict)
    print("\n".join([*(f"copied  {key}" for key in copied), *(f"new     {key}" for key in new)]))
    if args.llm_encoder is None:
        print("no llm_encoder: add one to edit with the result (--llm-encoder DIR)")


def convert_lora(args) -> None:
    from editmgt_jax import directories

    directories.convert_lora(args.source, args.output, args.model, args.verify, args.strict)


def convert_merge(args) -> None:
    from editmgt_jax import directories

    directories.merge_lora(args.source, args.output, args.lora, args.verify, args.strict)


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


# ---- shared


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


def _settings(args) -> dict:
    names = ("steps", "guidance_scale", "reference_strength", "hold_threshold", "hold", "hold_step", "layers")
    names += ("sampling_temperature", "temperature", "filter")
    chosen = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    if len(chosen.get("temperature", ())) == 1:
        chosen["temperature"] = chosen["temperature"][0]
    return chosen


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
