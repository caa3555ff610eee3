"""Programs of a run and of edits, compiled for TPUs that are not there, and what they would cost there.

libtpu compiles on any machine. It may abort the process, and the platform must be chosen before jax is imported: run this in a
process of its own (`compile_job`). What follows of its static numbers are estimates.

Axes    as in `editmgt_jax.config`
"""

import dataclasses
import functools
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from editmgt_jax.errors import UserError
from editmgt_jax.models.mgt import init_mgt
from editmgt_jax.models.text import TextStates
from editmgt_jax.models.vq import pixels_to_ids
from editmgt_jax.sampling.edit import decode_edit
from editmgt_jax.sampling.request import make_request
from editmgt_jax.sampling.settings import Settings
from editmgt_jax.training import declare, hlo_cost
from editmgt_jax.training.config import MGTRun
from editmgt_jax.training.optimizer import make_optimizer
from editmgt_jax.training.programs import jitted_steps
from editmgt_jax.training.sharding import BATCH, Layout, make_mesh, path_name, with_shardings
from editmgt_jax.training.state import new_state
from editmgt_jax.training.tasks.table import make_task
from editmgt_jax.training.topologies import Chip, devices_of
from editmgt_jax.weights.components import text_components
from editmgt_jax.weights.random_model import make_random

