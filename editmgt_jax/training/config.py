"""The config of a run: every key with its type, default, rule and meaning. No jax.

A config file's `get_config()` gives the same keys as an ml_collections ConfigDict; `config_files.load_config` makes of it, once, the
frozen object that everything else reads. What no config states has the default that stands here.

A run that goes on may change FREE keys, is told of changes of NOTED ones (the default), and must keep FIXED ones.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from editmgt_jax.config import CLIPTextConfig, MGTConfig, SchedulerConfig, VQConfig
from editmgt_jax.data.scenes.variety import OBJECTS
from editmgt_jax.training import compiler, declare
from editmgt_jax.training.declare import (
    FIXED,
    FREE,
    NOTED,
    ConfigError,
    Rule,
    above,
    architecture,
    at_least,
    below,
    between,
    key,
    multiple_of,
    one_of,
    section,
)
from editmgt_jax.training.mixture import Folder, read_folders, read_weights, write_folders

PRECISION = one_of("default", "high", "highest")
FLOATS = one_of("float32", "bfloat16", "float16")
SEED = below(0, 2**32)
SIZE = Rule(" of at least 1, or -1 for the devices that are left", lambda value: value >= 1 or value == -1)


def _folders(meaning: str, **more):
    return key((), meaning, read=read_folders, write=write_folders, folder=True, **more)


# ---- what all tasks share


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each axis."""

    data: int = key(1, "the number of copies of the parameters", SIZE, FREE)
    fsdp: int = key(-1, "the number of devices that parameters are split over", SIZE, FREE)
    tensor: int = key(1, "the number of devices that heads are split over", SIZE, FREE)
    context: int = key(1, "the number of devices that positions are split over", SIZE, FREE)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    every: int = key(500, "the number of steps between checkpoints", at_least(1), FREE)
    keep: int = key(
        2, "the number of the latest that are kept, besides the best of those with an evaluation", at_least(1), FREE
    )
    keep_every: int = key(0, "the number of steps whose multiples are kept too; 0 keeps none", at_least(0), FREE)


@dataclasses.dataclass(frozen=True)
class Watchdog:
    seconds: float = key(
        0.0, "the time without a step after which stacks are printed; 0 waits for ever", at_least(0), FREE
    )
    end: bool = key(False, "whether the process ends then, too", change=FREE)


@dataclasses.dataclass(frozen=True)
class Guard:
    max_loss: float = key(100.0, "the loss above which a step is bad", above(0), FREE)
    skip: int = key(0, "the number of bad steps that may be left out before the run ends", at_least(0), FREE)


