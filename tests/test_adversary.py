"""The adversary of the image tokenizer's decoder: losses by hand, who learns from what, and that a bad step teaches nobody."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import vq_config

from editmgt_jax.training import adversary
from editmgt_jax.training.adversary import Adversary
from editmgt_jax.training.config_files import checked
from editmgt_jax.training.state import new_state
from editmgt_jax.training.step import once, train_step
from editmgt_jax.training.tasks.protocol import Task

WEIGHT, BEGIN, AHEAD = 0.5, 3, 1


@pytest.fixture(scope="module")
def opponent():
    config = vq_config(10)
    config.loss.update(adversarial=WEIGHT, adversarial_from=BEGIN)
    config.discriminator = dict(width=8, halvings=1, learning_rate=1e-2, ahead=AHEAD)
    return Adversary(checked(config))


@pytest.fixture(scope="module")
def state(opponent):
    return opponent.init(jnp.zeros((1, 8, 8, 3)))


def pictures(seed, mean):
    return mean + 0.1 * jax.random.normal(jax.random.key(seed), (4, 8, 8, 3))


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_losses_by_hand():
    real, fake = jnp.array([[2.0, 0.5], [-1.0, 1.0]]), jnp.array([[-3.0, 0.0], [1.0, -0.5]])
    expected = ((0 + 0.5 + 2 + 0) / 4 + (0 + 1 + 2 + 0.5) / 4) / 2
    np.testing.assert_allclose(adversary.discriminator_loss(real, fake), expected, rtol=1e-6)
    long, short = jnp.full((1, 1, 2, 2), 3.0), jnp.full((1, 1, 2, 2), 0.5)  # norms 6 and 1
    np.testing.assert_allclose(adversary.adaptive_weight(long, short), 6 / 1.0001, rtol=1e-6)
    assert adversary.adaptive_weight(1e6 * long, 0 * short) == 1e4


def direct_gradient(opponent, state, kernel, x, target):
    """Of a decoder `x @ kernel`, whose last layer is all of it: each term apart, weighed by the paper's formula."""
    like = jax.grad(lambda kernel: jnp.square(x @ kernel - target).mean())(kernel)
    real = jax.grad(lambda kernel: -opponent.module.apply({"params": state["params"]}, x @ kernel).mean())(kernel)
    weight = WEIGHT * np.linalg.norm(like) / (np.linalg.norm(real) + 1e-4)
    return like, weight, like + weight * real


@pytest.mark.parametrize("step", [BEGIN - 1, BEGIN])
def test_the_decoder_gets_both_gradients_and_the_discriminator_none(opponent, state, step):
    x, target, kernel = pictures(0, 0.5), pictures(1, 0.5), jnp.eye(3) + 0.1

    def loss(kernel, state):
        decoded, pull = jax.vjp(lambda kernel: x @ kernel, kernel)
        given = decoded, lambda pictures: (jnp.square(pictures - target).mean(), {}), lambda by: pull(by)[0]
        value, _, metrics = opponent.oppose(state, jnp.int32(step), *given)
        return value, metrics

    (value, metrics), (found, of_state) = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1), has_aux=True, allow_int=True)
    )(kernel, state)
    alone, weight, both = direct_gradient(opponent, state, kernel, x, target)
    np.testing.assert_allclose(found, both if step >= BEGIN else alone, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(value, np.square(x @ kernel - target).mean(), rtol=1e-6)
    assert all(not np.any(each) for each in jax.tree.leaves(of_state["params"]))
    (told, count) = metrics["adversarial_weight"]
    assert (told, count) == ((pytest.approx(weight, rel=1e-4), 1) if step >= BEGIN else (0, 0))


def test_the_discriminator_learns_from_its_first_step_on_and_the_decoder_nothing_of_it(opponent, state):
    fake, real, first = pictures(0, 0.3), pictures(1, 0.7), BEGIN - AHEAD
    through = jax.grad(lambda fake: opponent.learn(state, jnp.int32(first), fake, real)[1]["discriminator"][0])(fake)
    assert not np.any(through)
    learn = jax.jit(opponent.learn)
    before, metrics = learn(state, jnp.int32(first - 1), fake, real)
    assert_same(before, state)
    assert all(count == 0 for _, count in metrics.values())
    for step in range(first, first + 20):
        state, metrics = learn(state, jnp.int32(step), fake, real)
    assert metrics["discriminator"][0] < 0.1 and metrics["logits_real"][0] > 0.9 > -0.9 > metrics["logits_fake"][0]


class Second(Task):
    """A task that trains a second thing, whose gradient is the batch's number."""

    def gradients(self, params, frozen, batch, key, step, extra):
        return params, {"loss": once(1.0)}, batch["x"]

    def after(self, state, updates):
        return state.replace(extra=state.extra + 1), {"second_gradient_norm": once(updates)}

    init = start = evaluate = save = None


@pytest.mark.parametrize("number, extra", [(2.0, 1.0), (np.nan, 0.0), (np.inf, 0.0)])
def test_a_bad_gradient_of_what_is_trained_besides_makes_a_bad_step(number, extra):
    optimizer, config = optax.sgd(0.1), checked(vq_config(1))
    state = new_state({"w": jnp.ones(2)}, optimizer, ema=False, extra=jnp.float32(0))
    new, metrics = train_step(Second(), optimizer, config, state, {}, {"x": jnp.float32(number)}, jax.random.key(0))
    assert new.step == 1 and new.extra == extra and metrics["bad"][0] == 1 - extra
    assert new.params["w"][0] == (np.float32(0.9) if extra else 1)
