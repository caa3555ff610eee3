"""Adaptive layer norm and gated residuals as kernels, interpreted: equal to their plain forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distances import largest_errors
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from editmgt_jax.models.modulation import gated_sum, modulated_norm
from editmgt_jax.training.sharding import ACTIVATIONS, make_mesh

pytestmark = pytest.mark.usefixtures("exact_types")

LENGTHS = [(128,), (256, 128), (256, 512), (128, 0)]


def _inputs(lengths, dtype=jnp.float32, width=128, batch=2):
    keys = jax.random.split(jax.random.key(0), 6)
    x, y, of_x, of_y = (2 * jax.random.normal(key, (batch, sum(lengths), width), dtype) + 1 for key in keys[:4])
    shift, scale = (jax.random.normal(key, (batch, len(lengths), width), dtype) for key in keys[4:])
    return x, y, shift, scale, of_x, of_y


def _norm(x, _y, shift, scale, of_x, of_y, lengths, backend):
    out, backward = jax.vjp(lambda *more: modulated_norm(*more, lengths, backend), x, shift, scale)
    return *out, *backward((of_x, of_y))


def _gate(x, y, gate, _scale, of_x, _of_y, lengths, backend):
    out, backward = jax.vjp(lambda *more: gated_sum(*more, lengths, backend), x, y, gate)
    return out, *backward(of_x)


@pytest.mark.parametrize("function", [_norm, _gate])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_kernels_equal_the_plain_forms(function, lengths):
    """Gradients of vectors are sums over positions: relative to their largest."""
    inputs = _inputs(lengths)
    for ours, theirs in zip(function(*inputs, lengths, "pallas_tpu"), function(*inputs, lengths, "xla"), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=4e-6 * max(1.0, float(jnp.abs(theirs).max())), rtol=0)


@pytest.mark.parametrize("function", [_norm, _gate])
def test_half_precision_errs_as_little(function):
    lengths = (256, 128)
    inputs = _inputs(lengths, jnp.bfloat16)
    exact = function(*(x.astype(jnp.float32) for x in inputs), lengths, "xla")

    def error(backend):
        found = function(*inputs, lengths, backend)
        return largest_errors(found, exact)

    assert np.all(error("pallas_tpu") <= 1.1 * error("xla"))


@pytest.mark.parametrize("sizes", [{"fsdp": 4}, {"data": 2, "tensor": 2}, {"context": 4}], ids=str)
@pytest.mark.parametrize("function", [_norm, _gate])
def test_split_over_a_mesh(function, sizes):
    """Where positions are spread, the plain forms stand in."""
    lengths = (256, 128)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | sizes, jax.devices()[:4])
    inputs = _inputs(lengths, batch=4)
    with jax.set_mesh(mesh), nn.logical_axis_rules(ACTIVATIONS):
        placed = [jax.device_put(x, NamedSharding(mesh, P(("data", "fsdp")))) for x in inputs]
        found = jax.jit(lambda *x: function(*x, lengths, "pallas_tpu"))(*placed)
    for ours, theirs in zip(found, function(*inputs, lengths, "xla"), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=4e-6 * max(1.0, float(jnp.abs(theirs).max())), rtol=0)


def test_auto_takes_the_kernels_when_lowered_for_a_tpu():
    lengths = (256, 128)

    def kernels(platform, dtype, lengths=lengths):
        x, y, shift, scale, *_ = _inputs(lengths, dtype)

        def total(x, shift, scale):
            out, x = modulated_norm(x, shift, scale, lengths, "auto")
            return (out + x).astype(jnp.float32).sum()

        program = jax.jit(jax.grad(total, (0, 1, 2))).trace(x, shift, scale)
        return program.lower(lowering_platforms=(platform,)).as_text().count("tpu_custom_call")

    assert kernels("tpu", jnp.bfloat16) == 1  # of the forward pass nothing is asked for here
    assert kernels("cpu", jnp.bfloat16) == kernels("tpu", jnp.float32) == kernels("tpu", jnp.bfloat16, (100, 28)) == 0