@dataclasses.dataclass(frozen=True)
class Data:
    size: int = key(64, "the pixels along a side", at_least(1), FIXED)
    seed: int = key(0, "the seed of scenes, and of the order of records", SEED, FIXED)
    objects: str = key("core", "the objects that scenes show", one_of(*OBJECTS), FIXED)
    tokens: tuple[Folder, ...] = _folders(
        "the mixture of folders of token records; none draws scenes",
        change=FIXED, fixed=lambda folders: [folder.weight for folder in folders],
    )  # fmt: skip
    heldout: tuple[Folder, ...] = _folders("the same of evaluation")
    categories: tuple[tuple[str, float], ...] = key(
        (),
        "the weights in the mixture of categories of records and of scenes; others have 1",
        change=FIXED,
        read=read_weights,
        write=dict,
    )
    threads: int = key(1, "the number of threads that read in a process", at_least(1), FREE)
    workers: int = key(0, "the number of processes that read ahead; 0 reads in the trainer's", at_least(0), FREE)
    bad_records: int = key(100, "the number of records that a process may find unreadable", at_least(0), FREE)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    learning_rate: float = key(1e-4, "the peak of the schedule", above(0))
    schedule: str = key(
        "constant", "the course of the learning rate after the warm-up", one_of("constant", "cosine", "wsd")
    )
    warmup_steps: int = key(0, "the steps over which the learning rate rises from 0", at_least(0))
    total_steps: int = key(10_000, "the step where the schedules cosine and wsd reach 0", at_least(1))
    decay_steps: int = key(0, "the steps over which wsd falls to 0, the last ones of total_steps", at_least(0))
    undecayed: str = key(
        "released",
        "the parameters that weight decay spares; no_norms spares all norms, too",
        one_of("released", "no_norms"),
    )
    first_moment: str = key("float32", "the dtype of Adam's first moment", one_of("float32", "bfloat16"), FIXED)
    beta1: float = key(0.9, "the decay of Adam's first moment", below(0, 1))
    beta2: float = key(0.999, "the decay of Adam's second moment", below(0, 1))
    weight_decay: float = key(1e-2, "the share that weights lose in a step, times the learning rate", at_least(0))
    clip_norm: float = key(10.0, "the global norm that larger gradients are scaled down to", above(0))
    ema_decay: float = key(
        0.0,
        "the decay of the moving average of parameters (EMA); 0 keeps none",
        below(0, 1),
        FIXED,
        fixed=lambda decay: decay > 0,
    )

    def __post_init__(self):
        if self.schedule == "wsd" and (self.decay_steps < 1 or self.total_steps < self.warmup_steps + self.decay_steps):
            raise ConfigError(
                "optimizer.schedule wsd needs decay_steps >= 1 and total_steps >= warmup_steps + decay_steps; "
                f"got {self.decay_steps}, {self.total_steps} and {self.warmup_steps}"
            )

    def notes(self, steps: int) -> list[str]:
        """What a user may not have meant: a schedule that ends elsewhere than a run of `steps` does."""
        found, ends = [], f"optimizer.total_steps={self.total_steps}"
        if self.schedule != "constant" and steps > self.total_steps:
            rest = steps - self.total_steps
            found.append(f"the schedule ends at {ends}: the last {rest} of the {steps} steps have learning rate 0")
        elif self.schedule != "constant" and 0 < steps < self.total_steps:
            found.append(f"the schedule ends at {ends}, after the {steps} steps: the learning rate does not reach 0")
        if self.schedule != "constant" and self.warmup_steps >= self.total_steps:
            found.append(f"optimizer.warmup_steps={self.warmup_steps} leaves nothing of the schedule before {ends}")
        if 0 < steps <= self.warmup_steps:
            found.append(f"all {steps} steps lie in the warm-up of optimizer.warmup_steps={self.warmup_steps}")
        return found


