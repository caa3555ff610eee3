"""The kernels for TPUs, interpreted: equal to plain products, also split over a mesh, and lowered where a TPU is meant."""

from functools import partial
from pathlib import Path

import flax.linen as nn
import goldens_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distances import largest_errors
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from editmgt_jax.models import attention
from editmgt_jax.models.attention import pallas_tpu
from editmgt_jax.models.blocks import REMAT_POLICIES
from editmgt_jax.training.sharding import ACTIVATIONS, make_mesh

pytestmark = pytest.mark.usefixtures("exact_types")

BACKENDS = ("xla", "pallas_tpu")
# Odd and even, within one tile and over several, edges of groups on edges of tiles and between them.
LENGTHS = [(5, 4), (9,), (130, 67), (256, 128), (300, 213), (3, 260, 9)]


def _inputs(lengths, batch=2, heads=2, width=16, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, (batch, sum(lengths), heads, width), dtype) for key in keys]


def _with_gradients(lengths, bias, backend, **sizes):
    q, k, v, cotangent = _inputs(lengths, **sizes)
    out, backward = jax.vjp(lambda *x: attention.attend(*x, bias, lengths, backend), q, k, v)
    return out, *backward(cotangent.reshape(out.shape))


def _assert_equal(lengths, bias, **sizes):
    expected, found = (_with_gradients(lengths, bias, backend, **sizes) for backend in BACKENDS)
    np.testing.assert_allclose(found[0], expected[0], atol=2e-6, rtol=0)
    for name, ours, theirs in zip("qkv", found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0, err_msg=f"gradient of {name}")


@pytest.mark.parametrize("strength", [None, (0.0,), (0.1,), (1.0,), (3.0,), (0.0, 3.0)])
@pytest.mark.parametrize("lengths", [(5, 4), (256, 128), (300, 213)])
def test_a_reference_of_any_strength(lengths, strength):
    _assert_equal(lengths, attention.strength_bias(None if strength is None else jnp.array(strength), lengths))


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("samples", [1, 2])
def test_any_group_bias_of_any_groups(lengths, samples):
    bias = jax.random.normal(jax.random.key(1), (samples, len(lengths), sum(lengths)))
    _assert_equal(lengths, bias)


@pytest.mark.parametrize("lengths", LENGTHS[:3], ids=str)
def test_padded_text_of_several_lengths(lengths):
    seen = jnp.array([1, 3])[:, None] > jnp.arange(sum(lengths))[None]
    seen |= jnp.arange(sum(lengths))[None] >= 4
    bias = jnp.broadcast_to(jnp.where(seen, 0.0, attention.NO_WEIGHT)[:, None], (2, len(lengths), sum(lengths)))
    _assert_equal(lengths, bias)


def test_wide_tiles_and_narrower_ones_in_the_backward_pass():
    lengths = (500, 268)  # a group ends inside of the tile
    bias = attention.strength_bias(jnp.array([0.5]), lengths)
    _assert_equal(lengths, bias, batch=1, heads=1, width=128)


@pytest.mark.parametrize("heads, width", [(1, 128), (3, 64), (2, 200)])
def test_heads_of_any_width(heads, width):
    _assert_equal((40, 30), attention.strength_bias(jnp.array([0.5]), (40, 30)), heads=heads, width=width)


def test_a_reference_of_strength_zero_is_not_there():
    q, k, v, _ = _inputs((130, 67))
    bias = attention.strength_bias(jnp.zeros(1), (130, 67))

    def live(k, v):
        return attention.attend(q, k, v, bias, (130, 67), "pallas_tpu")[:, :130]

    np.testing.assert_array_equal(live(k, v), live(k.at[:, 130:].set(1e4), v.at[:, 130:].set(-1e4)))
    assert not any(gradient[:, 130:].any() for gradient in jax.grad(lambda *x: live(*x).sum(), (0, 1))(k, v))


