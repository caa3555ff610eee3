"""The shipped config `editmgt_1024`: see editmgt_jax/configs/editmgt_1024.py."""

from editmgt_jax.configs.editmgt_1024 import get_config

__all__ = ["get_config"]
