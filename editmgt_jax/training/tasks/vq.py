"""Training the image tokenizer on pairs: reconstruction, an exponential-moving-average codebook, local latents.

Axes    B pairs (2B images), Y X pixels, H W tokens, Z code dimension, C codebook size
Source  VQ-VAE with EMA codebook; the released tokenizer is not trained here, so its recipe is ours:
        no quantisation at first, k-means start of the codebook, restart of dead codes
        The perceptual term is LPIPS, and the adversarial one a discriminator of patches, as in VQGAN (Esser et al. 2021)
Differs latents outside the edit mask are pulled together between source and target: an edit then changes few ids
        outside its mask, in spite of the global statistics of GroupNorm
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from editmgt_jax.errors import UserError
from editmgt_jax.models.lpips import LPIPS, network_of
from editmgt_jax.models.vq import VQModel
from editmgt_jax.sampling.masking import covered_tokens
from editmgt_jax.training.adversary import Adversary
from editmgt_jax.training.config import VQRun
from editmgt_jax.training.runs import best_params, config_of_task, is_run
from editmgt_jax.training.sharding import REPLICATED, Put
from editmgt_jax.training.state import Metrics, Params, TrainState
from editmgt_jax.training.step import once
from editmgt_jax.training.tasks.protocol import Task
from editmgt_jax.weights import lpips
from editmgt_jax.weights.conversion import save_component
from editmgt_jax.weights.loading import load_vq

FOLDER = "vqvae"  # of a model directory
DECODER = ("decoder", "post_quant_conv")  # the parameters that no id depends on


def _gradient_l1(a, b):
    """L1 between finite differences along rows and columns: keeps edges sharp."""
    d = a - b
    return jnp.abs(d[:, 1:] - d[:, :-1]).mean() + jnp.abs(d[:, :, 1:] - d[:, :, :-1]).mean()


def _gradient_energy(pictures):
    """Sum of the mean squared differences of neighbours in rows and in columns, of pictures [B Y X 3]. -> [B]"""
    return sum(jnp.square(jnp.diff(pictures, axis=axis)).mean(axis=(1, 2, 3)) for axis in (1, 2))


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


def _read(directory):
    """-> (config of a tokenizer, its parameters), of a run or of a model directory"""
    if is_run(directory):
        return config_of_task(directory, VQRun).model.architecture, best_params(directory)
    if not (Path(directory) / FOLDER).is_dir():
        raise FileNotFoundError(
            f"start_from must be a run, or a model directory with a folder {FOLDER}; got {directory}"
        )
    model, params = load_vq(Path(directory) / FOLDER)
    return model.config, params


class VQTask(Task):
    """Task `vq`. Batches hold 'source' and 'target' uint8 [B Y X 3] and 'mask' bool [B Y X]."""

    rules = REPLICATED  # it is small; the batch is spread

    def __init__(self, config: VQRun):
        self.config, self.model_config = config, config.model.architecture
        self.model = VQModel(self.model_config, precision=config.model.precision)
        self.keeps_ids = config.model.trained == "decoder"
        self.adversary = Adversary(config) if config.loss.adversarial else None
        # Pictures that look real are less like the originals, pixel by pixel: the best ones are as sharp as these.
        self.monitor = ("gradient_error", "min") if self.adversary else ("psnr", "max")

    def notes(self) -> list[str]:
        """See `Task.notes`: a discriminator whose judgement never counts."""
        begin, steps = self.config.loss.adversarial_from, self.config.steps
        if self.adversary is None or begin < steps:
            return []
        return [f"loss.adversarial_from={begin} is not below steps={steps}: no discriminator's judgement counts"]

    # ---- parameters

    def init(self, key: jax.Array) -> Params:
        """Random parameters."""
        return _quiet_residuals(self.model.init(key, self._blank())["params"])

    def _blank(self):
        side = 4 * self.model_config.factor
        return jnp.zeros((1, side, side, 3))

    def start(self, _key: jax.Array, put: Put) -> Params | None:
        """Parameters that are not random: those of another run or of a model directory, if any.

        Errors: UserError for a start with another config; those of what reads it.
        """
        if not self.config.start_from:
            return None
        config, params = _read(self.config.start_from)
        if config != self.model_config:
            raise UserError(
                f"the architecture in model must be that of start_from, {self.config.start_from}: {config}; "
                f"got {self.model_config}"
            )
        return jax.tree.map(lambda value: put("", value), params)

    def frozen(self, put: Put, _encodes: set[str]) -> dict:
        """The network of the perceptual loss, if there is one."""
        if not self.config.loss.perceptual:
            return {}
        return {"lpips": jax.tree.map(lambda value: put("", value), lpips.load(self.config.loss.lpips))}

    def extra(self, params: Params) -> Params:
        """Codebook statistics of a run that starts from `params`, unless its ids stay; the state of a discriminator."""
        found = {}
        if not self.keeps_ids:
            found |= {"count": jnp.ones(self.model_config.num_vq_embeddings), "sum": jnp.copy(params["codebook"])}
        if self.adversary is not None:
            found["discriminator"] = self.adversary.init(self._blank())
        return found

    # ---- steps

    def _forward(self, params, frozen, batch, quantise, tied=1.0, opponent=None):
        """-> (loss, auxiliary values)

        Args:
          quantise: traced; before it is true, latents pass unchanged. tied: traced share of `loss.locality` that counts.
          opponent: (state of the discriminator, step) where the adversarial term counts.
        """
        config = self.config.loss
        pixels = jnp.concatenate([batch["source"], batch["target"]]).astype(jnp.float32) / 255
        latents = self.model.apply({"params": params}, pixels, method="latents")  # [2B H W Z]
        codebook = jax.lax.stop_gradient(params["codebook"])
        ids = self.model.apply({"params": params}, jax.lax.stop_gradient(latents), method="quantize")
        nearest = codebook[ids]
        commitment = jnp.square(latents - nearest).mean()
        passed = jnp.where(quantise, latents + jax.lax.stop_gradient(nearest - latents), latents)
        if self.keeps_ids:
            passed = nearest
        decoded, by_last = self._decode(params, passed, opponent is not None)

        outside = ~covered_tokens(batch["mask"], latents.shape[1:3])  # [B H W]
        source, target = jnp.split(latents, 2)
        spread = jax.lax.stop_gradient(latents.var(axis=(0, 1, 2)).sum())
        moved = jnp.square(source - target).sum(-1) / spread
        locality = jnp.where(outside, moved, 0).sum() / jnp.maximum(outside.sum(), 1).astype(jnp.float32)

        def compared(decoded):
            """-> (all terms of the loss but the adversarial one, those of the pictures)"""
            loss = reconstruction = reconstruction_loss(decoded, pixels)
            if not self.keeps_ids:
                loss = loss + config.locality * tied * locality + jnp.where(quantise, config.commitment * commitment, 0)
            perceptual = jnp.float32(0)
            if "lpips" in frozen:
                network = LPIPS(network_of(frozen["lpips"]), jnp.dtype(config.lpips_dtype))
                perceptual = network.apply({"params": frozen["lpips"]}, decoded, pixels).mean()
                loss += config.perceptual * perceptual
            return loss, {"reconstruction": once(reconstruction), "perceptual": once(perceptual)}

        if opponent is None:
            loss, metrics = compared(decoded)
        else:
            loss, metrics, more = self.adversary.oppose(*opponent, decoded, compared, by_last)
            metrics |= more
        source_ids, target_ids = jnp.split(ids, 2)
        psnr = (-10 * jnp.log10(jnp.square(jnp.clip(decoded, 0, 1) - pixels).mean((1, 2, 3)))).mean()
        metrics |= {
            "loss": once(loss),
            "commitment": once(commitment),
            "locality": once(locality),
            "psnr": once(psnr),
            "ids_changed_outside": once(((source_ids != target_ids) * outside).sum() / jnp.maximum(outside.sum(), 1)),
        }
        return loss, (metrics, latents, ids, decoded, pixels)

    def _decode(self, params, passed, with_last):
        """-> (pictures [2B Y X 3], their gradient -> that of the kernel of the last layer, or None)"""
        if not with_last:
            return self.model.apply({"params": params}, passed, method="decode_latents"), None
        decoder = params["decoder"]

        def decode(kernel):
            changed = decoder | {"conv_out": decoder["conv_out"] | {"kernel": kernel}}
            return self.model.apply({"params": params | {"decoder": changed}}, passed, method="decode_latents")

        decoded, pull = jax.vjp(decode, decoder["conv_out"]["kernel"])
        return decoded, lambda by_decoded: pull(by_decoded)[0]

    def gradients(
        self, params: Params, frozen: dict, batch: dict, key: jax.Array, step: jax.Array, extra: Params | None = None
    ) -> tuple[Params, Metrics, dict]:
        """-> (gradients, metrics, what `after` needs)"""
        quantise = step >= self.config.codebook.start_step
        tied = jnp.minimum(1.0, (step + 1) / max(1, self.config.loss.locality_warmup))
        opponent = None if self.adversary is None else (extra["discriminator"], step)
        (_, (metrics, latents, ids, decoded, pixels)), gradients = jax.value_and_grad(self._forward, has_aux=True)(
            params, frozen, batch, quantise, tied, opponent
        )
        vectors = jax.lax.stop_gradient(latents).reshape(-1, latents.shape[-1])
        updates = {"codes": (vectors, ids.reshape(-1), key), "pictures": (decoded, pixels)}
        kept = {name: value for name, value in params.items() if name not in DECODER} if self.keeps_ids else {}
        return gradients, metrics, updates | {"kept": kept}

    def after(self, state: TrainState, updates: dict) -> tuple[TrainState, Metrics]:
        """-> (the state with a new codebook, or with all that ids depend on as it was, and a new discriminator; metrics)"""
        extra, metrics, params = dict(state.extra), {}, updates["kept"]
        if not self.keeps_ids:
            params["codebook"], statistics = self._update_codebook(state, *updates["codes"])
            extra |= statistics
            metrics["codes_used"] = once((extra["count"] >= self.config.codebook.dead_below).mean())
        if self.adversary is not None:
            done = state.step - 1  # the step has been advanced
            extra["discriminator"], more = self.adversary.learn(extra["discriminator"], done, *updates["pictures"])
            metrics |= more
        ema = None if state.ema is None else state.ema | params
        return state.replace(params=state.params | params, ema=ema, extra=extra), metrics

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
        metrics, *_, decoded, pixels = self._forward(params, frozen, batch, jnp.bool_(True))[1]
        if self.adversary is not None:
            share = _gradient_energy(jnp.clip(decoded, 0, 1)).mean() / _gradient_energy(pixels).mean()
            metrics |= {"gradient_share": once(share), "gradient_error": once(jnp.abs(1 - share))}
        return metrics

    def save(self, folder: Path, params: Params, dtype: DTypeLike, verify: bool) -> None:
        """The folder `vqvae` of a model directory."""
        save_component(folder / FOLDER, self.model_config, params, dtype, verify)


def _quiet_residuals(params):
    """Zeroes the second convolution of every residual block: training starts from a short, local network."""

    def quiet(path, value):
        names = [key.key for key in path]
        return jnp.zeros_like(value) if names[-2:] == ["conv2", "kernel"] else value

    return jax.tree_util.tree_map_with_path(quiet, params)