def _preparation(length, lengths=None, width=16, seed=5):
    """Norms of the runs of positions `lengths`, with scales of either sign, and angles of any size."""
    lengths = (length,) if lengths is None else lengths
    scales, angles = (jax.random.key(seed + i) for i in range(2))
    q_scale, k_scale = jax.random.normal(scales, (2, len(lengths), width)) / 2
    angles = 3 * jax.random.normal(angles, (length, width // 2))
    return attention.Preparation(q_scale, k_scale, jnp.cos(angles), jnp.sin(angles), lengths)


def _prepared_with_gradients(lengths, bias, backend, norms, **sizes):
    q, k, v, cotangent = _inputs(lengths, **sizes)
    preparation = _preparation(sum(lengths), norms, q.shape[-1])

    def run(q, k, v, q_scale, k_scale):
        changed = preparation.replace(q_scale=q_scale, k_scale=k_scale)
        return attention.attend(q, k, v, bias, lengths, backend, changed)

    out, backward = jax.vjp(run, q, k, v, preparation.q_scale, preparation.k_scale)
    return out, *backward(cotangent.reshape(out.shape))


def _assert_prepared_equal(lengths, bias, norms=None, **sizes):
    """Gradients of scales are sums over all positions: relative to their largest."""
    expected, found = (_prepared_with_gradients(lengths, bias, backend, norms, **sizes) for backend in BACKENDS)
    np.testing.assert_allclose(found[0], expected[0], atol=2e-6, rtol=0)
    for name, ours, theirs in zip(("q", "k", "v", "q_scale", "k_scale"), found[1:], expected[1:], strict=True):
        atol = 2e-5 * max(1.0, float(jnp.abs(theirs).max()))
        np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0, err_msg=f"gradient of {name}")


@pytest.mark.parametrize("strength", [None, 0.0, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("lengths", [(5, 4), (256, 128), (300, 213)], ids=str)
def test_norm_and_rotation_inside(lengths, strength):
    bias = attention.strength_bias(None if strength is None else jnp.array([strength]), lengths)
    _assert_prepared_equal(lengths, bias)


@pytest.mark.parametrize("norms", [(7, 190), (128, 69), (64, 64, 69)], ids=str)
@pytest.mark.parametrize("width", [16, 128])
def test_a_norm_for_each_run_of_positions(norms, width):
    lengths = (130, 67)
    _assert_prepared_equal(lengths, attention.strength_bias(jnp.array([0.1, 3.0]), lengths), norms, width=width)


@pytest.mark.parametrize(
    "parts, reference", [((128, 256), 128), ((256, 128, 128), 128), ((256, 128), 64), ((7, 190), 128)], ids=str
)
def test_projections_in_parts(parts, reference):
    """The last parts are not whole tiles: the kernels then get them in one. Groups may end inside of a tile."""
    length = sum(parts)
    lengths = (length - reference, reference)
    bias, preparation = attention.strength_bias(jnp.array([0.3]), lengths), _preparation(length, parts)
    reading = attention.Reading(jnp.full((2, 1, parts[0]), 1 / parts[0]), jnp.array(True), lengths[0] - parts[0])
    reading = reading if reading.num_image > 0 else None
    *qkv, cotangent = _inputs(lengths)

    def run(backend, cut):
        def both(q, k, v, scale):
            prepared = preparation.replace(k_scale=scale)
            out, read, _ = attention.attend_and_read(q, k, v, bias, lengths, backend, prepared, reading)
            return jnp.concatenate(out, axis=1) if cut else out, read

        inputs = [tuple(jnp.split(x, np.cumsum(parts)[:-1], axis=1)) if cut else x for x in qkv]
        (out, read), backward = jax.vjp(both, *inputs, preparation.k_scale)
        found = backward((cotangent.reshape(out.shape), jax.tree.map(jnp.zeros_like, read)))
        joined = [jnp.concatenate(x, axis=1) if cut else x for x in found[:3]]
        return [out, *jax.tree.leaves(read), *joined, found[3]]

    expected = run("xla", False)
    for backend in BACKENDS:
        for ours, theirs in zip(run(backend, True), expected, strict=True):
            atol = 2e-5 * max(1.0, float(jnp.abs(theirs).max()))
            np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0)
        np.testing.assert_allclose(run(backend, True)[0], expected[0], atol=2e-6, rtol=0)


def test_half_precision_errs_as_little_with_norm_and_rotation_inside():
    lengths = (256, 128)
    exact = _prepared_with_gradients(lengths, None, "xla", (64, 320))

    def error(backend):
        found = _prepared_with_gradients(lengths, None, backend, (64, 320), dtype=jnp.bfloat16)
        return largest_errors(found, exact)

    assert np.all(error("pallas_tpu") < 1.5 * error("xla"))


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("text, image, reference", [(5, 4, 4), (7, 260, 30), (256, 128, 128), (300, 60, 0)])
def test_attention_of_weighted_text(text, image, reference, wanted):
    lengths = (text + image, reference) if reference else (text + image,)
    q, k, v, _ = _inputs(lengths, batch=3)
    weights = jax.random.uniform(jax.random.key(3), (2, 3, text)) / text
    reading = attention.Reading(weights, jnp.array(wanted), image)
    bias = attention.strength_bias(jnp.array([0.5]), lengths) if reference else None
    preparation = _preparation(sum(lengths), (text, sum(lengths) - text))
    for prepared in (None, preparation):
        found, expected = (
            attention.attend_and_read(q, k, v, bias, lengths, backend, prepared, reading)
            for backend in ("pallas_tpu", "xla")
        )
        np.testing.assert_allclose(found[0], expected[0], atol=2e-6, rtol=0)
        assert found[1].shape == expected[1].shape == (2, 3, image) and bool(jnp.any(expected[1])) == wanted
        np.testing.assert_allclose(found[1], expected[1], atol=2e-6, rtol=0)


def test_half_precision_errs_as_little_as_plain_products():
    lengths = (256, 128)
    bias = attention.strength_bias(jnp.array([0.1, 3.0]), lengths)
    exact = _with_gradients(lengths, bias, "xla")

    def error(backend):
        q, k, v, cotangent = (x.astype(jnp.bfloat16) for x in _inputs(lengths))
        out, backward = jax.vjp(lambda *x: attention.attend(*x, bias, lengths, backend), q, k, v)
        found = (out, *backward(cotangent.reshape(out.shape)))
        return largest_errors(found, exact)

    assert np.all(error("pallas_tpu") < 1.5 * error("xla"))


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 2, "tensor": 2}, {"data": 2, "context": 2}, {"context": 4}], ids=lambda sizes: "-".join(sizes)
)
@pytest.mark.parametrize("lengths", [(256, 256), (300, 212), (6, 5)], ids=str)
def test_split_over_a_mesh(sizes, lengths):
    """The last lengths do not divide: positions are then not split."""
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | sizes, jax.devices()[:4])
    bias = attention.strength_bias(jnp.array([0.1, 3.0]), lengths)
    inputs = _inputs(lengths)
    preparation = _preparation(sum(lengths), (3, sum(lengths) - 3))
    reading = attention.Reading(jnp.full((2, 1, 3), 1 / 3), jnp.array(True), lengths[0] - 3)

    def run(q, k, v, cotangent, backend):
        def both(q, k, v, scale):
            prepared = preparation.replace(k_scale=scale)
            return attention.attend_and_read(q, k, v, bias, lengths, backend, prepared, reading)[:2]

        (out, read), backward = jax.vjp(both, q, k, v, preparation.k_scale)
        return out, read, *backward((cotangent.reshape(out.shape), jnp.zeros_like(read)))

    with jax.set_mesh(mesh), nn.logical_axis_rules(ACTIVATIONS):
        placed = [jax.device_put(x, NamedSharding(mesh, P(("data", "fsdp"), None, "tensor"))) for x in inputs]
        found = jax.jit(partial(run, backend="pallas_tpu"))(*placed)
    for ours, theirs in zip(found, run(*inputs, "xla"), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * max(1.0, float(jnp.abs(theirs).max())), rtol=0)


