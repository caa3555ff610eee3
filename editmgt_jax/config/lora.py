"""Low-rank adaptation: PEFT's config."""

import dataclasses

from editmgt_jax.config.json_config import JSONConfig, require


@dataclasses.dataclass(frozen=True)
class LoRAConfig(JSONConfig):
    """Low-rank adaptation of a transformer's linear modules (PEFT's keys). Defaults are the released trainer's.

    `target_modules` are ends of released module names. What else PEFT offers, `PEFTConfig` reads. `scope` is ours: the tokens that the adapted weights see, 'all' or
    those of the 'reference'.
    """

    r: int = 16
    lora_alpha: float = 32.0
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v")
    scope: str = "all"

    @classmethod
    def _check_released(cls, values: dict) -> None:
        """Only plain LoRA: whatever else PEFT offers would change the result, and is refused."""
        missing = sorted({"r", "lora_alpha", "target_modules"} - values.keys())
        require(not missing, "a LoRA's config must state r, lora_alpha and target_modules", f"none for {missing}")
        require(values.get("peft_type", "LORA") == "LORA", "peft_type must be LORA", values.get("peft_type"))
        require(values.get("bias") in (None, "none"), "bias of a LoRA must be 'none'", values.get("bias"))
        begun = values.get("init_lora_weights", True)
        require(
            isinstance(begun, bool) or begun in (None, "gaussian"),
            "init_lora_weights must leave the base's weights as they are (true, false or 'gaussian')",
            begun,
        )
        refused = ("use_rslora", "use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "modules_to_save")
        refused += (
            "layers_to_transform",
            "exclude_modules",
            "fan_in_fan_out",
            "megatron_config",
            "trainable_token_indices",
        )
        for key in refused:
            require(not values.get(key), f"{key} of a LoRA is not supported and must be absent", values.get(key))

    def __post_init__(self):
        require(self.scope in ("all", "reference"), "scope must be 'all' or 'reference'", self.scope)

    def to_dict(self) -> dict:
        """PEFT's keys; the scope only where it is not 'all'."""
        values = {"peft_type": "LORA"} | dataclasses.asdict(self) | {"bias": "none"}
        if self.scope == "all":
            del values["scope"]
        return values

    @property
    def scale(self) -> float:
        """The factor of the product of the low-rank factors."""
        return self.lora_alpha / self.r
