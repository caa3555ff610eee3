"""Parts of several commands: flags, types of arguments, the job of processes, the cache of compiled programs."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from editmgt_jax.config import dtype_name
from editmgt_jax.declarations import MAX_IMAGES, MAX_SEED, SETTINGS, SettingsError

OVERRIDABLE = "; config keys can be overridden: --config.optimizer.learning_rate=1e-3"


def add_command(
    commands: argparse._SubParsersAction, name: str, function: Callable, text: str, takes_overrides: bool = False
) -> argparse.ArgumentParser:
    """Adds a command. The help text is `text` up to a semicolon, the description all of it."""
    command = commands.add_parser(name, help=text.split(";")[0], description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=function, takes_overrides=takes_overrides)
    return command


def add_distributed(command: argparse.ArgumentParser) -> None:
    """Flags of commands that run as several processes."""
    text = "run as one of several processes; Cloud TPU and Slurm are recognised, elsewhere set JAX_COORDINATOR_ADDRESS, ..."
    command.add_argument("--distributed", action="store_true", help=text)
    text = "seconds without a heartbeat of a process after which the others end (default 30)"
    command.add_argument("--heartbeat", type=positive, default=30, metavar="SECONDS", help=text)


def add_tracking(command: argparse.ArgumentParser) -> None:
    """The flag of trackers."""
    text = "also send metrics to Weights & Biases; needs the extra `wandb`, and obeys WANDB_MODE, WANDB_PROJECT, ..."
    command.add_argument("--track", action="append", choices=("wandb",), default=[], help=text)


def join(args: argparse.Namespace) -> None:
    """Joins the other processes of the job, if it has any. Errors: those of `processes.join`."""
    if args.distributed:
        from editmgt_jax.cli import surroundings
        from editmgt_jax.training import processes

        surroundings.unwatch_signals()  # the other processes must be told
        processes.join(args.heartbeat)
        args.end_job = processes.end_job


def leave(args: argparse.Namespace) -> None:
    """Waits until every process of the job has come here."""
    if args.distributed:
        from editmgt_jax.training import processes

        processes.wait_for_all()


def add_variant(command: argparse.ArgumentParser) -> None:
    """The flag that chooses weight files."""
    text = (
        "weight files to read where there are several, such as fp16 of model.fp16.safetensors (default: those without)"
    )
    command.add_argument("--variant", metavar="NAME", help=text)


def add_exported(command: argparse.ArgumentParser) -> None:
    """Flags that choose the parameters of a training run to write."""
    command.add_argument("--step", type=int, help="checkpoint to write (default: the best one)")
    command.add_argument("--dtype", default="float32", type=dtype, help="float32 (default), bfloat16 or float16")
    command.add_argument("--raw", action="store_true", help="write the parameters, not their moving average")
    command.add_argument("--merge", action="store_true", help="for a LoRA: write its model with the LoRA merged in")


def add_settings(command: argparse.ArgumentParser, with_reference: bool = True) -> None:
    """Flags of the settings, from their declarations. Settings you omit use the model's defaults."""
    group = command.add_argument_group("settings", "settings you omit use the model's defaults")
    for setting in SETTINGS:
        if setting.about == "decode" or (with_reference and setting.about != "result"):
            group.add_argument(
                "--" + setting.name.replace("_", "-"),
                type=setting.kind,
                nargs=None if setting.length == "one" else "+",
                choices=_Choices(setting.name) if setting.rule is None else None,
                metavar=setting.metavar,
                help=setting.help,
            )


class _Choices:
    """The names that a setting may have, which are known to modules that import jax: read only when needed."""

    def __init__(self, setting: str):
        self._setting = setting

    def __iter__(self):
        from editmgt_jax.sampling.settings import CHOICES

        return iter(CHOICES[self._setting])

    def __contains__(self, value):
        return value in list(self)


def settings_of(args: argparse.Namespace) -> dict:
    """The settings given on the command line, {name: value}. Errors: SettingsError, as far as no model is needed to tell."""
    chosen = {}
    for setting in SETTINGS:
        value = getattr(args, setting.name, None)
        if value is not None:
            chosen[setting.name] = value[0] if setting.length == "pair" and len(value) == 1 else value
            if setting.length == "one" and setting.rule is not None:
                try:
                    setting.rule(setting.name, value)
                except SettingsError as error:
                    raise SettingsError(f"--{setting.name.replace('_', '-')}: {error}") from error
    return chosen


def check_read(chosen: Mapping[str, Any], settings: Any) -> None:
    """Errors: SettingsError for a chosen setting that the resolved `settings` do not read."""
    for setting in SETTINGS:
        if setting.name in chosen and setting.needs is not None:
            other, value = setting.needs
            given = getattr(settings, other)
            is_read = given == value if value is not None else given > 0
            if not is_read:
                flag, needed = (name.replace("_", "-") for name in (setting.name, other))
                raise SettingsError(f"--{flag} is read with --{needed} {value or 'above 0'} alone; it is {given}")


def dtype(text: str) -> str:
    """The name of a dtype, as an argument. Errors: ArgumentTypeError."""
    try:
        return dtype_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def images_count(text: str) -> int:
    """How many pictures a call may make, as an argument. Errors: ArgumentTypeError."""
    if not 1 <= int(text) <= MAX_IMAGES:
        raise argparse.ArgumentTypeError(f"must be at least 1 and at most {MAX_IMAGES}, got {text}")
    return int(text)


def seed(text: str) -> int:
    """A seed, as an argument. Errors: ArgumentTypeError."""
    if not 0 <= int(text) <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"must be at least 0 and at most {MAX_SEED}, got {text}")
    return int(text)


def positive(text: str) -> int:
    """An integer of at least 1, as an argument. Errors: ArgumentTypeError."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def cache_folder() -> Path:
    """The folder of what commands keep for later ones. Errors: UserError."""
    from editmgt_jax.cli import compile_cache

    return compile_cache.folder()


def use_disk_cache() -> None:
    """Caches compiled programs on disk, in EDITMGT_CACHE or the user's cache folder. Prints a note if it cannot."""
    from editmgt_jax.cli import compile_cache

    compile_cache.use()
