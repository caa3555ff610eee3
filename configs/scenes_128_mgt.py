"""The shipped config `scenes_128_mgt`: see editmgt_jax/configs/scenes_128_mgt.py."""

from editmgt_jax.configs.scenes_128_mgt import get_config

__all__ = ["get_config"]
