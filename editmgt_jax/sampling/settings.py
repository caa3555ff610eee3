"""The settings of one edit: resolved against the model's own, checked, and split into a static and a traced part.

Names, rules and defaults are declared in `editmgt_jax.declarations`.

Source  a model's own operating point is in its `scheduler/scheduler_config.json`; settings that are omitted come from it
"""

import collections
import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from editmgt_jax.config import SchedulerConfig
from editmgt_jax.declarations import SETTINGS, SettingsError, check_choice, check_integer, is_integer
from editmgt_jax.models.attention.signals import SIGNALS
from editmgt_jax.sampling.decode import HOLDS
from editmgt_jax.sampling.localize import FILTERS
from editmgt_jax.sampling.masking import Schedule, decode_schedule
from editmgt_jax.sampling.samplers import SAMPLERS

__all__ = ["CHOICES", "Knobs", "StaticSettings", "Settings", "SettingsError", "check_integer", "released_layers"]

CHOICES = {"hold": HOLDS, "filter": tuple(FILTERS), "sampler": tuple(SAMPLERS), "signal": SIGNALS}
_STATIC = [setting for setting in SETTINGS if setting.part == "static"]
_TRACED = [setting for setting in SETTINGS if setting.part == "traced"]
_SHARED = (
    *(setting.name for setting in _STATIC),
    "steps",
    "remask_steps",
    "guided",
    "image_guided",
)  # by samples that are decoded together
_DTYPES = {int: np.int32, float: np.float32}


class StaticSettings(
    collections.namedtuple(
        "StaticSettings",
        [*(setting.name for setting in _STATIC), "timestep_convention", "guided", "image_guided"],
        defaults=[*(setting.default for setting in _STATIC), "released", True, False],
    )
):
    """The static part of an edit: other static settings are another program.

    The static settings, whether guidance runs a pass without the text (`guided`) and one without the image either
    (`image_guided`), and the model's `timestep_convention`.
    """


class Knobs(
    collections.namedtuple(
        "Knobs", ["schedule", *(setting.name for setting in _TRACED)], defaults=[None] * len(_TRACED)
    )
):
    """The traced part, arrays: new values never recompile (the number of steps is a shape).

    `schedule` (`masking.Schedule`, arrays [I]) and the traced settings, each of its own dtype and shape [].
    """


# Their rules check types, too, with errors for users.
_Values = dataclasses.make_dataclass("_Values", [(setting.name, Any) for setting in SETTINGS], frozen=True)


