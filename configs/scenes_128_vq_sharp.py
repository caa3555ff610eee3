"""The shipped config `scenes_128_vq_sharp`: see editmgt_jax/configs/scenes_128_vq_sharp.py."""

from editmgt_jax.configs.scenes_128_vq_sharp import get_config

__all__ = ["get_config"]
