"""Configs of runs. `editmgt train --config NAME` takes any of them; a config file of your own may import them:

from editmgt_jax.configs import scenes_mgt


def get_config():
    config = scenes_mgt.get_config()
    config.steps = 20_000
    return config
"""
