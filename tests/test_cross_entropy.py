"""Cross-entropy and the likeliest code: the kernel and the gradient against textbook forms."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from editmgt_jax.models.layers import of_samples
from editmgt_jax.training.cross_entropy import cross_entropy, fused_statistics
from editmgt_jax.training.sharding import ACTIVATIONS, make_mesh

pytestmark = pytest.mark.usefixtures("exact_types")
SHAPE = (2, 3, 256, 256)  # E B N C


def _inputs(dtype):
    keys = jax.random.split(jax.random.key(0))
    logits = (6 * jax.random.normal(keys[0], SHAPE)).astype(dtype)
    return logits, jax.random.randint(keys[1], SHAPE[:3], 0, SHAPE[3])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_loss_and_gradient_are_those_of_the_textbook(dtype):
    logits, targets = _inputs(dtype)
    weights = jnp.linspace(0, 1, targets.size).reshape(targets.shape)
    loss, likeliest = cross_entropy(logits, targets)
    exact = np.asarray(logits, np.float64)
    shares = np.exp(exact - exact.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    hot = np.eye(SHAPE[3])[np.asarray(targets)]
    np.testing.assert_allclose(loss, -np.log((shares * hot).sum(-1)), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(likeliest, exact.argmax(-1))
    gradient = jax.grad(lambda x: (cross_entropy(x, targets)[0] * weights).sum())(logits)
    assert gradient.dtype == dtype
    expected = (shares - hot) * np.asarray(weights)[..., None]
    np.testing.assert_allclose(np.asarray(gradient, np.float64), expected, atol=1e-6 if dtype == jnp.float32 else 5e-3)


def test_the_kernel_reads_what_the_plain_form_reads():
    logits, targets = _inputs(jnp.bfloat16)
    logits = logits.at[0, 0, 5, 7].set(40.0).at[0, 0, 5, 90].set(40.0)  # of two that are alike the first is taken
    total, picked, likeliest = fused_statistics(logits, targets, interpret=True)
    exact = np.asarray(logits, np.float32)
    np.testing.assert_allclose(total, jax.nn.logsumexp(exact, axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(picked, np.take_along_axis(exact, np.asarray(targets)[..., None], -1)[..., 0])
    np.testing.assert_array_equal(likeliest, exact.argmax(-1))
    assert likeliest[0, 0, 5] == 7


def test_each_device_reads_its_samples():
    logits, targets = (x[:, [0, 1, 2, 1]] for x in _inputs(jnp.bfloat16))
    kernel = partial(fused_statistics, interpret=True)
    expected = kernel(logits, targets)
    mesh = make_mesh({"data": 1, "fsdp": 2, "tensor": 2, "context": 1}, jax.devices()[:4])
    with jax.set_mesh(mesh), nn.logical_axis_rules(ACTIVATIONS):
        found = jax.jit(partial(of_samples, kernel, axis=1, outputs=3))(logits, targets)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert found[0].sharding.spec[1] is not None
