"""The shipped config `scenes_vq_local`: see editmgt_jax/configs/scenes_vq_local.py."""

from editmgt_jax.configs.scenes_vq_local import get_config

__all__ = ["get_config"]
