"""Configs of runs that take seconds, and one step of them on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from editmgt_jax.configs import scenes_mgt, scenes_vq
from editmgt_jax.training import trainer
from editmgt_jax.training.config_files import checked
from editmgt_jax.training.optimizer import make_optimizer
from editmgt_jax.training.sharding import Layout, make_mesh, path_name
from editmgt_jax.training.state import new_state
from editmgt_jax.training.step import train_step


def train(config, workdir, **more):
    """Trains by a ConfigDict."""
    return trainer.train(checked(config), workdir, **more)


def vq_config(steps):
    config = scenes_vq.get_config()
    config.update(batch_size=8, steps=steps, eval_every=2, eval_batches=1, log_every=1, sample_edits=0)
    config.checkpoint.every = 2
    config.data.size = 32
    config.codebook.start_step = 1
    config.model.update(block_out_channels=(4, 4, 8), latent_channels=4, num_vq_embeddings=16)
    return config


def mgt_config(vq, steps):
    config = scenes_mgt.get_config()
    config.update(batch_size=8, steps=steps, eval_every=2, eval_batches=1, log_every=1, sample_edits=0)
    config.checkpoint.every = 2
    config.data.size = 32
    config.model.vq = str(vq)
    config.model.mgt.update(
        num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=4, axes_dims_rope=(4, 6, 6),
        joint_attention_dim=16, pooled_projection_dim=16, codebook_size=16, vocab_size=20,
    )  # fmt: skip
    config.model.text.update(hidden_size=16, intermediate_size=32, projection_dim=16, num_attention_heads=2)
    return config


def frozen_config(model, steps=4):
    """An MGT with the frozen encoders of a model directory of `tiny.py`, at its size."""
    config = scenes_mgt.get_config()
    config.update(batch_size=8, steps=steps, eval_every=2, eval_batches=1, log_every=1, sample_edits=0)
    config.checkpoint.every = 2
    config.data.size = 32
    config.model.scheduler = {}
    config.model.update(encoders=str(model), vq="", copy_friendly=False, remat="none", unroll=1)
    config.model.mgt.update(
        num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=4, axes_dims_rope=(4, 6, 6),
        joint_attention_dim=24, pooled_projection_dim=20, codebook_size=32, vocab_size=40,
    )  # fmt: skip
    config.optimizer.update(learning_rate=1e-3, warmup_steps=0, schedule="constant")
    return config


def token_batch(size=8, seed=0):
    """What records with text states hold, for `frozen_config`."""
    dice = np.random.default_rng(seed)
    ids = dice.integers(0, 32, (2, size, 8, 8), dtype=np.uint16)
    states = dice.standard_normal((size, 12, 24), dtype=np.float32).astype(jnp.bfloat16)
    pooled = dice.standard_normal((size, 20), dtype=np.float32)
    return {"source_ids": ids[0], "target_ids": ids[1], "text_states": states, "pooled": pooled}


def first_step(config, batch, devices=None, **sizes):
    """The first step of a run on a mesh of `sizes`. -> (state before, state after, metrics), host arrays"""
    layout, step, state, rest = _set_up(config, batch, devices, sizes)
    before = jax.device_get(state)
    with layout.active():
        state, metrics = step(state, *rest)
    return before, jax.device_get(state), jax.device_get(metrics)


def compiled_step(config, batch, **sizes) -> str:
    """The text of the compiled step."""
    layout, step, state, rest = _set_up(config, batch, None, sizes)
    with layout.active():
        return step.lower(state, *rest).compile().as_text()


def _set_up(config, batch, devices, sizes):
    """-> (layout, step, state, the other arguments of the step)"""
    config = checked(config)
    task, optimizer = trainer.make_task(config), make_optimizer(config.optimizer)
    layout = Layout(make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | sizes, devices), task.rules)
    layout.check_batch(config.batch_size, config.accumulate)
    key = jax.random.key(0)

    def make():
        params = task.init(key)
        return new_state(params, optimizer, config.optimizer.ema_decay > 0, task.extra(params))

    state = jax.jit(make, out_shardings=layout.of(jax.eval_shape(make)))()
    frozen = task.frozen(layout.put_leaf, {"empty text"})
    step = jax.jit(functools.partial(train_step, task, optimizer, config))
    return layout, step, state, (frozen, layout.put_batch(batch, config.batch_size), jax.random.key(1))


def distances(ours, theirs):
    """{leaf: how far apart, relative to its size}, and the same of the whole tree."""
    apart, sizes = {}, {}
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        name = path_name(path)
        apart[name], sizes[name] = (
            np.linalg.norm(np.float64(one) - np.float64(other)),
            np.linalg.norm(np.float64(other)),
        )
    relative = {name: apart[name] / max(sizes[name], 1e-12) for name in apart}
    return relative, np.linalg.norm(list(apart.values())) / np.linalg.norm(list(sizes.values()))