@dataclasses.dataclass(frozen=True)
class LoRA:
    rank: int = key(0, "the rank of the adapters; 0 trains the model itself", at_least(0), FIXED)
    alpha: float = key(32.0, "the numerator of the adapters' scale alpha / rank", above(0), FIXED)
    targets: tuple[str, ...] = key(
        ("to_q", "to_k", "to_v"), "the ends of the released names of adapted modules",
        Rule(", at least one", lambda value: len(value) > 0 and all(value)), FIXED,
    )  # fmt: skip
    scope: str = key("all", "the tokens that adapted weights see", one_of("all", "reference"), FIXED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The keys of every task; each task's class, below, adds its own sections."""

    task: str = key(..., "the kind of model that is trained", change=FIXED)
    seed: int = key(0, "the seed of the parameters and of the draws of steps", SEED)
    steps: int = key(10_000, "the length of the run", at_least(0), FREE)
    batch_size: int = key(32, "the number of samples of a step, over all devices", at_least(1), FIXED)
    start_from: str = key("", "the run or model directory whose parameters a run starts from", change=FREE, folder=True)
    log_every: int = key(20, "the number of steps between lines of metrics", at_least(1), FREE)
    eval_every: int = key(500, "the number of steps between evaluations; the last step has one, too", at_least(1), FREE)
    eval_batches: int = key(8, "the number of batches of an evaluation", at_least(1), FREE)
    sample_edits: int = key(
        0, "the number of held-out pairs that each evaluation edits, into the folder `samples`", at_least(0), FREE
    )
    accumulate: int = key(1, "the number of parts that a batch is computed in, one after another", at_least(1), FREE)
    compiler: str = key(
        "default", "the preset of compiler options, see `training/compiler.py`", one_of(*sorted(compiler.PRESETS)), FREE
    )
    mesh: Mesh = section(Mesh)
    checkpoint: Checkpoint = section(Checkpoint)
    watchdog: Watchdog = section(Watchdog)
    guard: Guard = section(Guard)
    data: Data = section(Data)
    optimizer: Optimizer = section(Optimizer)
    lora: LoRA = section(LoRA)

    def to_dict(self) -> dict:
        """What `read_config` reads, in values that JSON can hold."""
        return declare.plain(self)


# ---- task mgt


@dataclasses.dataclass(frozen=True, kw_only=True)
class MGTModel:
    mgt: MGTConfig = architecture(MGTConfig, required=True)
    text: CLIPTextConfig = architecture(  # the encoder that is trained along where no frozen encoders are named
        CLIPTextConfig,
        without=("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"),  # the tokenizer's
        zeros=("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"),
    )
    scheduler: SchedulerConfig | None = architecture(  # how the model is to be decoded; frozen encoders bring theirs
        SchedulerConfig,
        change=NOTED,
        without=("mask_token_id", "timestep_convention", "native_size", "negative_prompt"),
        given=(("mask_token_id", 0),),
        optional=True,
    )
    vq: str = key("", "the folder of the image tokenizer; frozen encoders bring theirs", folder=True)
    vq_precision: str = key("highest", "the precision of the image tokenizer's products inside steps", PRECISION)
    tokenizer: str = key("", "the folder of the text tokenizer; the records' or a learnt one by default", folder=True)
    encoders: str = key(
        "", "the model directory whose frozen text encoders to use; none trains `text` along", folder=True
    )
    encoder_dtype: str = key("float32", "the dtype of the frozen encoders' matrices", FLOATS)
    dtype: str = key("float32", "the dtype of the transformer's products", one_of("float32", "bfloat16"))
    head_precision: str = key(
        "highest",
        "the precision of the product with the codebook; under default its logits are in model.dtype",
        PRECISION,
    )
    timestep_convention: str = key(
        "released", "the meaning of the time that the transformer is given", one_of("released", "mask_rate"), FIXED
    )
    reference: bool = key(True, "whether the source is attended to; without, text-to-image is trained", change=FIXED)
    copy_friendly: bool = key(False, "whether training starts from a model that copies its source", change=FREE)
    attention: str = key("auto", "the backend of attention, see `models/attention/`", change=FREE)
    remat: str = key(
        "none",
        "the activations that the backward pass computes again",
        one_of("none", "dots", "products", "full"),
        FREE,
    )
    unroll: int = key(1, "the number of blocks that are compiled as one", at_least(1), FREE)

    def __post_init__(self):
        if self.encoders and (self.vq or self.scheduler):
            raise ConfigError(
                "model.encoders bring their own vqvae and scheduler: leave model.vq and model.scheduler empty"
            )


@dataclasses.dataclass(frozen=True)
class MGTLoss:
    mean: str = key("batch", "the set that the mean over hidden tokens is of", one_of("batch", "sample"))
    changed_weight: float = key(1.0, "the weight of ids that the edit changes; others have 1", at_least(0))
    area_power: float = key(0.0, "a power: a sample's weight is its share of changed ids to minus this", at_least(0))
    min_masking_rate: float = key(0.0, "the smallest share of hidden tokens", below(0, 1))
    condition_dropout: float = key(0.1, "the share of samples without their instruction", between(0, 1))
    steered: float = key(
        0.0, "the share of samples whose changed ids are hidden more, or less, as in decodes", between(0, 1)
    )
    corruption: float = key(0.0, "the largest share of known changed ids that are the source's", between(0, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MGTRun(TrainConfig):
    """A run of task `mgt`."""

    model: MGTModel = section(MGTModel)
    loss: MGTLoss = section(MGTLoss)

    def __post_init__(self):
        if self.lora.rank and not self.start_from:
            raise ConfigError("a LoRA (lora.rank) adapts a model: name its directory or run in start_from")
        if self.lora.rank and not self.model.encoders:
            raise ConfigError(
                "a LoRA is trained alone: name the model directory with its text encoders in model.encoders"
            )
        if self.sample_edits and not self.model.reference:
            raise ConfigError(
                f"sample_edits must be 0 without model.reference: only editors edit; got {self.sample_edits}"
            )


# ---- task vq


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQTraining:
    architecture: VQConfig = architecture(VQConfig, without=("in_channels", "out_channels"), inline=True)
    precision: str = key("highest", "the precision of products in training", PRECISION)
    trained: str = key(
        "all",
        "the part that is trained; decoder leaves every id, and what was trained on ids, as it is",
        one_of("all", "decoder"),
        FIXED,
    )


@dataclasses.dataclass(frozen=True)
class Discriminator:
    """Of the adversarial term, `loss.adversarial`."""

    width: int = key(64, "the channels of its first convolution", multiple_of(8), FIXED)
    halvings: int = key(3, "the number of its convolutions with stride 2", at_least(1), FIXED)
    learning_rate: float = key(2e-4, "its learning rate, the same at all steps", above(0))
    ahead: int = key(0, "the steps before loss.adversarial_from that it learns in already", at_least(0))


@dataclasses.dataclass(frozen=True)
class Codebook:
    start_step: int = key(200, "the step where quantisation begins", at_least(0))
    decay: float = key(0.98, "the decay of the statistics of codes", below(0, 1))
    dead_below: float = key(0.05, "the count below which a code is dead", at_least(0))
    restart_every: int = key(100, "the number of steps between restarts of dead codes", at_least(1))
    restart_until: int = key(2_500, "the step where restarts end", at_least(0))


@dataclasses.dataclass(frozen=True)
class VQLoss:
    locality: float = key(0.5, "the weight of equal latents outside of an edit's mask", at_least(0))
    locality_warmup: int = key(0, "the steps over which that weight comes in", at_least(0))
    commitment: float = key(0.25, "the weight of the distance of latents to their codes", at_least(0))
    perceptual: float = key(0.0, "the weight of LPIPS; 0 leaves it out", at_least(0))
    lpips: str = key("", "the file of the weights of LPIPS")
    lpips_dtype: str = key("float32", "the dtype of the products of LPIPS", one_of("float32", "bfloat16"))
    adversarial: float = key(
        0.0,
        "the weight of a discriminator's judgement, times the adaptive weight of VQGAN; 0 leaves it out",
        at_least(0),
        FIXED,
        fixed=lambda weight: weight > 0,
    )
    adversarial_from: int = key(0, "the step where the judgement of the discriminator begins to count", at_least(0))

    def __post_init__(self):
        if self.perceptual and not self.lpips:
            raise ConfigError("loss.perceptual needs the file of the weights of LPIPS in loss.lpips; got none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQRun(TrainConfig):
    """A run of task `vq`."""

    model: VQTraining = section(VQTraining)
    loss: VQLoss = section(VQLoss)
    codebook: Codebook = section(Codebook)
    discriminator: Discriminator = section(Discriminator)

    def __post_init__(self):
        wanted = {
            "accumulate": (self.accumulate, 1),
            "lora.rank": (self.lora.rank, 0),
            "sample_edits": (self.sample_edits, 0),
        }
        for name, (value, only) in wanted.items():
            if value != only:
                raise ConfigError(f"{name} must be {only} for task vq; got {value}")
        if self.data.tokens or self.data.heldout:
            raise ConfigError("data.tokens and data.heldout must be empty for task vq, which trains on pictures")
        if self.model.trained == "decoder" and not self.start_from:
            raise ConfigError(
                "model.trained decoder keeps the ids of a trained tokenizer: name its model directory or run in start_from"
            )


RUNS = {"mgt": MGTRun, "vq": VQRun}


def run_type(values: Mapping, kinds: Mapping[str, type] = RUNS) -> type:
    """The class of a config by its key `task`. Errors: ConfigError."""
    task = values.get("task")
    if not isinstance(task, str) or task not in kinds:
        raise ConfigError(f"task must be one of {', '.join(kinds)}; got {task!r}")
    return kinds[task]


def read_config(values: Mapping[str, Any], kinds: Mapping[str, type] = RUNS) -> Any:
    """The typed config of a plain dict, of one of the classes of `kinds`. Errors: ConfigError.

    Args:
      kinds: {task: class}, the kinds of config that are meant.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"a config must be a dict of keys and sections; got {type(values).__name__}")
    return declare.read(run_type(values, kinds), values)


def starting_values() -> dict:
    """The keys that all tasks share, with their defaults; the sections of the tasks are empty."""
    found = {}
    for field in dataclasses.fields(TrainConfig):
        required = field.default is field.default_factory is dataclasses.MISSING
        made = field.default if field.default_factory is dataclasses.MISSING else declare.plain(field.default_factory())
        found[field.name] = None if required else made
    return found | {"model": {}, "loss": {}}
