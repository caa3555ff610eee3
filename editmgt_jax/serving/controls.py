"""The page's controls of the settings, made from their declarations, and what they mean as fields of a request."""

import re
from collections.abc import Sequence
from typing import Any

import gradio as gr

from editmgt_jax.declarations import Setting
from editmgt_jax.sampling.settings import CHOICES, Settings
from editmgt_jax.serving.requests import SETTING_NAMES

OWN = "hold_threshold"  # it has a place of its own, by the heat map


class Controls:
    """A control for each setting but OWN, which shows the model's own value. Made inside a layout of gradio."""

    def __init__(self, defaults: Settings):
        self._settings = [setting for name, setting in SETTING_NAMES.items() if name != OWN]
        self._defaults = [_shown(getattr(defaults, setting.name)) for setting in self._settings]
        self.components = [
            _control(setting, value) for setting, value in zip(self._settings, self._defaults, strict=True)
        ]

    def fields(self, values: Sequence[Any]) -> dict[str, str]:
        """What a request has of values of the controls: those that are not the model's own."""
        found = {}
        for setting, value, default in zip(self._settings, values, self._defaults, strict=True):
            if value not in (None, "", default):
                found[setting.name] = (
                    str(int(value)) if setting.kind is int and isinstance(value, float) else str(value)
                )
        return found


def _control(setting: Setting, value):
    label = setting.name.replace("_", " ").capitalize()
    info = re.sub(
        r":? ?%\(choices\)s ?", " ", re.sub(r"--([a-z-]+)", lambda flag: flag[1].replace("-", " "), setting.help)
    )
    if setting.rule is None:
        return gr.Dropdown(list(CHOICES[setting.name]), value=value, label=label, info=info, filterable=False)
    if setting.length == "one" and value is not None:  # gradio shows no number as 0
        return gr.Number(value, label=label, info=info, precision=0 if setting.kind is int else None)
    return gr.Textbox(value or "", label=label, info=info, max_lines=1)


def _shown(value):
    return " ".join(map(str, value)) if isinstance(value, tuple) else value