@dataclasses.dataclass(frozen=True)
class Settings(_Values):
    """All settings of an edit, checked: a field for each of `declarations.SETTINGS`, which say what they mean."""

    @classmethod
    def resolve(cls, scheduler: SchedulerConfig, num_blocks: int, **chosen: Any) -> "Settings":
        """The caller's choices, and the model's own values for what is None or left out. Errors: SettingsError."""
        defaults = {
            setting.name: getattr(scheduler, setting.key) if setting.key else setting.default for setting in SETTINGS
        }
        defaults["layers"] = defaults["layers"] or released_layers(num_blocks)
        unknown = sorted(chosen.keys() - defaults.keys())
        if unknown:
            raise TypeError(f"unknown settings {unknown}; an edit has {sorted(defaults)}")
        chosen = {name: value for name, value in chosen.items() if value is not None}
        values = defaults | chosen
        if "remask_steps" not in chosen:
            values["remask_steps"] = _remask_steps(defaults["remask_steps"], values["steps"], values["sampler"])
        scale = chosen.get("guidance_scale")
        if "remask_guidance_scale" not in chosen and isinstance(scale, numbers.Real) and scale <= 1:
            values["remask_guidance_scale"] = None  # off is off in every step
        for setting in SETTINGS:
            if setting.length != "one" and isinstance(values[setting.name], (list, range, np.ndarray)):
                values[setting.name] = tuple(np.asarray(values[setting.name]).tolist())
        _check_layers(values["layers"], num_blocks)
        return cls(**values)

    def __post_init__(self):
        for setting in SETTINGS:
            value = getattr(self, setting.name)
            if value is None and setting.default is None:
                continue
            if setting.rule is None:
                check_choice(setting.name, value, CHOICES[setting.name])
            else:
                setting.rule(setting.name, value)
        if self.remask_steps >= self.steps:
            raise SettingsError(
                f"remask_steps must be fewer than the {self.steps} steps, of which they are the last; got {self.remask_steps}: take more "
                "steps, or let fewer remask"
            )
        if self.remask_steps and SAMPLERS[self.sampler].budget is not None:
            raise SettingsError(
                f"remask_steps needs a sampler that takes every step, and {self.sampler} ends early: choose another, or 0 remask_steps"
            )
        first = self.steps - self.remask_steps
        if self.hold == "from_step" and self.hold_step >= first:
            before, fewer = (" before those that remask", ", or fewer remask_steps") if self.remask_steps else ("", "")
            raise SettingsError(
                f"hold_step must be below the {first} steps{before}, got {self.hold_step}: choose an earlier one{fewer}"
            )

    @property
    def guided(self) -> bool:
        """Whether a pass with the negative prompt runs."""
        remasking = self.remask_guidance_scale if self.remask_steps else None
        return self.guidance_scale > 1 or (remasking or 0) > 1

    @property
    def image_guided(self) -> bool:
        """Whether a pass without the source image runs, too."""
        return self.image_guidance_scale not in (None, self.guidance_scale)

    @property
    def program(self) -> tuple:
        """What samples that are decoded together must share."""
        return tuple(getattr(self, name) for name in _SHARED)

    def static(self, timestep_convention: str) -> StaticSettings:
        """The static part."""
        values = {setting.name: getattr(self, setting.name) for setting in _STATIC}
        return StaticSettings(
            **values, timestep_convention=timestep_convention, guided=self.guided, image_guided=self.image_guided
        )

    def schedule(self, masking_schedule: str) -> Schedule:
        """The steps, on the host."""
        return decode_schedule(self.steps, masking_schedule, self.temperature, self.remask_steps)

    def knobs(self, masking_schedule: str) -> Knobs:
        """The traced part, on the device."""
        values = {setting.name: getattr(self, setting.name) for setting in _TRACED}
        for name in ("image_guidance_scale", "remask_guidance_scale"):
            values[name] = self.guidance_scale if values[name] is None else values[name]
        return Knobs(
            jax.device_put(self.schedule(masking_schedule)),
            **jax.device_put({one.name: np.asarray(values[one.name], _DTYPES[one.kind]) for one in _TRACED}),
        )


def _remask_steps(own: int, steps: Any, sampler: Any) -> int:
    """A model's own number, as far as it goes with steps and sampler, which a caller may have chosen and nobody checked yet."""
    if isinstance(sampler, str) and sampler in SAMPLERS and SAMPLERS[sampler].budget is not None:
        return 0
    return max(0, min(own, steps - 1)) if is_integer(steps) else own


def side_by_side(several: Sequence[Settings], masking_schedule: str) -> Knobs:
    """The traced parts of several samples as one: arrays [B], and the temperature of the schedule [I B].

    Errors: SettingsError when they differ in a static setting or in the number of steps.
    """
    first = several[0]
    for other in several[1:]:
        for name in _SHARED:
            if getattr(other, name) != getattr(first, name):
                raise SettingsError(
                    f"samples side by side must share {', '.join(_SHARED)}; one has {name} {getattr(first, name)}, another "
                    f"{getattr(other, name)}"
                )
    all_knobs = [settings.knobs(masking_schedule) for settings in several]
    schedule = all_knobs[0].schedule._replace(
        temperature=jnp.stack([knobs.schedule.temperature for knobs in all_knobs], axis=1)
    )
    columns = zip(*(knobs[1:] for knobs in all_knobs), strict=True)
    return Knobs(schedule, *(jnp.stack(column) for column in columns))


def per_sample(knob: jax.Array, ndim: int) -> jax.Array:
    """A knob [] as it is, or of each sample [B] as [B 1 ...] of `ndim` axes."""
    return knob if jnp.ndim(knob) == 0 else knob.reshape(-1, *(1,) * (ndim - 1))


def released_layers(num_blocks: int) -> tuple[int, ...]:
    """The blocks to consolidate when a model does not name its own: 28 to 36 of 42, and as deep in others."""
    return tuple(range(2 * num_blocks // 3, 6 * num_blocks // 7 + 1))


def _check_layers(layers, num_blocks):
    if not isinstance(layers, tuple):
        raise SettingsError(f"layers must be several block numbers, such as [2, 3]; got {layers!r}")
    bad = [layer for layer in layers if not is_integer(layer) or layer not in range(num_blocks)]
    if not layers or bad or len(set(layers)) < len(layers):
        raise SettingsError(
            f"layers must be distinct block numbers from 0 to {num_blocks - 1} (this model's blocks), at least one; "
            f"got {list(layers)}"
        )
