"""The shipped config `stage3_refine`: see editmgt_jax/configs/stage3_refine.py."""

from editmgt_jax.configs.stage3_refine import get_config

__all__ = ["get_config"]
