"""An adversary of the image tokenizer's decoder: a discriminator learns to tell its pictures from real ones, and the decoder to
pass for real. It lives in the train state and is not exported.

Axes    B pictures, Y X pixels
Source  VQGAN (Esser et al. 2021), equations 5 to 7: hinge loss, adaptive weight; Adam with betas 0.5 and 0.9
Differs gradients of the discriminator are clipped to the norm that those of the model are
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from editmgt_jax.models.patch_gan import PatchGAN
from editmgt_jax.training.config import VQRun
from editmgt_jax.training.state import Metrics, Params

_TINY = 1e-4  # the paper's delta
_HEAVIEST = 1e4  # the largest adaptive weight
_KEY = 2**32 - 1  # folded into the run's key for the parameters; steps fold in their number


def discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Hinge loss of logits: real ones should be above 1, fake ones below -1. -> scalar"""
    return (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()) / 2


def adaptive_weight(faithful: jax.Array, adversarial: jax.Array) -> jax.Array:
    """By what an adversarial gradient at the decoder's last layer is as long as that of the other terms, both given as arrays."""
    ratio = jnp.linalg.norm(faithful) / (jnp.linalg.norm(adversarial) + _TINY)
    return jnp.minimum(ratio, _HEAVIEST)


def with_gradient(value: jax.Array, by: jax.Array, gradient: jax.Array) -> jax.Array:
    """A value, unchanged, that gets a gradient of the shape of `by`, besides those that it has by other arrays."""
    return value + ((by - jax.lax.stop_gradient(by)) * jax.lax.stop_gradient(gradient)).sum()


class Adversary:
    """The discriminator of a run. Its state is {'params', 'opt_state'}."""

    def __init__(self, config: VQRun):
        chosen = config.discriminator
        self.module = PatchGAN(chosen.width, chosen.halvings)
        self.weight, self.start_step, self.seed = config.loss.adversarial, config.loss.adversarial_from, config.seed
        self.first_lesson = self.start_step - chosen.ahead
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(config.optimizer.clip_norm), optax.adam(chosen.learning_rate, b1=0.5, b2=0.9)
        )

    def init(self, pixels: jax.Array) -> Params:
        """The state at the beginning, for pictures of the shape of `pixels` [B Y X 3]. Traced."""
        key = jax.random.fold_in(jax.random.key(self.seed), _KEY)
        params = self.module.init(key, pixels)["params"]
        return {"params": params, "opt_state": self.optimizer.init(params)}

    def _logits(self, params, pixels):
        return self.module.apply({"params": params}, pixels)

    def oppose(
        self,
        state: Params,
        step: jax.Array,
        decoded: jax.Array,
        compared: Callable[[jax.Array], tuple[jax.Array, dict]],
        by_last: Callable[[jax.Array], jax.Array],
    ) -> tuple[jax.Array, dict, Metrics]:
        """The loss of a step, with the gradient by the decoder's pictures of all of its terms. The value leaves the adversarial
        term out: it has no zero, and is a metric alone.

        Args:
          decoded: [B Y X 3]; compared: such pictures -> (the loss without the adversarial term, what else it gives).
          by_last: a gradient by `decoded` -> the gradient by the kernel of the last layer.
        Returns: (loss, what else `compared` gives, metrics). Before `adversarial_from` there is no adversarial gradient.
        """
        pictures = jax.lax.stop_gradient(decoded)
        (loss, more), wanted = jax.value_and_grad(compared, has_aux=True)(pictures)

        def adversarial(pictures):
            value, gradient = jax.value_and_grad(lambda each: -self._logits(state["params"], each).mean())(pictures)
            return value, gradient, self.weight * adaptive_weight(by_last(wanted), by_last(gradient))

        def absent(pictures):
            return jnp.float32(0), jnp.zeros_like(pictures), jnp.float32(0)

        begun = step >= self.start_step
        value, gradient, weight = jax.lax.cond(begun, adversarial, absent, pictures)
        loss = with_gradient(loss, decoded, wanted + weight * gradient)
        return loss, more, {"adversarial": _since(begun, value), "adversarial_weight": _since(begun, weight)}

    def learn(self, state: Params, step: jax.Array, decoded: jax.Array, pixels: jax.Array) -> tuple[Params, Metrics]:
        """One update of the discriminator on pictures of the decoder and on real ones [B Y X 3]; none before its first lesson."""

        def loss(params):
            real, fake = (self._logits(params, each) for each in (pixels, jax.lax.stop_gradient(decoded)))
            return discriminator_loss(real, fake), (real.mean(), fake.mean())

        def updated(state):
            (value, (real, fake)), gradients = jax.value_and_grad(loss, has_aux=True)(state["params"])
            updates, opt_state = self.optimizer.update(gradients, state["opt_state"], state["params"])
            new = {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}
            return new, (value, real, fake, optax.tree.norm(gradients))

        begun = step >= self.first_lesson
        state, values = jax.lax.cond(begun, updated, lambda state: (state, (jnp.float32(0),) * 4), state)
        names = "discriminator", "logits_real", "logits_fake", "discriminator_gradient_norm"
        return state, {name: _since(begun, value) for name, value in zip(names, values, strict=True)}


def _since(begun, value):
    """A metric that is observed only once `begun` is true."""
    return value, begun.astype(jnp.float32)
