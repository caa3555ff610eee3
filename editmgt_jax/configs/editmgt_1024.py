"""What the three stages of the released editor share: its architecture, frozen text encoders, AdamW, 256 samples a step.

Source  the released trainer; the paper's three stages. `python benchmarks/stages.py` prints what a stage needs.
"""

from ml_collections import ConfigDict

from editmgt_jax.configs import base
from editmgt_jax.weights.presets import preset


def get_config() -> ConfigDict:
    """What the stages share; a stage sets its data, start and steps."""
    config = base.get_config()
    config.task = "mgt"
    config.sample_edits = 8
    config.batch_size = 256
    config.log_every = 50
    config.eval_every = 1_000
    config.checkpoint.update(every=500, keep=2, keep_every=10_000)
    config.watchdog.update(seconds=1_800.0, end=True)
    config.guard.max_loss = 20.0  # a uniform guess among the codes costs 9
    config.mesh.update(data=-1, fsdp=16)  # 16 chips hold a copy; more of them, or slices, hold more copies
    config.data.update(size=1024, workers=4, threads=8)
    config.data.tokens = ({"path": "data/tokens"},)
    config.data.heldout = ({"path": "data/heldout"},)
    config.optimizer.update(
        learning_rate=1e-4, schedule="constant", weight_decay=1e-2, clip_norm=10.0, ema_decay=0.9999
    )
    config.model = dict(
        mgt=preset("editmgt-1024")["editmgt"].to_dict(),
        encoders="models/editmgt-base",  # a model directory with vqvae, text_encoder, tokenizer and llm_encoder
        encoder_dtype="bfloat16",
        vq="",  # that of the encoders
        tokenizer="",
        text=dict(),
        dtype="bfloat16",
        timestep_convention="released",
        reference=True,
        copy_friendly=False,
        attention="auto",  # the backend: fused on TPUs, and on GPUs in half precision; plain products elsewhere
        head_precision="default",
        remat="products",  # 4 samples a chip need 9.5 of TPU v5e's 16 GiB, by docs/tpu.md; for more, accumulate
        unroll=1,
        scheduler=dict(),  # that of the encoders
    )
    config.loss = dict(mean="batch", changed_weight=1.0, area_power=0.0, min_masking_rate=0.0, condition_dropout=0.1)
    return config
