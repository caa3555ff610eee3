"""Training the MGT to edit: source ids and instruction -> masked target ids.

Axes    B batch, H W tokens, L = H*W, T text tokens, C codebook size
Source  released trainer (mask, loss, condition dropout as it was meant, Q12); EditMGT section 4
Differs a text encoder can be trained along; changed ids may weigh more (`loss.changed_weight`, 1 = released), and so may
        samples in which few ids change (`loss.area_power`, 0 = released)
"""

import jax
import jax.numpy as jnp
import numpy as np

from editmgt_jax import masking
from editmgt_jax.config import AESTHETIC_SCORE, CLIPTextConfig, MGTConfig, SchedulerConfig, write_json
from editmgt_jax.convert import save_component
from editmgt_jax.loading import load_vq
from editmgt_jax.models.clip_text import CLIPText
from editmgt_jax.models.mgt import MGT, init_mgt
from editmgt_jax.training.initialise import copy_friendly
from editmgt_jax.training.step import TrainState, apply_gradients, masked_cross_entropy, new_state

_SMALLEST_SHARE = 1 / 16  # of changed ids: below it the weight of a sample grows no more


class MGTTask:
    """Task `mgt`.

    Batches hold 'text_ids' int32 [B T] and either 'source_ids' and 'target_ids' [B H W], or 'source' and 'target'
    uint8 [B Y X 3]: then the frozen image tokenizer runs inside the step. They may hold 'micro', the micro-conditions [B 5].
    """

    monitor = ("accuracy_changed", "max")

    def __init__(self, config):
        self.config = config
        self.vq, self.vq_params = load_vq(config.model.vq)
        self.vq_config = self.vq.config
        self.mgt_config = MGTConfig.from_dict(config.model.mgt.to_dict())
        self.text_config = CLIPTextConfig.from_dict(config.model.text.to_dict())
        if self.mgt_config.codebook_size != self.vq_config.num_vq_embeddings:
            raise ValueError(
                f"model.mgt.codebook_size must equal the tokenizer's {self.vq_config.num_vq_embeddings} codes; "
                f"got {self.mgt_config.codebook_size}"
            )
        self.mgt = MGT(self.mgt_config, remat=config.model.remat, unroll=config.model.unroll)
        self.text = CLIPText(self.text_config)

    def init(self, key, optimizer) -> TrainState:
        mgt_key, text_key, copy_key = jax.random.split(key, 3)
        params = {
            "mgt": init_mgt(self.mgt, mgt_key),
            "text": self.text.init(text_key, jnp.zeros((1, self.text_config.max_position_embeddings), jnp.int32))[
                "params"
            ],
        }
        if self.config.model.copy_friendly:
            params["mgt"] = copy_friendly(params["mgt"], self.mgt_config, self.vq_params["codebook"], copy_key)
        return new_state(params, optimizer, ema=self.config.optimizer.ema_decay > 0)

    def extra(self, _params):
        """Nothing is updated without gradients."""

    def encode_image(self, pixels):
        """[B Y X 3] in [0, 1] -> ids [B H W]."""
        return self.vq.apply({"params": self.vq_params}, pixels, method="encode")

    def _ids(self, batch, side):
        """The batch's ids of 'source' or 'target', encoded here only if the data is not tokenised."""
        if f"{side}_ids" in batch:
            return batch[f"{side}_ids"].astype(jnp.int32)
        return self.encode_image(batch[side].astype(jnp.float32) / 255)

    def _predict(self, params, source, hidden, mask_rate, text_ids, micro=None):
        """Logits [B L C] of a batch whose target ids are partly hidden; `micro` [B 5], by default those of whole pictures."""
        states, pooled = self.text.apply({"params": params["text"]}, text_ids)
        if micro is None:
            rows, columns = (side * self.vq_config.factor for side in source.shape[1:])
            micro = jnp.broadcast_to(jnp.array([columns, rows, 0, 0, AESTHETIC_SCORE], jnp.float32), (len(source), 5))

        time = masking.training_time(mask_rate, self.config.model.timestep_convention)

        def forward(mgt):
            condition = mgt.condition(states, pooled, micro, source, 1.0)
            return mgt(hidden, time, condition)[0]

        logits = self.mgt.apply({"params": params["mgt"]}, method=forward)
        return logits.reshape(len(source), -1, logits.shape[-1])

    def _loss(self, params, batch, source, target, key, drop_rate):
        """-> (loss, metrics). `drop_rate`: share of samples whose instruction becomes the empty prompt."""
        mask_key, drop_key = jax.random.split(key)
        batch_size, grid = len(source), source.shape[1:]
        mask, rate = masking.random_mask(mask_key, batch_size, grid[0] * grid[1], self.config.loss.min_masking_rate)
        flat_target, flat_source = target.reshape(batch_size, -1), source.reshape(batch_size, -1)
        hidden = jnp.where(mask, self.mgt_config.mask_token_id, flat_target).reshape(target.shape)
        dropped = jax.random.uniform(drop_key, (batch_size, 1)) < drop_rate
        text_ids = jnp.where(dropped, self.empty_prompt_ids(), batch["text_ids"])

        logits = self._predict(params, source, hidden, rate, text_ids, batch.get("micro"))
        changed = flat_target != flat_source
        weights = self._weights(changed)
        loss = masked_cross_entropy(logits, flat_target, mask, weights)
        right = jnp.argmax(logits, axis=-1) == flat_target

        def share(where):
            return (right * where).sum() / jnp.maximum(where.sum(), 1)

        informed = mask & ~dropped
        metrics = {
            "loss": loss,
            "accuracy_changed": share(informed & changed),
            "accuracy_kept": share(informed & ~changed),
            "changed": changed.mean(),
        }
        return loss, metrics

    def _weights(self, changed):
        """Loss weights [B L]: changed ids count more, and so do samples in which few ids change."""
        config = self.config.loss
        share = jnp.clip(changed.mean(axis=1, keepdims=True), _SMALLEST_SHARE, 1.0)
        return jnp.where(changed, config.changed_weight, 1.0) * share**-config.area_power

    def empty_prompt_ids(self):
        """[1 T]: start mark, end mark, padding."""
        ids = np.full((1, self.text_config.max_position_embeddings), self.text_config.pad_token_id, np.int32)
        ids[0, :2] = self.text_config.bos_token_id, self.text_config.eos_token_id
        return ids

    def train_step(self, state, batch, key, optimizer):
        source, target = self._ids(batch, "source"), self._ids(batch, "target")
        (_, metrics), gradients = jax.value_and_grad(self._loss, has_aux=True)(
            state.params, batch, source, target, key, self.config.loss.condition_dropout
        )
        state = apply_gradients(state, gradients, optimizer, self.config.optimizer.ema_decay)
        return state, metrics

    def eval_step(self, params, batch, key):
        source, target = self._ids(batch, "source"), self._ids(batch, "target")
        return self._loss(params, batch, source, target, key, 0.0)[1]

    def export(self, params, directory, dtype=np.float32, verify: bool = False) -> None:
        """Writes the model directory's `editmgt`, `text_encoder`, `vqvae` and `scheduler`."""
        save_component(directory / "editmgt", self.mgt_config, params["mgt"], dtype, verify)
        save_component(directory / "text_encoder", self.text_config, params["text"], dtype, verify)
        save_component(directory / "vqvae", self.vq_config, self.vq_params, np.float32, verify)
        (directory / "scheduler").mkdir()
        scheduler = SchedulerConfig(
            mask_token_id=self.mgt_config.mask_token_id,
            timestep_convention=self.config.model.timestep_convention,
            native_size=self.config.data.size,
            negative_prompt="",
            **self.config.model.scheduler,
        )
        write_json(scheduler, directory / "scheduler" / "scheduler_config.json")
