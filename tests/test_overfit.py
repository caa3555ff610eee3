"""The whole trainer can learn: the default model's architecture learns 64 edits by heart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import train

from editmgt_jax.configs import scenes_mgt
from editmgt_jax.sampling import masking
from editmgt_jax.training import inputs, trainer
from editmgt_jax.training.config_files import checked
from editmgt_jax.training.runs import run_params
from editmgt_jax.training.token_job import tokenize_scenes
from editmgt_jax.weights.loading import DEFAULT_MODEL

EDITS, STEPS = 64, 160


@pytest.mark.slow
def test_64_edits_are_learnt_by_heart(tmp_path, monkeypatch):
    config = scenes_mgt.get_config()
    config.update(steps=STEPS, batch_size=EDITS, eval_every=STEPS, eval_batches=1, sample_edits=0)
    config.checkpoint.every = STEPS
    config.model.update(vq=str(DEFAULT_MODEL / "vqvae"), tokenizer=str(DEFAULT_MODEL / "tokenizer"))
    config.optimizer.update(schedule="constant", warmup_steps=50, weight_decay=0.0)
    config.loss.update(changed_weight=1.0, area_power=0.0, condition_dropout=0.0)
    tokenize_scenes(checked(config), tmp_path / "tokens", EDITS)
    config.data.update(tokens=str(tmp_path / "tokens"), heldout=str(tmp_path / "tokens"))
    train(config, tmp_path / "run")

    config = checked(config)
    task, batches = trainer.make_task(config), inputs.make_batches(config, "heldout")
    frozen = task.frozen(lambda _, value: jnp.asarray(value), inputs.encoded_in_steps(config))
    monkeypatch.setattr(masking, "sample_mask_rate", lambda *_: jnp.float32(0.5))
    params = run_params(tmp_path / "run", average=True)
    metrics = jax.jit(task.evaluate)(params, frozen, next(batches), jax.random.key(0))
    right, hidden = np.asarray(metrics["accuracy"])
    assert hidden == EDITS * 128  # half of 16 x 16
    assert right / hidden > 0.99
