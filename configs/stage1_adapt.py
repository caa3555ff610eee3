"""The shipped config `stage1_adapt`: see editmgt_jax/configs/stage1_adapt.py."""

from editmgt_jax.configs.stage1_adapt import get_config

__all__ = ["get_config"]
