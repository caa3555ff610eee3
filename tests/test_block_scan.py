"""Blocks whose backward pass computes again what it does not keep: gradients, with kernels that write where results are kept."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from editmgt_jax.config import MGTConfig
from editmgt_jax.models import rooms
from editmgt_jax.models.block_scan import scan_blocks
from editmgt_jax.models.mgt import MGT, init_mgt
from editmgt_jax.training.sharding import ACTIVATIONS, make_mesh

CONFIG = MGTConfig(
    num_attention_heads=2, attention_head_dim=16, axes_dims_rope=(4, 6, 6), num_layers=2, num_single_layers=3,
    joint_attention_dim=10, pooled_projection_dim=7, codebook_size=16, vocab_size=24,
)  # fmt: skip
BATCH, TEXT, GRID = 4, 5, (4, 8)


def _gradients(params, remat, attention, dtype, place=lambda x: x, batch=BATCH, text=TEXT, grid=GRID):
    keys = jax.random.split(jax.random.key(2), 5)
    states = place(jax.random.normal(keys[0], (batch, text, 10)))
    pooled, micro = place(jax.random.normal(keys[1], (batch, 7))), place(jnp.ones((batch, 5)))
    tokens, reference = (place(jax.random.randint(key, (batch, *grid), 0, 16)) for key in keys[2:4])
    wanted = place(jax.random.normal(keys[4], (batch, *grid, 16)))

    def loss(params, states):
        def forward(module):
            return module(tokens, 2.0, module.condition(states, pooled, micro, reference, 1.3))[0]

        mgt = MGT(CONFIG, dtype, remat=remat, attention=attention)
        return jnp.sum(wanted * mgt.apply({"params": params}, method=forward))

    return jax.jit(jax.grad(loss, (0, 1)))(params, states)


@pytest.fixture(scope="module")
def params():
    return jax.jit(partial(init_mgt, MGT(CONFIG)))(jax.random.key(0))


def _assert_close(found, expected, share):
    for (path, x), y in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        scale = np.abs(y).max()
        assert scale > 0, path
        np.testing.assert_allclose(x, y, rtol=0, atol=share * scale, err_msg=str(path))


@pytest.fixture
def on_tpu(monkeypatch):
    """Gradients are those of arrays that kernels, here interpreted, wrote where they are kept."""
    monkeypatch.setattr(rooms, "_where_used", lambda here, _, *arrays: here(*arrays))


def test_gradients_are_those_of_blocks_that_keep_all(params):
    found, expected = (_gradients(params, remat, "auto", jnp.bfloat16) for remat in ("products", "none"))
    _assert_close(found, expected, 0.05)


@pytest.mark.parametrize("text, grid", [(TEXT, GRID), (128, (16, 16))], ids=["whole", "parts"])
def test_gradients_of_what_kernels_wrote(params, on_tpu, text, grid):
    found = _gradients(params, "products", "pallas_tpu", jnp.float32, batch=1, text=text, grid=grid)
    _assert_close(found, _gradients(params, "none", "xla", jnp.float32, batch=1, text=text, grid=grid), 2e-5)


@pytest.mark.parametrize(
    "sizes, batch",
    [
        ({"fsdp": 2, "tensor": 2}, 4),
        ({"fsdp": 2, "context": 2}, 4),
        pytest.param({"fsdp": 2, "tensor": 2}, 3, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_gradients_on_a_mesh(params, on_tpu, sizes, batch):
    expected = _gradients(params, "none", "xla", jnp.float32, batch=batch)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | sizes, jax.devices()[:4])
    spec = P(("data", "fsdp")) if batch % 2 == 0 else P()
    with jax.set_mesh(mesh), nn.logical_axis_rules(ACTIVATIONS):
        place = partial(jax.device_put, device=NamedSharding(mesh, spec))
        found = _gradients(params, "products", "pallas_tpu", jnp.float32, place, batch)
    _assert_close(found, expected, 2e-5)


@pytest.mark.parametrize("text, grid, parts", [(TEXT, GRID, 1 + 1), (128, (16, 16), 2 + 1)], ids=["whole", "parts"])
def test_attention_has_its_arrays_where_they_are_kept(params, text, grid, parts):
    """Queries, keys, values and results of double-stream blocks, in parts or whole, and of single-stream blocks."""
    gradients = partial(_gradients, remat="products", attention="auto", dtype=jnp.bfloat16, text=text, grid=grid)
    program = jax.jit(gradients).trace(params)
    assert program.lower(lowering_platforms=("tpu",)).as_text().count("AllocateBuffer") == 4 * parts


def _barriers(program):
    """How many barriers keep a room's place; those of the gradients of biases [8 D] are left out."""
    return len([line for line in program.splitlines() if "optimization_barrier" in line and ": tensor<8x" not in line])


def test_the_input_of_an_activation_is_read_where_it_is_kept(params):
    """Else it would be written twice on TPUs: one barrier for each feed-forward part, beside four for each part of attention."""
    gradients = partial(_gradients, remat="products", attention="auto", dtype=jnp.bfloat16)
    program = jax.jit(gradients).trace(params).lower(lowering_platforms=("tpu",)).as_text()
    assert _barriers(program) == (3 + 2) + (3 + 1)


def test_rooms_are_not_offered_where_the_compiler_copies_them(params, monkeypatch):
    monkeypatch.setattr(rooms, "in_place", lambda: False)
    gradients = partial(_gradients, remat="products", attention="auto", dtype=jnp.bfloat16)
    program = jax.jit(gradients).trace(params).lower(lowering_platforms=("tpu",)).as_text()
    assert "AllocateBuffer" not in program and not _barriers(program)


@pytest.mark.parametrize("unroll", [1, 2, 4, 6])
def test_any_number_of_blocks_in_a_turn(unroll, on_tpu):
    """Against a plain loop, with a carry that is a tree, and a shared input that all blocks see."""
    weights = jax.random.normal(jax.random.key(1), (6, 3, 3)) / 2
    carry = jax.random.normal(jax.random.key(2), (3,)), jnp.ones((3,))

    def block(weight, carry, shared, constants, keeper):
        x, y = carry
        return jnp.tanh(keeper.keep_product(weight @ x, "product") + shared * y), y + constants[0] * x

    def scanned(weights, carry, shared):
        policy = jax.checkpoint_policies.save_only_these_names("product")
        return sum(map(jnp.sum, scan_blocks(block, weights, carry, shared, [jnp.float32(0.5)], policy, unroll)))

    def plain(weights, carry, shared):
        for weight in weights:
            carry = block(weight, carry, shared, [jnp.float32(0.5)], rooms.Keeper())
        return sum(map(jnp.sum, carry))

    found, expected = (jax.value_and_grad(f, (0, 1, 2))(weights, carry, jnp.float32(0.3)) for f in (scanned, plain))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)
