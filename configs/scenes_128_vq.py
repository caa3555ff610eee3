"""The shipped config `scenes_128_vq`: see editmgt_jax/configs/scenes_128_vq.py."""

from editmgt_jax.configs.scenes_128_vq import get_config

__all__ = ["get_config"]
