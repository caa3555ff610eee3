"""The shipped config `stage2_finetune`: see editmgt_jax/configs/stage2_finetune.py."""

from editmgt_jax.configs.stage2_finetune import get_config

__all__ = ["get_config"]
