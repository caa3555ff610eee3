import dataclasses

import numpy as np
import pytest
import tiny

from editmgt_jax.sampling.settings import Settings, SettingsError, released_layers


def test_defaults_are_the_model_s():
    scheduler = dataclasses.replace(
        tiny.SCHEDULER_CONFIG,
        default_steps=9,
        default_hold_threshold=0.25,
        default_layers=(2,),
        default_temperature=(3.0, 1.0),
    )
    settings = Settings.resolve(scheduler, 3, steps=None, guidance_scale=5.0)
    assert (settings.steps, settings.hold_threshold, settings.layers, settings.temperature) == (
        9,
        0.25,
        (2,),
        (3.0, 1.0),
    )
    assert settings.guidance_scale == 5.0


@pytest.mark.parametrize("blocks, layers", [(1, (0,)), (2, (1,)), (3, (2,)), (6, (4, 5)), (42, tuple(range(28, 37)))])
def test_released_layers(blocks, layers):
    assert released_layers(blocks) == layers


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(hold_threshold=-0.1), "hold_threshold must be a number at least 0 and at most 1.5.*got -0.1"),
        (dict(hold_threshold=float("nan")), "hold_threshold.*got nan"),
        (dict(hold_threshold=30), "at most 1.5"),
        (dict(reference_strength=-1), "reference_strength must be a number at least 0 and finite"),
        (dict(reference_strength=float("inf")), "reference_strength"),
        (dict(guidance_scale=-1), "guidance_scale"),
        (dict(guidance_scale="six"), "guidance_scale.*got 'six'"),
        (dict(steps=0), "steps must be an integer of at least 1; got 0"),
        (dict(steps=2.5), "steps must be an integer"),
        (dict(sampling_temperature=0), "sampling_temperature must be a number above 0"),
        (dict(temperature=(2.0, -1.0)), "temperature.*got -1.0"),
        (dict(temperature=(2.0, 1.0, 0.0)), "one number or"),
        (dict(layers=(3,)), r"layers must be distinct block numbers from 0 to 2.*got \[3\]"),
        (dict(layers=(-1,)), "from 0 to 2"),
        (dict(layers=(1, 1)), "distinct"),
        (dict(layers=()), "at least one"),
        (dict(layers=np.array([1, 7])), "from 0 to 2"),
        (dict(temperature=(1.0,)), r"one number or \(first, last\)"),
        (dict(hold="sometimes"), "hold must be one of released, from_step; got 'sometimes'"),
        (dict(hold="from_step", hold_step=4), "hold_step must be below the 4 steps"),
        (dict(filter="median"), "filter must be one of adaptive, gaussian, none"),
    ],
)
def test_settings_outside_their_range(bad, message):
    with pytest.raises(SettingsError, match=message):
        Settings.resolve(tiny.SCHEDULER_CONFIG, 3, **bad)


def test_unknown_setting():
    with pytest.raises(TypeError, match="unknown settings.*gamma.*reference_strength"):
        Settings.resolve(tiny.SCHEDULER_CONFIG, 3, gamma=1)