def test_auto_takes_the_kernels_when_lowered_for_a_tpu():
    q, k, v, _ = _inputs((256, 128), dtype=jnp.bfloat16)

    def kernels(platform, backend, function=lambda x: x.sum()):
        def total(q, k, v):
            bias = attention.strength_bias(jnp.array([0.1]), (256, 128))
            return attention.attend(q, k, v, bias, (256, 128), backend).astype(jnp.float32).sum()

        program = jax.jit(jax.grad(total, (0, 1, 2))).trace(q, k, v)
        return program.lower(lowering_platforms=(platform,)).as_text().count("tpu_custom_call")

    assert kernels("tpu", "auto") == kernels("tpu", "pallas_tpu") == 2  # forward and backward
    assert kernels("cpu", "auto") == kernels("cpu", "pallas_tpu") == kernels("tpu", "xla") == 0


@pytest.mark.parametrize("kept, calls", [("full", 3), ("products", 2)])
def test_the_backward_pass_may_keep_what_it_needs_of_the_forward_pass(kept, calls):
    """Without the forward kernel a second time."""
    attend = partial(attention.attend, group_bias=None, lengths=(256, 128), backend="pallas_tpu")

    @partial(jax.checkpoint, policy=REMAT_POLICIES[kept])
    def block(q, k, v):
        return attend(2 * q, k, v)

    def total(*x):
        return (block(*x) * x[0].reshape(2, 384, -1)).astype(jnp.float32).sum()

    program = jax.jit(jax.grad(total, (0, 1, 2))).trace(*_inputs((256, 128), dtype=jnp.bfloat16)[:3])
    assert program.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call") == calls


def test_no_weights_and_no_biases_of_all_pairs():
    """Neither [S S] nor [A S S] in the program outside of the kernels, forward and backward."""
    lengths = (600, 424)

    def total(*x):
        bias = attention.strength_bias(jnp.array([0.1]), lengths)
        return attention.attend(*x, bias, lengths, "pallas_tpu").astype(jnp.float32).sum()

    program = jax.jit(jax.grad(total, (0, 1, 2))).trace(*_inputs(lengths, dtype=jnp.bfloat16)[:3])
    assert "1024x1024x" not in program.lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("check", goldens_models.MODEL_CHECKS, ids=lambda check: check.__name__)
def test_released_goldens(check, monkeypatch):
    calls = []

    def interpreted(*args):
        calls.append(args)
        return pallas_tpu.attend(*args)

    monkeypatch.setitem(attention.BACKENDS, "auto", interpreted)
    jax.clear_caches()
    results = list(check(Path(__file__).parent / "data"))
    jax.clear_caches()
    assert results and not [result for result in results if not result.passed]
    assert calls or "vq" in check.__name__ or "text" in check.__name__
