"""What an edit may be told besides its instruction: the values, their rules, and which of them shape the program.

Source  a model's own operating point is in its `scheduler/scheduler_config.json`; what is left out comes from it
"""

import dataclasses
import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from editmgt_jax.config import SchedulerConfig
from editmgt_jax.errors import UserError
from editmgt_jax.sampling.decode import HOLDS
from editmgt_jax.sampling.localize import FILTERS
from editmgt_jax.sampling.masking import Schedule, decode_schedule

MAX_THRESHOLD = 1.5


class SettingsError(UserError):
    """A setting outside its range: states the rule, what came and what to do."""


class Plan(NamedTuple):
    """The static part of an edit: another plan is another program."""

    layers: tuple[int, ...]
    filter: str
    hold: str
    guided: bool
    record: bool
    timestep_convention: str


class Knobs(NamedTuple):
    """The traced part: new values never recompile (the number of steps is a shape)."""

    schedule: Schedule  # arrays [S]
    guidance_scale: jax.Array
    reference_strength: jax.Array
    hold_threshold: jax.Array
    hold_step: jax.Array
    sampling_temperature: jax.Array


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of an edit, checked.

    steps                 decoding steps, >= 1
    guidance_scale        >= 0; up to 1 only the conditional pass runs, at half the cost
    reference_strength    gamma >= 0: weight of attention to the source image; 1 as trained, 0 ignores it
    hold_threshold        lambda: tokens of lower relevance stay the source's; 0 is off, above 1 holds everything
    hold                  'released' at every step, 'from_step' once and for good at `hold_step`
    layers                blocks whose attention is consolidated into the relevance
    sampling_temperature  > 0, divides the logits before an id is drawn
    temperature           of the confidence, which adds variety: (first, last) step, or one number to 0.01
    filter                of the relevance: 'adaptive', 'gaussian' or 'none'
    record                also return the tokens and the relevance of every step
    """

    steps: int
    guidance_scale: float
    reference_strength: float
    hold_threshold: float
    layers: tuple[int, ...]
    sampling_temperature: float
    temperature: float | tuple[float, float]
    hold: str = "released"
    hold_step: int = 0
    filter: str = "adaptive"
    record: bool = False

    @classmethod
    def resolve(cls, scheduler: SchedulerConfig, num_blocks: int, **chosen) -> "Settings":
        """The caller's choices, and the model's own values for what is None or left out. Errors: SettingsError."""
        prefix = "default_"
        defaults = {
            field.name.removeprefix(prefix): getattr(scheduler, field.name)
            for field in dataclasses.fields(scheduler)
            if field.name.startswith(prefix)
        }
        defaults["layers"] = defaults["layers"] or released_layers(num_blocks)
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(chosen.keys() - names)
        if unknown:
            raise TypeError(f"unknown settings {unknown}; an edit has {sorted(names)}")
        values = defaults | {name: value for name, value in chosen.items() if value is not None}
        for name in ("layers", "temperature"):
            if isinstance(values[name], (list, range, np.ndarray)):
                values[name] = tuple(np.asarray(values[name]).tolist())
        settings = cls(**values)
        _check_layers(settings.layers, num_blocks)
        return settings

    def __post_init__(self):
        check_integer("steps", self.steps, 1)
        _check_number("guidance_scale", self.guidance_scale, "6 is usual, up to 1 switches guidance off")
        _check_number("reference_strength", self.reference_strength, "1 is as trained, 0 ignores the source image")
        _check_number(
            "hold_threshold", self.hold_threshold, "0 is off, above 1 holds everything", highest=MAX_THRESHOLD
        )
        _check_choice("hold", self.hold, HOLDS)
        check_integer("hold_step", self.hold_step, 0)
        if self.hold == "from_step" and self.hold_step >= self.steps:
            raise SettingsError(f"hold_step must be below the {self.steps} steps, got {self.hold_step}")
        _check_number("sampling_temperature", self.sampling_temperature, "1 draws as the model predicts", positive=True)
        pair = isinstance(self.temperature, tuple)
        if pair and len(self.temperature) != 2:
            raise SettingsError(f"temperature must be one number or (first, last), got {self.temperature!r}")
        for end in self.temperature if pair else (self.temperature,):
            _check_number("temperature", end, "2 0 is usual: from 2 at the first step to 0 at the last")
        _check_choice("filter", self.filter, FILTERS)

    @property
    def guided(self) -> bool:
        return self.guidance_scale > 1

    def plan(self, timestep_convention: str) -> Plan:
        return Plan(self.layers, self.filter, self.hold, self.guided, self.record, timestep_convention)

    def knobs(self, masking_schedule: str) -> Knobs:
        schedule = decode_schedule(self.steps, masking_schedule, self.temperature)
        numbers = (self.guidance_scale, self.reference_strength, self.hold_threshold)
        return Knobs(
            jax.tree.map(jnp.asarray, schedule),
            *(jnp.asarray(number, jnp.float32) for number in numbers),
            jnp.asarray(self.hold_step, jnp.int32),
            jnp.asarray(self.sampling_temperature, jnp.float32),
        )


def released_layers(num_blocks: int) -> tuple[int, ...]:
    """The blocks to consolidate when a model does not name its own: 28 to 36 of 42, and as deep in others."""
    return tuple(range(2 * num_blocks // 3, 6 * num_blocks // 7 + 1))


def _check_layers(layers, num_blocks):
    bad = [layer for layer in layers if not _is_integer(layer) or layer not in range(num_blocks)]
    if not layers or bad or len(set(layers)) < len(layers):
        raise SettingsError(
            f"layers must be distinct block numbers from 0 to {num_blocks - 1} (this model's blocks), at least one; "
            f"got {list(layers)}"
        )


def _check_number(name, value, hint, highest=math.inf, positive=False):
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    in_range = math.isfinite(number) and (number > 0 if positive else number >= 0) and number <= highest
    if not in_range:
        least = "above 0" if positive else "at least 0"
        most = "finite" if highest == math.inf else f"at most {highest:g}"
        raise SettingsError(f"{name} must be a number {least} and {most} ({hint}); got {value!r}")


def _is_integer(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_integer(name: str, value, lowest: int, highest: float = math.inf) -> None:
    """Errors: SettingsError stating the range."""
    if not _is_integer(value) or not lowest <= value <= highest:
        upper = "" if highest == math.inf else f" and at most {highest}"
        raise SettingsError(f"{name} must be an integer of at least {lowest}{upper}; got {value!r}")


def _check_choice(name, value, choices):
    if value not in choices:
        raise SettingsError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
