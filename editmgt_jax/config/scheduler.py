"""Constants of the decode, and the operating point of a model."""

import dataclasses

from editmgt_jax.config.json_config import JSONConfig, require
from editmgt_jax.declarations import SETTINGS

RELEASED_NEGATIVE_PROMPT = (
    "worst quality, low quality, low res, blurry, distortion, watermark, logo, signature, text, jpeg artifacts, "
    "signature, sketch, duplicate, ugly, identifying mark"
)
_OF_MODELS = tuple(setting for setting in SETTINGS if setting.key)
_ModelDefaults = dataclasses.make_dataclass(
    "_ModelDefaults",
    [(setting.key, setting.key_type, setting.default) for setting in _OF_MODELS],
    frozen=True,
    kw_only=True,
)


@dataclasses.dataclass(frozen=True)
class SchedulerConfig(_ModelDefaults, JSONConfig):
    """Decode constants that a model directory states in `scheduler/scheduler_config.json`.

    `timestep_convention` is ours: "released" passes the step index counting down, as released weights expect;
    "mask_rate" passes the share of hidden tokens, in training and in decoding alike (Q1). The released files lack the key.
    `negative_prompt` is what guidance leads away from, unless the caller says otherwise.
    `native_size` is the side in pixels of the squares that the model was trained on; where it is not stated, as in released
    files, the model's architecture tells (`loading`). The remaining keys, `default_NAME` of each setting NAME
    (`declarations.SETTINGS`), are the operating point at which a model was evaluated; the pipeline's defaults come from them.
    """

    mask_token_id: int
    masking_schedule: str = "cosine"
    timestep_convention: str = "released"
    native_size: int | None = None
    negative_prompt: str = RELEASED_NEGATIVE_PROMPT

    CLASS_NAME = "Scheduler"

    def __post_init__(self):
        require(
            self.masking_schedule in ("cosine", "linear"),
            "masking_schedule must be 'cosine' or 'linear'",
            self.masking_schedule,
        )
        require(
            self.timestep_convention in ("released", "mask_rate"),
            "timestep_convention must be 'released' or 'mask_rate'",
            self.timestep_convention,
        )
        for setting in _OF_MODELS:
            if setting.rule and getattr(self, setting.key) != setting.default:
                setting.rule(setting.key, getattr(self, setting.key))
        require(
            self.default_remask_steps < self.default_steps,
            f"default_remask_steps must be fewer than the {self.default_steps} default_steps, of which they are the last: state both",
            self.default_remask_steps,
        )

    def to_dict(self) -> dict:
        """All keys; a setting that files need not state only where it is not the default."""
        values = super().to_dict()
        for setting in _OF_MODELS:
            if not setting.stated and values[setting.key] == setting.default:
                del values[setting.key]
        return values
