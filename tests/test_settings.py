import argparse
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

import editmgt_jax
from editmgt_jax.cli import shared
from editmgt_jax.config import SchedulerConfig
from editmgt_jax.declarations import SETTINGS
from editmgt_jax.errors import UserError
from editmgt_jax.sampling.samplers import SAMPLERS
from editmgt_jax.sampling.settings import CHOICES, Settings, SettingsError, released_layers

DEFAULT_SCHEDULER = Path(editmgt_jax.__file__).parent / "assets" / "default" / "scheduler" / "scheduler_config.json"


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
        (dict(guidance_scale=10**400), "guidance_scale must be a number at least 0 and finite"),
        (dict(hold_step=10**30), "hold_step must be an integer of at least 0 and at most 10000"),
        (dict(steps=0), "steps must be an integer of at least 1 and at most 10000; got 0"),
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
        (dict(sampler="halten"), "sampler must be one of confidence, halton, entropy, .*; got 'halten'"),
        (dict(sampler=3), "sampler must be one of"),
        (dict(entropy_bound=-1.0), "entropy_bound must be a number at least 0"),
        (dict(copy_penalty=float("inf")), "copy_penalty must be a number at least 0 and finite"),
        (dict(image_guidance_scale=-0.5), "image_guidance_scale must be a number at least 0"),
        (dict(record=1), "record must be true or false"),
    ],
)
def test_settings_outside_their_range(bad, message):
    with pytest.raises(SettingsError, match=message):
        Settings.resolve(tiny.SCHEDULER_CONFIG, 3, **bad)


def test_unknown_setting():
    with pytest.raises(TypeError, match="unknown settings.*gamma.*reference_strength"):
        Settings.resolve(tiny.SCHEDULER_CONFIG, 3, gamma=1)


# ---- one declaration, many readers


def test_files_that_state_no_sampler_mean_confidence():
    released = SchedulerConfig.from_dict({"_class_name": "Scheduler", "mask_token_id": 8255})
    settings = Settings.resolve(released, 42)
    assert (settings.sampler, settings.copy_penalty, settings.image_guidance_scale) == ("confidence", 3.0, None)
    assert (settings.steps, settings.guidance_scale, settings.reference_strength) == (36, 6.0, 1.1)


def test_a_model_may_state_any_setting(tmp_path):
    stated = dict(sampler="entropy", entropy_bound=20.0, image_guidance_scale=4.0, hold="from_step", hold_step=1)
    stated |= dict(steps=3, filter="none", layers=(0,), temperature=(1.0, 0.5), copy_penalty=2.0)
    config = dataclasses.replace(tiny.SCHEDULER_CONFIG, **{f"default_{name}": value for name, value in stated.items()})
    config.to_json(tmp_path / "scheduler_config.json")
    settings = Settings.resolve(SchedulerConfig.from_json(tmp_path / "scheduler_config.json"), 3)
    assert {name: getattr(settings, name) for name in stated} == stated


def test_a_file_states_a_new_setting_only_where_it_differs(tmp_path):
    """So that a file made before the setting existed comes back byte for byte."""
    SchedulerConfig.from_json(DEFAULT_SCHEDULER).to_json(tmp_path / "same.json")
    assert (tmp_path / "same.json").read_bytes() == DEFAULT_SCHEDULER.read_bytes()
    other = dataclasses.replace(SchedulerConfig.from_json(DEFAULT_SCHEDULER), default_sampler="halton")
    added = other.to_dict().items() - json.loads(DEFAULT_SCHEDULER.read_text(), object_hook=_hashable).items()
    assert ("default_sampler", "halton") in added and not any("penalty" in name for name, _ in added)


def _hashable(values):
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("default_steps", 0, "default_steps must be an integer of at least 1 and at most 10000; got 0"),
        ("default_entropy_bound", -1.0, "default_entropy_bound must be a number at least 0"),
        ("default_sampler", 3, "default_sampler must be str"),
        ("default_copy_penalty", None, "default_copy_penalty must be float"),
    ],
)
def test_a_model_s_settings_are_checked_when_it_is_read(key, value, message):
    with pytest.raises(UserError, match=message):
        SchedulerConfig.from_dict({"mask_token_id": 8255, key: value})


def parsed(line, **options):
    parser = argparse.ArgumentParser()
    shared.add_settings(parser, **options)
    return shared.settings_of(parser.parse_args(line.split()))


def test_every_setting_has_a_flag():
    line, expected = [], {}
    for setting in SETTINGS:
        if setting.about == "result":
            continue
        values = {int: [1], float: [0.5], str: list(CHOICES.get(setting.name, ()))[-1:]}[setting.kind]
        values *= 1 if setting.length == "one" else 2
        line += ["--" + setting.name.replace("_", "-"), *map(str, values)]
        expected[setting.name] = values[0] if setting.length == "one" else values
    assert parsed(" ".join(line)) == expected
    assert (
        parsed("") == {}
        and parsed("--temperature 2") == {"temperature": 2.0}
        and parsed("--layers 3") == {"layers": [3]}
    )


def test_flags_about_a_source_image_are_left_out_without_one(capsys):
    assert parsed("--sampler halton --steps 2", with_reference=False) == {"sampler": "halton", "steps": 2}
    for flag in ("--copy-penalty 1", "--layers 1", "--hold released"):
        with pytest.raises(SystemExit):
            parsed(flag, with_reference=False)


def test_help_names_the_choices_and_a_wrong_one_is_an_error(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert ", ".join(SAMPLERS) in text and all(setting.help.split("%")[0].strip() for setting in SETTINGS)
    with pytest.raises(SystemExit):
        parsed("--sampler halten")
    assert "'halten'" in capsys.readouterr().err


def test_static_and_traced_parts_hold_every_setting_once():
    settings = Settings.resolve(tiny.SCHEDULER_CONFIG, 3, image_guidance_scale=3.0, sampler="margin", hold_step=2)
    static, knobs = settings.static("mask_rate"), settings.knobs("cosine")
    assert (static.sampler, static.guided, static.image_guided, static.timestep_convention) == (
        "margin",
        True,
        True,
        "mask_rate",
    )
    assert (float(knobs.image_guidance_scale), int(knobs.hold_step), float(knobs.copy_penalty)) == (3.0, 2, 3.0)
    in_schedule = {"steps", "temperature", "remask_steps"}
    names = [*static._fields, *knobs._fields]
    assert {setting.name for setting in SETTINGS} - in_schedule == set(names) - {
        "schedule", "guided", "image_guided", "timestep_convention"
    }  # fmt: skip
    assert len(names) == len(set(names)) and len({leaf.dtype for leaf in jax.tree.leaves(knobs)}) == 2


@pytest.mark.parametrize("scale, passes", [(None, False), (2.0, False), (2.5, True), (0.0, True)])
def test_equal_scales_need_no_third_pass(scale, passes):
    settings = Settings.resolve(tiny.SCHEDULER_CONFIG, 3, guidance_scale=2.0, image_guidance_scale=scale)
    assert settings.image_guided is passes and settings.guided
