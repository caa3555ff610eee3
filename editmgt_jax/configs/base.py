"""What every run starts from: the keys and defaults that `editmgt_jax/training/config.py` declares; other files state how they differ."""

from ml_collections import ConfigDict

from editmgt_jax.training.config import starting_values


def get_config() -> ConfigDict:
    """The keys that all tasks share. Values of any type can be set: they are checked when a run loads the config."""
    return ConfigDict(starting_values(), type_safe=False)
