"""The shipped config `scenes_vq`: see editmgt_jax/configs/scenes_vq.py."""

from editmgt_jax.configs.scenes_vq import get_config

__all__ = ["get_config"]
