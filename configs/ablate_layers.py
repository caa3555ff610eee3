"""The shipped config `ablate_layers`: see editmgt_jax/configs/ablate_layers.py."""

from editmgt_jax.configs.ablate_layers import get_config

__all__ = ["get_config"]
