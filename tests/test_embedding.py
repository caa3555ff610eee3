"""The kernel that makes the gradient of an embedding, interpreted."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from editmgt_jax.models import embedding_tpu
from editmgt_jax.models.embedding_tpu import fits, grid, table_gradient
from editmgt_jax.models.layers import TokenEmbedding
from editmgt_jax.training.sharding import ACTIVATIONS, make_mesh

ROWS, SHAPE = 21, (4, 4, 128, 256)  # E B N D


@pytest.fixture(scope="module")
def given():
    dice = np.random.default_rng(0)
    ids = np.where(
        dice.random(SHAPE[:3]) < 0.5, ROWS - 1, dice.integers(0, ROWS - 2, SHAPE[:3])
    )  # masks, and a row that is not used
    gradient = jnp.asarray(dice.integers(-8, 9, SHAPE), jnp.bfloat16)  # whole numbers: their sums are exact
    expected = np.zeros((ROWS, SHAPE[3]), np.float32)
    np.add.at(expected, ids.reshape(-1), np.asarray(gradient, np.float32).reshape(-1, SHAPE[3]))
    return jnp.asarray(ids, jnp.int32), gradient, expected


@pytest.mark.parametrize("largest, parts", [(1 << 20, 1), ((ROWS + 256) * 128 * 4, 2)])
def test_the_sums_of_a_lookup(given, largest, parts, monkeypatch):
    monkeypatch.setattr(embedding_tpu, "_LARGEST", largest)
    ids, gradient, expected = given
    assert grid(SHAPE, ROWS) == (parts, 4, 4, 1)
    np.testing.assert_array_equal(table_gradient(ids, gradient, ROWS), expected)


@pytest.mark.parametrize(
    "sizes, samples", [({"fsdp": 2, "data": 2}, 4), ({"fsdp": 4, "tensor": 2}, 4), ({"fsdp": 4}, 2)], ids=str
)
def test_on_a_mesh_devices_add_up(given, sizes, samples):
    ids, gradient, _ = (x[:, :samples] if x.ndim > 2 else x for x in given)
    expected = table_gradient(ids, gradient, ROWS)
    mesh = make_mesh(
        {"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | sizes, jax.devices()[: np.prod(list(sizes.values()))]
    )
    with jax.set_mesh(mesh), nn.logical_axis_rules(ACTIVATIONS):
        spec = P(None, ("data", "fsdp")) if samples == 4 else P()
        placed = (jax.device_put(x, NamedSharding(mesh, spec)) for x in (ids, gradient))
        np.testing.assert_array_equal(jax.jit(partial(table_gradient, rows=ROWS))(*placed), expected)


def test_what_does_not_fit_the_fast_memory_is_left_to_products():
    gradient = jax.ShapeDtypeStruct((4, 1, 128, 1024), jnp.bfloat16)
    assert fits(gradient, 27_000) and not fits(gradient, 30_000)
    assert not fits(jax.ShapeDtypeStruct(gradient.shape, jnp.float16), 100)


def test_ids_beyond_the_table_do_not_leave_it(given):
    ids, gradient, expected = given
    beyond = jnp.where(ids == ROWS - 1, 10**6, jnp.where(ids == 0, -5, ids))
    np.testing.assert_array_equal(table_gradient(beyond, gradient, ROWS), expected)


@pytest.mark.parametrize(
    "shape, taken", [(SHAPE, True), ((4, 4, 100, 256), False), ((4, 4, 128, 96), False), ((4, 128, 256), False)]
)
def test_a_program_for_a_tpu_has_the_kernel_where_it_fits(shape, taken):
    module = TokenEmbedding(ROWS, shape[-1], jnp.bfloat16)

    def gradient(table, ids):
        return jax.grad(lambda table: module.apply({"params": {"embedding": table}}, ids).astype(jnp.float32).sum())(
            table
        )

    assert fits(jax.ShapeDtypeStruct(shape, jnp.bfloat16), ROWS) == taken
    traced = jax.jit(gradient).trace(jnp.ones((ROWS, shape[-1])), jnp.zeros(shape[:-1], jnp.int32))
    assert (embedding_tpu.KERNEL in traced.lower(lowering_platforms=("tpu",)).as_text()) == taken
