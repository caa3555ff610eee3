"""The job that records attention: forward passes of a model on examples with a truth, all blocks at once.

A step of a decode is recorded as a forward pass on the ids that it saw: the decode runs once, as ever, and its attention is
measured afterwards, so that a decode holds no more in memory than without records.

Axes    as in `editmgt_jax.config`; M moments; F signals; A' heads kept apart, or 1
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from editmgt_jax.ablation.choices import parts
from editmgt_jax.ablation.config import AblationConfig
from editmgt_jax.ablation.examples import ExampleSource, model_folder
from editmgt_jax.ablation.records import MANIFEST, Manifest, RecordError, Records
from editmgt_jax.config import micro_conditions
from editmgt_jax.models.blocks import Probe
from editmgt_jax.models.mgt import MGT
from editmgt_jax.models.text import TextEncoder, TextStates, stack
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.sampling.decode import half_of_grid
from editmgt_jax.sampling.masking import covered_tokens, training_time
from editmgt_jax.training import processes

RATE, STEP = "rate", "step"
ROOM = 64 << 20  # bytes of attention in float32 that one forward pass may return


class Pass(NamedTuple):
    """The inputs of a forward pass of B samples."""

    tokens: np.ndarray  # int32 [B H W]
    time: np.ndarray  # float32 [B]
    reference: np.ndarray  # int32 [B H W]
    text: TextStates
    text_weights: np.ndarray  # float32 [B R T]
    strength: np.ndarray  # float32 [B]


def record(
    config: AblationConfig, workdir: Path, progress: Callable[[Iterable], Iterable] = iter, scored: bool = False
) -> Path:
    """Records all that a config asks for; goes on where an earlier call was killed. -> the folder of the records

    Each process of the job records whole chunks on its own devices; the model is whole on each of them.

    Args:
      scored: whether scores follow: what they would refuse is refused first.
    Errors: UserError; RecordError when the folder holds records of something else.
    """
    recorder = Recorder(
        config, EditPipeline.from_pretrained(model_folder(config.model), batch_size=config.record.chunk)
    )
    folder, manifest = workdir / "records", recorder.manifest
    if scored:
        parts(config.score, manifest, config.statistics.seed)
    with processes.first_then_others():
        if processes.is_first():
            _begin(folder, manifest)
    if processes.is_first():
        print(size_line(manifest), flush=True)
    records = Records(folder, manifest)
    mine = [chunk for chunk in range(manifest.num_chunks) if chunk % processes.count() == processes.number()]
    for chunk in progress([chunk for chunk in mine if not records.has(chunk)]):
        records.write(chunk, *recorder.chunk(manifest.examples_of(chunk)))
    processes.wait_for_all()
    return folder


def _begin(folder, manifest) -> None:
    if (folder / MANIFEST).is_file():
        before = Manifest.read(folder)
        different = [name for name in vars(manifest) if getattr(before, name) != getattr(manifest, name)]
        if different:
            name = different[0]
            raise RecordError(
                f"the records in {folder} were begun with another {name}, {getattr(before, name)}; this is "
                f"{getattr(manifest, name)}: take a new workdir"
            )
    Records(folder, manifest, create=True)
    manifest.write(folder)


def size_line(manifest: Manifest) -> str:
    """What will be stored, in words."""
    axes = ("moments", "signals", "heads", "groups of tokens")
    counted = ", ".join(f"{length} {name}" for length, name in zip(manifest.axes, axes, strict=True))
    total = manifest.bytes_per_example * manifest.examples
    return (
        f"records: {manifest.examples} examples x {len(manifest.seeds)} seeds, {manifest.num_blocks} blocks, {counted}, "
        f"{manifest.shape[-1]} positions: {manifest.bytes_per_example / 1e3:.0f} kB an example, {total / 1e6:.1f} MB"
    )


class Recorder:
    """Makes the chunks of records.

    Args:
      config: what to record; pipe: the model.
    Errors: UserError for what the model cannot do.
    """

    def __init__(self, config: AblationConfig, pipe: EditPipeline):
        self.config, self.pipe, self.model = config, pipe, pipe.model
        self.source = ExampleSource(config.examples, self.model.scheduler.native_size)
        self.settings = pipe.settings(**dict(config.record.settings))
        self.manifest = self._manifest()
        self._mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self._variables = jax.device_put(self.model.mgt_variables, NamedSharding(self._mesh, P()))

    def _manifest(self) -> Manifest:
        record, mgt = self.config.record, self.model.mgt.config
        side = self.model.scheduler.native_size // self.model.vq.config.factor
        if bad := [step for step in record.steps if step >= self.settings.steps]:
            raise RecordError(f"record.steps must be below the {self.settings.steps} steps of the decode; got {bad}")
        return Manifest(
            model=self.config.model or "default",
            fingerprint=self.model.fingerprint(),
            examples=self.config.examples.count,
            seeds=record.seeds,
            moments=(*(f"{RATE} {rate}" for rate in record.rates), *(f"{STEP} {step}" for step in record.steps)),
            signals=record.signals,
            heads=("mean",) if record.heads == "mean" else tuple(map(str, range(mgt.num_attention_heads))),
            groups=record.groups,
            num_blocks=mgt.num_blocks,
            grid=(side // mgt.stride,) * 2,
            token_grid=(side, side),
            size=self.model.scheduler.native_size,
            layers=self.settings.layers,
            signal=self.settings.signal,
            chunk=record.chunk,
            dtype=record.dtype,
            truth=self.config.examples.truth,
        )

    def chunk(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray, list[dict]]:
        """-> (attention [n seeds M F A' R J N], truth bool [n H W], texts)"""
        some = [self.source[row] for row in rows]
        filled = some + some[-1:] * (self.manifest.chunk - len(some))  # one shape for all chunks
        numbers = [*rows, *[rows[-1]] * (len(filled) - len(rows))]
        source, target = (
            np.asarray(self.pipe.encode_image(np.stack([getattr(one, name) for one in filled])))
            for name in ("source", "target")
        )
        text = [self.pipe.encode(one.instruction) for one in filled]
        groups = [group_weights(self.model.text, one.instruction, one.query, self.manifest.groups) for one in filled]
        strength = np.full(len(filled), self.settings.reference_strength, np.float32)
        constant = (source, stack(text), np.stack(groups), strength)
        found = []
        for seed in self.manifest.seeds:
            seen = [*self._forced(target, numbers, seed), *self._decoded(source, text, numbers, seed)]
            found.append(np.stack([self.measure(Pass(*one, *constant)) for one in seen], axis=1))
        truth = covered_tokens(np.stack([one.truth for one in some]), self.manifest.token_grid)
        return np.stack(found, axis=1)[: len(some)], truth, [one.texts() for one in some]

    def _forced(self, target, numbers, seed):
        """Yields (ids of the target with some hidden, time) of each mask rate."""
        convention = self.model.scheduler.timestep_convention
        for index, rate in enumerate(self.config.record.rates):
            hidden = np.stack([hidden_cells(target[0].shape, rate, (seed, number, index)) for number in numbers])
            tokens = np.where(hidden, np.int32(self.pipe.mask_token_id), target)
            yield tokens, np.full(len(target), training_time(rate, convention), np.float32)

    def _decoded(self, source, text, numbers, seed):
        """Yields (ids that a step of a decode saw, time) of each step."""
        steps, settings = self.config.record.steps, self.settings
        if not steps:
            return
        seen = [np.full_like(source, self.pipe.mask_token_id)]
        passes = np.full(len(source), settings.steps)
        if max(steps) > 0:
            chosen = dict(self.config.record.settings) | {"record": True}
            edit = jax.device_get(self.pipe.edit_tokens(source, text, keys=decode_keys(seed, numbers), **chosen))
            seen, passes = [*seen, *edit.step_tokens], edit.passes
        schedule = settings.schedule(self.model.scheduler.masking_schedule)
        for step in steps:
            taken = np.minimum(step, passes - 1)  # a decode that ended earlier: its last pass
            tokens = np.stack([seen[at][index] for index, at in enumerate(taken)])
            if schedule.remasked is not None and schedule.remasked[step]:
                again = half_of_grid(int(schedule.remasked[step]), source.shape[1:]).reshape(source.shape[1:])
                if settings.hold == "from_step":  # what it settled is not hidden again
                    again = again & ~(edit.keep & (seen[settings.hold_step] == self.pipe.mask_token_id))
                tokens = np.where(again, self.pipe.mask_token_id, tokens)
            released = self.model.scheduler.timestep_convention == "released"
            time = schedule.time[taken] if released else np.mean(tokens == self.pipe.mask_token_id, axis=(1, 2))
            yield tokens, time.astype(np.float32)

    def measure(self, inputs: Pass) -> np.ndarray:
        """Signals of every block -> float32 [B F A' R J N]"""
        micro = micro_conditions(*(self.model.scheduler.native_size,) * 2)
        m, parts = self.manifest, len(self._mesh.devices)
        one = 4 * int(np.prod(m.shape[3:]))
        size = min(-(-len(inputs.tokens) // parts), max(1, ROOM // one)) * parts
        split, found = NamedSharding(self._mesh, P("data")), []
        for start in range(0, len(inputs.tokens), size):
            at = np.minimum(np.arange(start, start + size), len(inputs.tokens) - 1)
            some = jax.tree.map(lambda x: jax.device_put(np.asarray(x)[at], split), inputs)  # noqa: B023
            each_head = self.config.record.heads == "each"
            found.append(np.asarray(measured(self._variables, some, micro, self.model.mgt, m.signals, each_head)))
        return np.concatenate(found)[: len(inputs.tokens)]


@functools.partial(jax.jit, static_argnames=("mgt", "signals", "each_head"))
def measured(
    variables: dict, inputs: Pass, micro: tuple, mgt: MGT, signals: tuple[str, ...], each_head: bool
) -> jax.Array:
    """Signals of every block in one forward pass without guidance. -> float32 [B F A' R J N]"""
    batch = len(inputs.tokens)
    micro = jnp.broadcast_to(jnp.asarray(micro, jnp.float32), (batch, 5))
    text = inputs.text
    condition = mgt.apply(
        variables, text.states, text.pooled, micro, inputs.reference, inputs.strength, method="condition"
    )
    layers = tuple(range(mgt.config.num_blocks))
    _, found = mgt.apply(
        variables, inputs.tokens, inputs.time, condition, inputs.text_weights, layers, Probe(signals, each_head)
    )
    return jnp.moveaxis(found, 1, -2)


def group_weights(encoder: TextEncoder, instruction: str, query: str | None, groups: Sequence[str]) -> np.ndarray:
    """Weights of the text tokens in each group, of sum 1. -> float32 [R T]

    all: every position (Q8); words: those of the instruction; query: those of its phrase, or the words where there is none;
    special: begin, end and padding.
    """
    tokenizer = list(encoder.towers.values())[-1].tokenizer
    ids = tokenizer([instruction])[0]
    special = np.isin(ids, [one for name, one in tokenizer.special_ids().items() if name != "vocab_size"])
    chosen = {"all": np.ones(len(ids)), "words": ~special, "special": special}
    if "query" in groups:
        chosen["query"] = chosen["words"] if query is None else tokenizer.span(instruction, query)
    return np.stack([chosen[name] / max(np.sum(chosen[name]), 1e-9) for name in groups]).astype(np.float32)


def hidden_cells(grid: tuple[int, int], rate: float, draw: tuple[int, ...]) -> np.ndarray:
    """max(1, round(L * rate)) cells at random, a function of `draw`. -> bool [H W]"""
    length = grid[0] * grid[1]
    order = np.random.default_rng(draw).permutation(length)
    return (order < max(1, round(length * rate))).reshape(grid)


def decode_keys(seed: int, numbers: Sequence[int]) -> jax.Array:
    """The keys of the decodes of some examples: example i draws from (seed, i), in any batch. -> keys [B]"""
    key = jax.random.key(seed)
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.asarray(numbers))