STAND_IN = "editmgt-1024"  # what a model directory that is not there is taken to hold
# What the operations of frozen encoders are called: by their modules, or by the argument that holds their parameters.
FROZEN = r"\b(" + "|".join(entry.module.__name__ for entry in text_components()) + r")\b|\bfrozen\[\W*text\b"


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to compile.

    Attributes:
      function: jitted; arguments: shapes with shardings; devices: how many it runs on.
      flops: of the transformer, over all devices; frozen_flops: of the frozen encoders; samples: of a batch.
      bound: {collective: bytes} that a device must receive or reduce.
      branch_share: how often the dearest branch of a conditional runs.
    """

    name: str
    function: Callable
    arguments: tuple
    devices: int
    flops: int
    frozen_flops: int
    samples: int
    bound: dict[str, int]
    branch_share: float = 1.0


class Ahead:
    """A run on devices that are not there.

    Args:
      config: its model directory may be absent; then one of the released sizes stands in for it.
      topology: such as 'v5e:4x4'; slices: how many of them.
      states: whether records hold the states of texts, so that steps need no text encoder.
    """

    def __init__(self, config: MGTRun, topology: str, slices: int = 1, states: bool = False):
        if not isinstance(config, MGTRun):
            raise UserError(f"programs of task mgt can be compiled ahead; got task {config.task!r}")
        self.states = states
        self.folder = tempfile.TemporaryDirectory()
        if not config.model.encoders:
            raise UserError("compiling ahead needs frozen encoders (model.encoders); the config trains its own")
        if not Path(config.model.encoders).is_dir():
            stand_in = Path(self.folder.name) / "model"
            make_random(STAND_IN, stand_in, "full", config.model.encoder_dtype, zeros=True)
            config = declare.replaced(config, {"model.encoders": str(stand_in)})
        self.config, self.chip = config, Chip.of(topology)
        self.devices = devices_of(topology, slices)
        self.task = make_task(config)

    @functools.cached_property
    def layout(self) -> Layout:
        """Of the programs on all devices. Errors: UserError for a mesh or batch that does not suit them."""
        layout = Layout(make_mesh(dataclasses.asdict(self.config.mesh), self.devices), self.task.rules)
        layout.check_batch(self.config.batch_size, self.config.accumulate)
        return layout

    def program(self, name: str) -> Program:
        """A program of `compile_job.NAMES`."""
        return getattr(self, f"_{name}")()

    def sizes(self) -> tuple:
        """(bytes of the state on a device, chip, samples of a step, devices that a batch is spread over, remat, fsdp)"""
        state, shardings, _ = self._state
        leaves = zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)
        total = sum(math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize for x, sharding in leaves)
        share = math.prod(self.layout.mesh.shape[axis] for axis in BATCH)
        mesh = self.layout.mesh.shape
        return total, self.chip, self.config.batch_size, share, self.config.model.remat, mesh["fsdp"]

    def attention(self, name: str) -> tuple:
        """The shape of a device's attention in a program, see `kernel_cost.Shape`."""
        mgt, side = self.task.mgt_config, self._side // self.task.mgt_config.stride
        text = self._text_states(1)[0].shape[1]
        if name == "decode":
            return (
                2,
                mgt.num_attention_heads,
                mgt.attention_head_dim,
                text,
                side**2,
                side**2,
                True,
                self.config.model.dtype,
            )
        mesh = self.layout.mesh.shape
        batch = self.config.batch_size // self.config.accumulate // (mesh["data"] * mesh["fsdp"])
        heads, reference = mgt.num_attention_heads // mesh["tensor"], side**2 if self.config.model.reference else 0
        return batch, heads, mgt.attention_head_dim, text, side**2, reference, False, self.config.model.dtype

    def embedding(self) -> tuple:
        """The gradient of the token embedding on a device, in a training step, see `kernel_cost.Embedding`."""
        mesh, mgt, dtype = self.layout.mesh.shape, self.task.mgt_config, self.config.model.dtype
        batch = self.config.batch_size // self.config.accumulate // (mesh["data"] * mesh["fsdp"])
        return (mgt.stride**2, batch, (self._side // mgt.stride) ** 2, mgt.width), mgt.vocab_size, dtype

    @property
    def _side(self) -> int:
        """Tokens a side of a picture of the config's size."""
        return self.config.data.size // self.task.vq_config.factor

    # ---- shapes

    @functools.cached_property
    def _state(self):
        """-> (shapes of the train state, their shardings)"""
        optimizer = make_optimizer(self.config.optimizer)
        average = self.config.optimizer.ema_decay > 0

        def make():
            params = self.task.init(jax.random.key(self.config.seed))
            return new_state(params, optimizer, average, self.task.extra(params))

        abstract = jax.eval_shape(make)
        shardings = self.layout.of(abstract)
        return with_shardings(abstract, shardings), shardings, optimizer

    @functools.cached_property
    def _text_params(self):
        towers = self.task.text.encoder.params
        return _as_loaded(towers, jnp.dtype(self.config.model.encoder_dtype))

    def _frozen(self):
        """Shapes of what steps need and do not train."""

        def spread(path, x):
            return jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=self.layout.of_leaf(f"text/{path_name(path)}", x.shape)
            )

        if self.states:
            empty = self._text_states(1)
            whole = functools.partial(jax.ShapeDtypeStruct, sharding=self.layout.replicated)
            frozen = {"text": {"empty": TextStates(*(whole(x.shape, x.dtype) for x in empty))}}
        else:
            frozen = {"text": {"params": jax.tree_util.tree_map_with_path(spread, self._text_params)}}
        if self.config.lora.rank:
            params = jax.eval_shape(lambda: init_mgt(self.task.mgt, jax.random.key(0)))
            frozen["mgt"] = jax.tree_util.tree_map_with_path(spread, params)
        return frozen

    def _text_ids(self, batch):
        """{field: shape of ids [B T]}"""
        return {
            name: jax.ShapeDtypeStruct((batch, ids.shape[1]), jnp.int32)
            for name, ids in self.task.text.encoder.empty_ids.items()
        }

    def _text_states(self, batch):
        return jax.eval_shape(self.task.text.encoder.apply, self._text_params, self._text_ids(batch))

    def _batch(self):
        size, side = self.config.batch_size, self._side
        shapes = {f"{name}_ids": ((side, side), np.uint16) for name in ("source", "target")}
        shapes["micro"] = (5,), np.float32
        if self.states:
            states, pooled = self._text_states(size)
            shapes |= {"text_states": (states.shape[1:], jnp.bfloat16), "pooled": (pooled.shape[1:], np.float32)}
        else:
            shapes |= {name: (ids.shape[1:], np.int32) for name, ids in self._text_ids(size).items()}
        return {
            name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=self.layout.of_batch(name, 1 + len(shape)))
            for name, (shape, dtype) in shapes.items()
        }

    def _encoder_flops(self, batch):
        """Of the text encoders: two for each weight of a matrix and token."""
        if self.states:
            return 0
        total = 0
        for name, ids in self._text_ids(batch).items():
            leaves = jax.tree_util.tree_leaves_with_path(self._text_params[name])
            weights = sum(math.prod(x.shape) for path, x in leaves if path_name(path).endswith("kernel"))
            total += 2 * weights * ids.shape[0] * ids.shape[1]
        return total

    def _bound(self, gathered: int, reduced: bool):
        """Bytes that parameters spread over `fsdp` need: each gathered so often in the type of the products, and its gradient
        reduced once in its own."""
        state, _, _ = self._state
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
        spread = self.layout.mesh.shape["fsdp"] > 1
        copies = self.layout.mesh.shape["data"] > 1 or spread
        product = jnp.dtype(self.config.model.dtype).itemsize
        return {
            "all-gather": gathered * count * product if spread else 0,
            "all-reduce": 4 * count if reduced and copies else 0,
        }

    # ---- programs

    def _train(self) -> Program:
        state, shardings, optimizer = self._state
        batch = self._batch()
        step, _ = jitted_steps(self.task, optimizer, self.config, self.layout, shardings)
        return Program(
            name="train",
            function=step,
            arguments=(state, self._frozen(), batch),
            devices=len(self.devices),
            flops=self.task.flops(batch),
            frozen_flops=self._encoder_flops(self.config.batch_size),
            samples=self.config.batch_size,
            bound=self._bound(2 * self.config.accumulate, True),
        )

    def _evaluate(self) -> Program:
        state, shardings, optimizer = self._state
        batch = self._batch()
        _, evaluate = jitted_steps(self.task, optimizer, self.config, self.layout, shardings)
        key = jax.eval_shape(lambda: jax.random.key(0))
        return Program(
            name="evaluate",
            function=evaluate,
            arguments=(state.params, self._frozen(), batch, key),
            devices=len(self.devices),
            flops=self.task.flops(batch) // (2 if self.config.lora.rank else 3),
            frozen_flops=self._encoder_flops(self.config.batch_size),
            samples=self.config.batch_size,
            bound=self._bound(self.config.accumulate, False),
        )

    def _tokenize(self) -> Program:
        """Encoding of pictures: on each device its own share, as the job runs it."""
        size, vq = self.config.data.size, self.task.vq
        share = 2 * max(1, self.config.batch_size // len(self.devices))
        on = jax.sharding.SingleDeviceSharding(self.devices[0])
        params = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=on),
            jax.eval_shape(lambda: vq.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]),
        )
        pixels = jax.ShapeDtypeStruct((share, size, size, 3), jnp.uint8, sharding=on)
        function = jax.jit(functools.partial(pixels_to_ids, vq=vq))
        return Program("tokenize", function, (params, pixels), 1, 0, 0, share // 2, {})

    def _decode(self, batch: int = 1) -> Program:
        """An edit on one chip with the model's own settings, weights in the type of the products."""
        mgt = self.task.mgt.clone(remat="none", head_precision="highest", lora=None)
        on = jax.sharding.SingleDeviceSharding(self.devices[0])
        dtype = jnp.dtype(self.config.model.dtype)
        params = _as_loaded(jax.eval_shape(lambda: init_mgt(mgt, jax.random.key(0))), dtype)
        side = self._side
        scheduler = self.task.scheduler
        settings = Settings.resolve(scheduler, mgt.config.num_blocks)
        static = None

        def request(reference, text, negative):
            nonlocal static
            made, static = make_request(
                settings, scheduler, self.task.vq_config.factor, text, negative, keys=0, reference=reference
            )
            return made

        states = self._text_states(batch)
        text = TextStates(states[0].update(dtype=dtype), states[1])
        ids = jax.ShapeDtypeStruct((batch, side, side), jnp.int32)
        made = jax.eval_shape(request, ids, text, text)
        place = functools.partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on))
        function = jax.jit(functools.partial(decode_edit, mgt=mgt, static=static))
        passes = settings.steps * (3 if settings.image_guided else 2 if settings.guided else 1)
        flops = passes * self._forward_flops(batch, side)
        share = len(settings.layers) / mgt.config.num_blocks
        return Program("decode", function, (place({"params": params}), place(made)), 1, flops, 0, batch, {}, share)

    def _forward_flops(self, batch, side):
        shapes = {"target_ids": jax.ShapeDtypeStruct((batch, side, side), jnp.uint16)} | self._text_ids(batch)
        return self.task.flops(shapes) // (2 if self.config.lora.rank else 3)


