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
from editmgt_jax.models.block_scan import scan_blocks
from editmgt_jax.models.mgt import MGT, init_mgt
from editmgt_jax.training.sharding import ACTIVATIONS, make_mesh

CONFIG = MGTConfig(
    num_attention_heads=2, attention_head_dim=16, axes_dims_rope=(4, 6, 6), num_layers=2, num_single_layers=3,
    joint_attention_dim=10, pooled_projection_dim=7, codebook_size=16, vocab_size=24,
)  # fmt: skip
BATCH, GRID = 4, (4, 8)


def _gradients(params, remat, attention, dtype, batch=lambda x: x):
    keys = jax.random.split(jax.random.key(2), 5)
    text = batch(jax.random.normal(keys[0], (BATCH, 5, 10)))
    pooled, micro = batch(jax.random.normal(keys[1], (BATCH, 7))), batch(jnp.ones((BATCH, 5)))
    tokens, reference = (batch(jax.random.randint(key, (BATCH, *GRID), 0, 16)) for key in keys[2:4])
    wanted = batch(jax.random.normal(keys[4], (BATCH, *GRID, 16)))

    def loss(params, text):
        def forward(module):
            return module(tokens, 2.0, module.condition(text, pooled, micro, reference, 1.3))[0]

        return jnp.sum(
            wanted * MGT(CONFIG, dtype, remat=remat, attention=attention).apply({"params": params}, method=forward)
        )

    return jax.jit(jax.grad(loss, (0, 1)))(params, text)


@pytest.fixture(scope="module")
def params():
    return init_mgt(MGT(CONFIG), jax.random.key(0))


def _assert_close(found, expected, share):
    for (path, x), y in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        scale = np.abs(y).max()
        assert scale > 0, path
        np.testing.assert_allclose(x, y, rtol=0, atol=share * scale, err_msg=str(path))


@pytest.mark.parametrize("attention, dtype, share", [("pallas_tpu", jnp.float32, 2e-5), ("auto", jnp.bfloat16, 0.05)])
def test_gradients_are_those_of_blocks_that_keep_all(params, attention, dtype, share):
    found, expected = (_gradients(params, remat, attention, dtype) for remat in ("products", "none"))
    _assert_close(found, expected, share)


@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 2}, {"fsdp": 2, "context": 2}], ids=str)
def test_gradients_on_a_mesh(params, sizes):
    expected = _gradients(params, "none", "xla", jnp.float32)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | sizes, jax.devices()[:4])
    with jax.set_mesh(mesh), nn.logical_axis_rules(ACTIVATIONS):
        placed = partial(jax.device_put, device=NamedSharding(mesh, P(("data", "fsdp"))))
        found = _gradients(params, "products", "pallas_tpu", jnp.float32, placed)
    _assert_close(found, expected, 2e-5)


def test_a_kernel_writes_its_results_where_they_are_kept(params):
    program = jax.jit(partial(_gradients, remat="products", attention="auto", dtype=jnp.bfloat16)).trace(params)
    text = program.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("AllocateBuffer") == 2  # a stack of each kind of block
    assert text.count("output_operand_alias") >= 2


@pytest.mark.parametrize("unroll", [1, 2, 4, 6])
def test_any_number_of_blocks_in_a_turn(unroll):
    """Against a plain loop, with a carry that is a tree, and a shared input that all blocks see."""
    weights = jax.random.normal(jax.random.key(1), (6, 3, 3)) / 2
    carry = jax.random.normal(jax.random.key(2), (3,)), jnp.ones((3,))

    def block(weight, carry, shared, constants, _room):
        x, y = carry
        return (jnp.tanh(weight @ x + shared * y), y + constants[0] * x), None

    def scanned(weights, carry, shared):
        policy = jax.checkpoint_policies.nothing_saveable
        return sum(map(jnp.sum, scan_blocks(block, weights, carry, shared, [jnp.float32(0.5)], policy, unroll)))

    def plain(weights, carry, shared):
        for weight in weights:
            carry, _ = block(weight, carry, shared, [jnp.float32(0.5)], None)
        return sum(map(jnp.sum, carry))

    found, expected = (jax.value_and_grad(f, (0, 1, 2))(weights, carry, jnp.float32(0.3)) for f in (scanned, plain))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)
