"""The shipped config `base`: see editmgt_jax/configs/base.py."""

from editmgt_jax.configs.base import get_config

__all__ = ["get_config"]
