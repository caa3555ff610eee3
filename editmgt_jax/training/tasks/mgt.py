"""Training the MGT to edit: source ids and instruction -> masked target ids.

Axes    B batch, H W tokens, L = H*W, T text tokens, C codebook size
Source  released trainer (mask, loss, condition dropout as it was meant, Q12); EditMGT section 4
Differs a text encoder can be trained along; changed ids may weigh more (`loss.changed_weight`, 1 = released), and so may
        samples in which few ids change (`loss.area_power`, 0 = released); without `model.reference` the source is left out,
        which trains text-to-image
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from editmgt_jax.config import LoRAConfig, MGTConfig, SchedulerConfig, micro_conditions
from editmgt_jax.errors import UserError
from editmgt_jax.files import copy_files
from editmgt_jax.models.cells import to_cells
from editmgt_jax.models.flops import forward_flops
from editmgt_jax.models.mgt import MGT, init_mgt
from editmgt_jax.models.prompts import PromptTokenizers
from editmgt_jax.models.vq import pixels_to_ids
from editmgt_jax.sampling import masking
from editmgt_jax.training import inputs
from editmgt_jax.training.checkpoint import fingerprint
from editmgt_jax.training.conditioning import TrainedText, text_of
from editmgt_jax.training.config import MGTRun
from editmgt_jax.training.cross_entropy import cross_entropy
from editmgt_jax.training.initialise import copy_friendly
from editmgt_jax.training.runs import best_params, config_of_task, is_run
from editmgt_jax.training.sharding import MGT_RULES, Put
from editmgt_jax.training.state import Metrics, Params
from editmgt_jax.training.step import accumulate, loss_weights
from editmgt_jax.training.tasks.protocol import Task
from editmgt_jax.weights.components import companion_folders
from editmgt_jax.weights.conversion import save_component
from editmgt_jax.weights.loading import find_model, load_clip, load_mgt, load_vq
from editmgt_jax.weights.lora import init_lora, merge, save_lora

_SMALLEST_SHARE = 1 / 16  # of changed ids: below it the weight of a sample grows no more
_RATE_BINS = 5  # of mask rates, for the accuracy in each


class MGTTask(Task):
    """Task `mgt`.

    Batches hold the ids of the instruction int32 [B T], in the fields of its text encoders, or their states (`TextStates`); and
    either 'source_ids' and 'target_ids' [B H W], or 'source' and 'target' uint8 [B Y X 3]: then the frozen image tokenizer
    runs inside the step. They may hold 'micro', the micro-conditions [B 5].
    """

    rules = MGT_RULES

    @classmethod
    def resolve(cls, config: MGTRun, workdir: Path, make: bool) -> MGTRun:
        """See `Task.resolve`; a text tokenizer is found beside the token records, or learnt of the scenes."""
        return inputs.resolve_text(inputs.resolve(config, workdir), workdir, make)

    def __init__(self, config: MGTRun):
        self.config, self.edits = config, config.model.reference
        self.monitor = ("accuracy_changed" if config.model.reference else "accuracy", "max")
        vq_directory = config.model.vq or str(Path(config.model.encoders) / "vqvae")
        self.vq, _ = load_vq(vq_directory, check_only=True)
        self.vq = self.vq.clone(precision=config.model.vq_precision)
        self.vq_directory, self.vq_config = vq_directory, self.vq.config
        self.mgt_config = config.model.mgt
        if self.mgt_config.codebook_size != self.vq_config.num_vq_embeddings:
            raise UserError(
                f"model.mgt.codebook_size must equal the tokenizer's {self.vq_config.num_vq_embeddings} codes; "
                f"got {self.mgt_config.codebook_size}"
            )
        self.lora = None
        if config.lora.rank:
            chosen = config.lora
            self.lora = LoRAConfig(chosen.rank, chosen.alpha, chosen.targets, chosen.scope)
        self.mgt = MGT(
            self.mgt_config,
            dtype=jnp.dtype(config.model.dtype),
            remat=config.model.remat,
            unroll=config.model.unroll,
            lora=self.lora,
            head_precision=config.model.head_precision,
            attention=config.model.attention,
        )
        self.text = text_of(config, self.mgt_config)
        self.scheduler = self._scheduler()

    @property
    def encode_prompts(self) -> PromptTokenizers:
        """Strings -> {name: ids [B T]}, on the host."""
        return self.text.encoder.tokenizers

    def _scheduler(self) -> SchedulerConfig:
        """How the model is to be decoded: as the frozen encoders' directory says, or the config."""
        convention = self.config.model.timestep_convention
        if not self.config.model.encoders:
            return dataclasses.replace(
                self.config.model.scheduler or SchedulerConfig(self.mgt_config.mask_token_id),
                mask_token_id=self.mgt_config.mask_token_id,
                timestep_convention=convention,
                native_size=self.config.data.size,
                negative_prompt="",
            )
        path = Path(self.config.model.encoders) / "scheduler" / "scheduler_config.json"
        scheduler = SchedulerConfig.from_json(path)
        if scheduler.timestep_convention != convention:
            raise UserError(f"model.timestep_convention must be that of {path}, {scheduler.timestep_convention!r}")
        return scheduler

    # ---- parameters

    def init(self, key: jax.Array) -> Params:
        """Random parameters."""
        mgt_key, text_key, lora_key = jax.random.split(key, 3)
        if self.lora is not None:
            shapes = jax.eval_shape(lambda: init_mgt(self.mgt, mgt_key))
            return {"lora": init_lora(self.lora, self.mgt_config, shapes, lora_key)}
        params = {"mgt": init_mgt(self.mgt, mgt_key)}
        return params | ({"text": self.text.init(text_key)} if isinstance(self.text, TrainedText) else {})

    def notes(self) -> list[str]:
        """See `Task.notes`: a model that PyTorch's users cannot load."""
        problem = self.mgt_config.released_problem
        return [] if problem is None else [f"the released PyTorch classes cannot hold this model: {problem}"]

    def start(self, key: jax.Array, put: Put) -> Params | None:
        """Parameters that are not random: those of `start_from`, or a copier's; None if there are none.

        Errors: UserError for a start with another config; those of what reads it.
        """
        if self.lora is not None:
            return None
        if self.config.start_from:
            return self._read(self.config.start_from, put)
        if not self.config.model.copy_friendly:
            return None
        params = jax.jit(self.init)(key)
        _, vq_params = load_vq(self.vq_directory)
        copy_key = jax.random.split(key, 3)[2]
        params["mgt"] = copy_friendly(params["mgt"], self.mgt_config, vq_params["codebook"], copy_key)
        return _put_tree(params, put)

    def _read(self, directory, put):
        """Parameters of a run, or of a model directory."""
        if is_run(directory):
            self._check_same(config_of_task(directory, MGTRun).model.mgt, directory)
            params = best_params(directory)
            if "mgt" not in params:
                raise UserError(
                    f"{directory} is the run of a LoRA: name a model directory with it merged (editmgt export --merge)"
                )
            return _put_tree({name: params[name] for name in self._trained()}, put)
        directory, mgt_directory = find_model(directory)
        mgt, params = load_mgt(mgt_directory, put=lambda path, value: put(f"mgt/{path}", value))
        self._check_same(mgt.config, mgt_directory)
        if not isinstance(self.text, TrainedText):
            return {"mgt": params}
        _, text = load_clip(directory / "text_encoder", put=lambda path, value: put(f"text/{path}", value))
        return {"mgt": params, "text": text}

    def _trained(self) -> tuple[str, ...]:
        """Names of the parts of a model that `init` makes, LoRAs aside."""
        return ("mgt", "text") if isinstance(self.text, TrainedText) else ("mgt",)

    def _check_same(self, other: MGTConfig, where) -> None:
        if other != self.mgt_config:
            raise UserError(f"model.mgt must be the config of start_from, {where}: {other}; got {self.mgt_config}")

    def frozen(self, put: Put, encodes: set[str]) -> dict:
        """See `Task.frozen`: the frozen text encoders, the image tokenizer if steps encode 'images', and what a LoRA adapts."""
        frozen = {"text": self.text.frozen(put, encodes)}
        if "images" in encodes:
            _, frozen["vq"] = load_vq(self.vq_directory, put=lambda path, value: put("", value))
        if self.lora is not None:
            frozen["mgt"] = self.base(put)
        return frozen

    def base(self, put: Put) -> Params:
        """The parameters of the transformer that a LoRA adapts."""
        return self._read(self.config.start_from, put)["mgt"]

    def identity(self, frozen: dict) -> dict:
        """What the states mean nothing without: of a LoRA, how it adapts which model."""
        return {} if self.lora is None else {"lora": self.lora.to_dict(), "base": fingerprint(frozen["mgt"])}

    def variables(self, params: Params, frozen: dict) -> dict:
        """What the transformer is applied with."""
        if self.lora is None:
            return {"params": params["mgt"]}
        return {"params": frozen["mgt"], "lora": params["lora"]}

    # ---- steps

    def gradients(
        self, params: Params, frozen: dict, batch: dict, key: jax.Array, _step: jax.Array, _extra: None = None
    ) -> tuple[Params, Metrics, None]:
        """-> (gradients, metrics, nothing for `after`)"""
        prepared = self._prepare(frozen, batch, key, training=True)
        differentiate = jax.value_and_grad(lambda params, part: self._loss(params, frozen, part), has_aux=True)

        def of_part(part):
            (_, metrics), gradients = differentiate(params, part)
            return gradients, metrics

        return *accumulate(of_part, prepared, self.config.accumulate), None

    def evaluate(self, params: Params, frozen: dict, batch: dict, key: jax.Array) -> Metrics:
        """-> metrics"""
        prepared = self._prepare(frozen, batch, key, training=False)
        return accumulate(lambda part: self._loss(params, frozen, part)[1], prepared, self.config.accumulate)

    def flops(self, batch: dict) -> int:
        """Of a step on a batch of arrays or shapes: forward, and backward twice that, or for a LoRA as much, since frozen
        weights have no gradients. The frozen encoders are left out."""
        size, *grid = self._ids_shape(batch["target_ids" if "target_ids" in batch else "target"])
        text = self.text.encoder.length(batch)
        passes = 3 if self.lora is None else 2
        return passes * size * forward_flops(self.mgt_config, tuple(grid), text, self.config.model.reference)

    def _ids_shape(self, array):
        factor = 1 if array.ndim == 3 else self.vq_config.factor
        return array.shape[0], array.shape[1] // factor, array.shape[2] // factor

    def ids(self, frozen: dict, batch: dict, side: str) -> jax.Array:
        """The batch's ids [B H W] of 'source' or 'target', encoded here only if the data is not tokenized."""
        if f"{side}_ids" in batch:
            return batch[f"{side}_ids"].astype(jnp.int32)
        return pixels_to_ids(frozen["vq"], batch[side], self.vq)

    def _prepare(self, frozen, batch, key, training: bool) -> dict:
        """All of a step that has no gradient, for the whole batch. In `training` some samples lose their instruction, hide
        changed ids more or less often, or know wrong ones; evaluations see every sample as it is."""
        mask_key, drop_key = jax.random.split(key)
        drop_rate = self.config.loss.condition_dropout if training else 0.0
        source, target = self.ids(frozen, batch, "source"), self.ids(frozen, batch, "target")
        size, grid = len(target), target.shape[1:]
        dropped = jax.random.uniform(drop_key, (size,)) < drop_rate
        changed = (target != source).reshape(size, -1)
        lean = self._lean(jax.random.fold_in(key, 2), changed) if training else None
        shortest = self.config.loss.min_masking_rate
        mask, rate = masking.random_mask(mask_key, size, grid[0] * grid[1], shortest, lean=lean)
        known = self._corrupted(jax.random.fold_in(key, 3), source, target) if training else target
        prepared = {
            "target": target.reshape(size, -1),
            "hidden": jnp.where(mask.reshape(target.shape), self.mgt_config.mask_token_id, known),
            "mask": mask,
            "rate": rate,
            "changed": changed,
            "informed": ~dropped,
            "weights": loss_weights(mask, self._emphasis(changed), self.config.loss.mean),
            "micro": batch["micro"] if "micro" in batch else self._whole_pictures(size, grid),
            "text": self.text.inputs(frozen["text"], batch, dropped),
        }
        return prepared | ({"source": source} if self.config.model.reference else {})

    def _lean(self, key, changed):
        """[B L] for `random_mask`: in a share `loss.steered` of the samples, changed ids are more likely hidden than others, or
        less likely, as decodes leave them; None where the share is 0."""
        share = self.config.loss.steered
        if not share:
            return None
        chosen, strength = jax.random.uniform(key, (2, len(changed), 1))
        return jnp.where(chosen < share, 2 * strength - 1, 0.0) * changed

    def _corrupted(self, key, source, target):
        """The target's ids [B H W] with errors as decodes make them: in half of the samples up to a share
        `loss.corruption` of the changed ids are the source's, and a tenth as many of all ids are random."""
        share = self.config.loss.corruption
        if not share:
            return target
        sample_key, copy_key, random_key, id_key = jax.random.split(key, 4)
        rate = share * jnp.maximum(0.0, jax.random.uniform(sample_key, (len(target), 1, 1), minval=-1.0))
        random_ids = jax.random.randint(id_key, target.shape, 0, self.mgt_config.codebook_size)
        known = jnp.where(jax.random.uniform(copy_key, target.shape) < rate, source, target)
        return jnp.where(jax.random.uniform(random_key, target.shape) < rate / 10, random_ids, known)

    def _whole_pictures(self, size, grid):
        """Micro-conditions [B 5] of pictures that were not cropped."""
        rows, columns = (side * self.vq_config.factor for side in grid)
        return jnp.broadcast_to(jnp.array(micro_conditions(columns, rows), jnp.float32), (size, 5))

    def _emphasis(self, changed):
        """Loss weights [B L]: changed ids count more, and so do samples in which few ids change."""
        config = self.config.loss
        share = jnp.clip(changed.mean(axis=1, keepdims=True), _SMALLEST_SHARE, 1.0)
        return jnp.where(changed, config.changed_weight, 1.0) * share**-config.area_power

    def _loss(self, params, frozen, part):
        """-> (share of a part in the batch's loss, metrics)"""
        states, pooled = self.text.states(params.get("text"), part["text"])
        time = masking.training_time(part["rate"], self.config.model.timestep_convention)

        def forward(mgt):
            condition = mgt.condition(states, pooled, part["micro"], part.get("source"), 1.0)
            return mgt(part["hidden"], time, condition, by_cell=True)[0]

        logits = self.mgt.apply(self.variables(params, frozen), method=forward)  # [E B N C]
        grid, stride = part["hidden"].shape[1:], self.mgt_config.stride
        part = part | {
            name: to_cells(part[name].reshape(-1, *grid), stride) for name in ("target", "mask", "changed", "weights")
        }
        losses, likeliest = cross_entropy(logits, part["target"])
        loss = jnp.sum(losses * part["weights"])
        share = jnp.float32(len(states) / self.config.batch_size)  # 1 over all parts
        return loss, {"loss": (loss, share)} | self._accuracies(likeliest, part)

    def _accuracies(self, likeliest, part) -> dict:
        """Over hidden tokens of samples with their instruction."""
        right = likeliest == part["target"]
        informed = part["mask"] & part["informed"][None, :, None]  # of the axes E B N

        def share(where):
            return (right & where).sum(dtype=jnp.float32), where.sum(dtype=jnp.float32)

        metrics = {"accuracy": share(informed)}
        if self.config.model.reference:
            changed = part["changed"]
            metrics |= {"accuracy_changed": share(informed & changed), "accuracy_kept": share(informed & ~changed)}
            metrics["changed"] = changed.sum(dtype=jnp.float32), jnp.float32(changed.size)
        number = jnp.clip((part["rate"] * _RATE_BINS).astype(jnp.int32), 0, _RATE_BINS - 1)[None, :, None]
        for i in range(_RATE_BINS):
            name = f"accuracy/rate_{i / _RATE_BINS:g}_{(i + 1) / _RATE_BINS:g}"
            metrics[name] = share(informed & (number == i))
        return metrics

    # ---- export

    def merged(self, params: Params, identity: dict) -> Params:
        """See `Task.merged`."""
        if self.lora is None:
            return super().merged(params, identity)
        base = self.base(lambda _, value: np.asarray(value))
        if fingerprint(base) != identity["base"]:
            raise UserError(f"{self.config.start_from} is no longer the model that the LoRA was trained on")
        return {"mgt": merge(base, params["lora"], self.lora)}

    def save(self, folder: Path, params: Params, dtype: DTypeLike, verify: bool) -> None:
        """A LoRA alone; or the transformer, and all that goes with it: what was trained along, or the frozen encoders."""
        if "lora" in params:
            save_lora(folder, self.lora, self.mgt_config, params["lora"], verify)
            return
        save_component(folder / "editmgt", self.mgt_config, params["mgt"], dtype, verify)
        model = self.config.model
        if model.encoders:
            for name in companion_folders():
                if (Path(model.encoders) / name).is_dir():
                    copy_files(Path(model.encoders) / name, folder / name)
            return
        save_component(folder / "text_encoder", self.text.config, params["text"], dtype, verify)
        copy_files(self.vq_directory, folder / "vqvae")  # as it is: a rounded one would give other ids
        copy_files(model.tokenizer, folder / "tokenizer")
        (folder / "scheduler").mkdir()
        self.scheduler.to_json(folder / "scheduler" / "scheduler_config.json")


def _put_tree(params, put):
    def put_leaf(path, value):
        return put("/".join(key.key for key in path), np.asarray(value))

    return jax.tree_util.tree_map_with_path(put_leaf, params)
