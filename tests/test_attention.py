"""Attention backends: what they add, whom they refuse, and that the fused one lowers for a GPU without one."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from tiny import MGT_CONFIG

from editmgt_jax.models import attention
from editmgt_jax.models.attention import cudnn, xla
from editmgt_jax.models.layers import per_segment
from editmgt_jax.models.mgt import MGT, init_mgt

pytestmark = pytest.mark.usefixtures("exact_types")

LENGTHS = (5, 4)


def _qkv(dtype=jnp.float32, lengths=LENGTHS, batch=2):
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (batch, sum(lengths), 3, 8), dtype) for key in keys]


@pytest.fixture
def gpu_lowering(monkeypatch):
    """The jax installed for CPUs knows no version of cuDNN, which it asks for before it traces."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


def _custom_calls(function, *arguments) -> int:
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    return text.count("custom_call @__cudnn$fmha")


@pytest.mark.parametrize("inner", [xla.attend_at_once, xla.attend_by_head])
def test_no_bias_is_a_bias_of_zeros(inner):
    q, k, v = _qkv()
    np.testing.assert_allclose(inner(q, k, v, None), inner(q, k, v, jnp.zeros((2, 9, 9))), atol=1e-6)


@pytest.mark.parametrize("strength", [0.0, 0.1, 1.0, 3.0])
def test_both_forms_of_xla_weigh_the_other_group_by_the_strength(strength):
    q, k, v = _qkv()
    bias = attention.strength_bias(jnp.array([strength]), LENGTHS)
    logits = np.einsum("bqak,bsak->baqs", q, k) / np.sqrt(8)
    group = np.arange(9) >= 5
    weights = np.exp(logits) * np.where(group[:, None] != group, strength, 1.0)
    expected = np.einsum("baqs,bsak->bqak", weights / weights.sum(-1, keepdims=True), v)
    biases = per_segment(bias, LENGTHS)
    for inner in (xla.attend_at_once, xla.attend_by_head):
        np.testing.assert_allclose(inner(q, k, v, biases), expected, atol=2e-6)
    np.testing.assert_allclose(attention.attend(q, k, v, bias, LENGTHS).reshape(q.shape), expected, atol=2e-6)


def test_a_strength_of_one_and_a_missing_reference_need_no_bias():
    assert attention.strength_bias(None, LENGTHS) is None
    assert attention.strength_bias(jnp.ones(1), (9, 0)) is None
    assert attention.strength_bias(jnp.ones(1), LENGTHS).shape == (1, 2, 9)


def test_the_strength_has_no_gradient():
    def total(strength):
        return attention.attend(*_qkv(), attention.strength_bias(strength, LENGTHS), LENGTHS).sum()

    np.testing.assert_array_equal(jax.grad(total)(jnp.array([0.5])), 0.0)


def test_wrong_backends_are_named():
    with pytest.raises(
        ValueError, match=r"attention must be one of \['auto', 'cudnn', 'pallas_tpu', 'xla'\]; got 'flash'"
    ):
        attention.attend(*_qkv(), None, LENGTHS, "flash")
    with pytest.raises(ValueError, match="attention 'cudnn' computes in bfloat16 or float16; got float32"):
        attention.check_backend("cudnn", jnp.float32)
    with pytest.raises(ValueError, match="attention must be one of"):
        jax.eval_shape(partial(init_mgt, MGT(MGT_CONFIG, attention="flash")), jax.random.key(0))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("strength", [None, (0.0,), (0.5, 1.1)])
@pytest.mark.parametrize("lengths", [(5, 4), (6, 4)])
def test_cudnn_lowers_for_a_gpu(gpu_lowering, dtype, strength, lengths):
    q, k, v = _qkv(dtype, lengths)
    bias = None if strength is None else attention.strength_bias(jnp.array(strength), lengths)

    def run(q, k, v):
        return attention.attend(q, k, v, bias, lengths, "cudnn")

    assert jax.eval_shape(run, q, k, v).shape == (2, sum(lengths), 24)
    assert _custom_calls(run, q, k, v) == 1
    assert _custom_calls(jax.grad(lambda *x: run(*x).sum().astype(jnp.float32), (0, 1, 2)), q, k, v) == 2


def test_cudnn_s_bias_is_as_small_as_the_strengths_allow(gpu_lowering):
    def largest_bias(strengths):
        bias = attention.strength_bias(jnp.array(strengths), LENGTHS)
        run = partial(attention.attend, group_bias=bias, lengths=LENGTHS, backend="cudnn")
        text = jax.jit(run).trace(*_qkv(jnp.bfloat16)).lower(lowering_platforms=("cuda",)).as_text()
        return [size for size in ("1x1x10x10", "2x1x10x10") if f"tensor<{size}xbf16>" in text]

    assert largest_bias([1.1]) == ["1x1x10x10"]
    assert largest_bias([1.1, 0.0]) == ["2x1x10x10"]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_the_lowest_bias_of_a_half_dtype_is_finite_and_weighs_nothing(dtype):
    lowest = jnp.asarray(cudnn.NO_WEIGHT_OF[jnp.dtype(dtype).name], dtype)
    assert jnp.isfinite(lowest)
    assert jnp.exp(lowest.astype(jnp.float32) + 100) == 0


@pytest.fixture
def beside_a_gpu(gpu_lowering, monkeypatch):
    monkeypatch.setattr(attention, "get_backend", lambda: SimpleNamespace(platform_version="cuda 12090"))


@pytest.mark.parametrize("dtype, calls", [(jnp.bfloat16, 1), (jnp.float32, 0)])
def test_auto_chooses_when_lowered(beside_a_gpu, dtype, calls):
    q, k, v = _qkv(dtype)
    bias = attention.strength_bias(jnp.array([1.1]), LENGTHS)

    def run(backend):
        return jax.jit(partial(attention.attend, group_bias=bias, lengths=LENGTHS, backend=backend))

    assert _custom_calls(run("auto"), q, k, v) == calls
    np.testing.assert_array_equal(run("auto")(q, k, v), run("xla")(q, k, v))  # the same function, compiled for a CPU


def test_auto_keeps_no_weights_of_the_form_that_is_not_chosen(beside_a_gpu):
    def kept(backend):
        attend = partial(attention.attend, group_bias=None, lengths=(512, 512), backend=backend)
        backward = jax.eval_shape(lambda *x: jax.vjp(attend, *x)[1], *_qkv(jnp.bfloat16, (512, 512)))
        return max(leaf.size for leaf in jax.tree.leaves(backward))

    weights = 2 * 3 * 1024 * 1024
    assert kept("xla") >= weights
    assert kept("auto") < weights / 4