def _as_loaded(shapes, dtype):
    """Shapes of parameters as they are loaded: matrices in `dtype`, vectors in float32."""

    def one(path, x):
        is_vector = path_name(path).rsplit("/", 1)[-1] in ("scale", "bias")
        return jax.ShapeDtypeStruct(x.shape, jnp.float32 if is_vector else dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)


def compile_program(ahead: Ahead, name: str, save_text: Path | None = None) -> dict:
    """Compiles a program and reads its cost. -> what `Report` lists, in values for JSON

    Args:
      save_text: a file for the text of the compiled program.
    Errors: UserError, with what to do, if it does not fit the chip's memory.
    """
    program = ahead.program(name)
    started = time.perf_counter()
    with ahead.layout.active() if program.devices > 1 else _nothing():
        lowered = program.function.lower(*program.arguments)
        traced = time.perf_counter()
        compiled = lowered.compile()
    done = time.perf_counter()
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    if save_text is not None:
        save_text.write_text(text)
    cost = hlo_cost.read(text, program.branch_share)
    return {
        "program": name,
        "devices": program.devices,
        "samples": program.samples,
        "seconds": {"trace": traced - started, "compile": done - traced},
        "memory": {
            "arguments": memory.argument_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "peak": memory.peak_memory_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        },
        "flops": program.flops // program.devices,
        "frozen_flops": program.frozen_flops // program.devices,
        "cycles": cost.cycles,
        "frozen_cycles": cost.of(FROZEN),
        "kernels": dict(cost.kernels),
        "kernel_bytes": dict(cost.kernel_bytes),
        "collectives": {
            kind: {"calls": calls, "bytes": cost.collective_bytes[kind]} for kind, calls in cost.collectives.items()
        },
        "bound": program.bound,
        "top": [[*key, cycles] for key, cycles in cost.top(40)],
        "moved": [[*key, size] for key, size in cost.moved.most_common(20)],
        "unknown_loops": cost.unknown,
        "attention": ahead.attention(name) if cost.kernels else None,
        "embedding": ahead.embedding() if name == "train" else None,
    }


def _nothing():
    import contextlib

    return contextlib.nullcontext()
