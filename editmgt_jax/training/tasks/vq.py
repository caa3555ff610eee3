"""Training the image tokenizer on pairs: reconstruction, an exponential-moving-average codebook, local latents.

Axes    B pairs (2B images), Y X pixels, H W tokens, Z code dimension, C codebook size
Source  VQ-VAE with EMA codebook; the released tokenizer is not trained here, so its recipe is ours:
        no quantisation at first, k-means start of the codebook, restart of dead codes
        The perceptual term is LPIPS, as in VQGAN (Esser et al. 2021)
Differs latents outside the edit mask are pulled together between source and target: an edit then changes few ids
        outside its mask, in spite of the global statistics of GroupNorm
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from editmgt_jax.models.lpips import LPIPS, network_of
from editmgt_jax.models.vq import VQModel
from editmgt_jax.sampling.masking import covered_tokens
from editmgt_jax.training.config import VQRun
from editmgt_jax.training.runs import best_params
from editmgt_jax.training.sharding import REPLICATED, Put
from editmgt_jax.training.state import Metrics, Params, TrainState
from editmgt_jax.training.step import once
from editmgt_jax.training.tasks.protocol import Task
from editmgt_jax.weights import lpips
from editmgt_jax.weights.conversion import save_component


def _gradient_l1(a, b):
    """L1 between finite differences along rows and columns: keeps edges sharp."""
    d = a - b
    return jnp.abs(d[:, 1:] - d[:, :-1]).mean() + jnp.abs(d[:, :, 1:] - d[:, :, :-1]).mean()


def _halve(x):
    b, y, x_, c = x.shape
    return x.reshape(b, y // 2, 2, x_ // 2, 2, c).mean(axis=(2, 4))


def reconstruction_loss(decoded: jax.Array, pixels: jax.Array) -> jax.Array:
    """L1 + 2 MSE + half the gradient L1 at full and half resolution, of pictures [B Y X 3] in [0, 1]. -> scalar"""
    difference = decoded - pixels
    edges = _gradient_l1(decoded, pixels) + _gradient_l1(_halve(decoded), _halve(pixels))
    return jnp.abs(difference).mean() + 2 * jnp.square(difference).mean() + 0.5 * edges


def _lloyd(vectors, centres, iterations=12):
    """k-means: [M Z] vectors, [C Z] starting centres -> [C Z]."""

    def update(centres, _):
        nearest = jnp.argmin(_distance(vectors, centres), axis=-1)
        counts = jnp.zeros(len(centres)).at[nearest].add(1.0)
        sums = jnp.zeros_like(centres).at[nearest].add(vectors)
        return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], centres), None

    return jax.lax.scan(update, centres, None, length=iterations)[0]


def _distance(vectors, centres):
    return jnp.square(centres).sum(-1)[None] - 2 * vectors @ centres.T


class VQTask(Task):
    """Task `vq`. Batches hold 'source' and 'target' uint8 [B Y X 3] and 'mask' bool [B Y X]."""

    monitor = ("psnr", "max")
    rules = REPLICATED  # it is small; the batch is spread

    def __init__(self, config: VQRun):
        self.config, self.model_config = config, config.model.architecture
        self.model = VQModel(self.model_config, precision=config.model.precision)

    def init(self, key: jax.Array) -> Params:
        """Random parameters."""
        side = 4 * self.model_config.factor
        return _quiet_residuals(self.model.init(key, jnp.zeros((1, side, side, 3)))["params"])

    def start(self, _key: jax.Array, put: Put) -> Params | None:
        """Parameters that are not random: those of another run, if any. Errors: those of `best_params`."""
        if not self.config.start_from:
            return None
        params = best_params(self.config.start_from)
        return jax.tree.map(lambda value: put("", value), params)

    def frozen(self, put: Put, _encodes: set[str]) -> dict:
        """The network of the perceptual loss, if there is one."""
        if not self.config.loss.perceptual:
            return {}
        return {"lpips": jax.tree.map(lambda value: put("", value), lpips.load(self.config.loss.lpips))}

    def extra(self, params: Params) -> Params:
        """Codebook statistics of a run that starts from `params`."""
        return {"count": jnp.ones(self.model_config.num_vq_embeddings), "sum": jnp.copy(params["codebook"])}

    def _forward(self, params, frozen, batch, quantise, tied=1.0):
        """-> (loss, auxiliary values)

        Args:
          quantise: traced; before it is true, latents pass unchanged. tied: traced share of `loss.locality` that counts.
        """
        config = self.config.loss
        pixels = jnp.concatenate([batch["source"], batch["target"]]).astype(jnp.float32) / 255
        latents = self.model.apply({"params": params}, pixels, method="latents")  # [2B H W Z]
        codebook = jax.lax.stop_gradient(params["codebook"])
        ids = self.model.apply({"params": params}, jax.lax.stop_gradient(latents), method="quantize")
        nearest = codebook[ids]
        commitment = jnp.square(latents - nearest).mean()
        passed = jnp.where(quantise, latents + jax.lax.stop_gradient(nearest - latents), latents)
        decoded = self.model.apply({"params": params}, passed, method="decode_latents")
        reconstruction = reconstruction_loss(decoded, pixels)

        outside = ~covered_tokens(batch["mask"], latents.shape[1:3])  # [B H W]
        source, target = jnp.split(latents, 2)
        spread = jax.lax.stop_gradient(latents.var(axis=(0, 1, 2)).sum())
        moved = jnp.square(source - target).sum(-1) / spread
        locality = jnp.where(outside, moved, 0).sum() / jnp.maximum(outside.sum(), 1).astype(jnp.float32)
        loss = (
            reconstruction + config.locality * tied * locality + jnp.where(quantise, config.commitment * commitment, 0)
        )
        perceptual = jnp.float32(0)
        if "lpips" in frozen:
            network = LPIPS(network_of(frozen["lpips"]), jnp.dtype(config.lpips_dtype))
            perceptual = network.apply({"params": frozen["lpips"]}, decoded, pixels).mean()
            loss += config.perceptual * perceptual
        source_ids, target_ids = jnp.split(ids, 2)
        metrics = {
            "loss": loss,
            "reconstruction": reconstruction,
            "perceptual": perceptual,
            "commitment": commitment,
            "locality": locality,
            "psnr": (-10 * jnp.log10(jnp.square(jnp.clip(decoded, 0, 1) - pixels).mean((1, 2, 3)))).mean(),
            "ids_changed_outside": ((source_ids != target_ids) * outside).sum() / jnp.maximum(outside.sum(), 1),
        }
        return loss, ({name: once(value) for name, value in metrics.items()}, latents, ids)

    def gradients(
        self, params: Params, frozen: dict, batch: dict, key: jax.Array, step: jax.Array
    ) -> tuple[Params, Metrics, tuple[jax.Array, jax.Array, jax.Array]]:
        """-> (gradients, metrics, what `after` needs)"""
        quantise = step >= self.config.codebook.start_step
        tied = jnp.minimum(1.0, (step + 1) / max(1, self.config.loss.locality_warmup))
        (_, (metrics, latents, ids)), gradients = jax.value_and_grad(self._forward, has_aux=True)(
            params, frozen, batch, quantise, tied
        )
        vectors = jax.lax.stop_gradient(latents).reshape(-1, latents.shape[-1])
        return gradients, metrics, (vectors, ids.reshape(-1), key)

    def after(self, state: TrainState, updates: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[TrainState, Metrics]:
        """-> (the state with a new codebook, metrics)"""
        codebook, extra = self._update_codebook(state, *updates)
        ema = None if state.ema is None else state.ema | {"codebook": codebook}
        used = once((extra["count"] >= self.config.codebook.dead_below).mean())
        return state.replace(params=state.params | {"codebook": codebook}, ema=ema, extra=extra), {"codes_used": used}

    def _update_codebook(self, state, vectors, ids, key):
        """EMA of code statistics; k-means at the start step; dead codes restart at random latents."""
        config, size = self.config.codebook, self.model_config.num_vq_embeddings
        decay, done = config.decay, state.step - 1  # the step has been advanced
        count = decay * state.extra["count"] + (1 - decay) * jnp.zeros(size).at[ids].add(1.0)
        total = decay * state.extra["sum"] + (1 - decay) * jnp.zeros_like(state.extra["sum"]).at[ids].add(vectors)
        picks = vectors[jax.random.choice(key, len(vectors), (size,), replace=len(vectors) < size)]

        def kmeans(_):
            centres = _lloyd(vectors, picks)
            return jnp.ones(size), centres

        count, total = jax.lax.cond(done == config.start_step - 1, kmeans, lambda _: (count, total), None)
        revive = (count < config.dead_below) & (done % config.restart_every == 0) & (done < config.restart_until)
        count = jnp.where(revive, 1.0, count)
        total = jnp.where(revive[:, None], picks, total)
        return total / jnp.maximum(count, 1e-5)[:, None], {"count": count, "sum": total}

    def evaluate(self, params: Params, frozen: dict, batch: dict, _key: jax.Array) -> Metrics:
        """-> metrics"""
        return self._forward(params, frozen, batch, jnp.bool_(True))[1][0]

    def save(self, folder: Path, params: Params, dtype: DTypeLike, verify: bool) -> None:
        """The folder `vqvae` of a model directory."""
        save_component(folder / "vqvae", self.model_config, params, dtype, verify)


def _quiet_residuals(params):
    """Zeroes the second convolution of every residual block: training starts from a short, local network."""

    def quiet(path, value):
        names = [key.key for key in path]
        return jnp.zeros_like(value) if names[-2:] == ["conv2", "kernel"] else value

    return jax.tree_util.tree_map_with_path(quiet, params)
