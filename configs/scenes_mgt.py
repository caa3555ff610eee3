"""The shipped config `scenes_mgt`: see editmgt_jax/configs/scenes_mgt.py."""

from editmgt_jax.configs.scenes_mgt import get_config

__all__ = ["get_config"]
