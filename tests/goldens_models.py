"""Golden checks of the models: forwards, tokenizer, a training step, whole edits. Run by `goldens.py`.

Sizes, blocks and grids are read from config.json and from the arrays.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from goldens_results import Result, compare, count_differing
from PIL import Image

from editmgt_jax.config import SchedulerConfig
from editmgt_jax.models.text import TextStates
from editmgt_jax.models.vq import ids_to_pixels, pixels_to_ids
from editmgt_jax.sampling import decode, localize
from editmgt_jax.sampling.edit import decode_edit, guided_model
from editmgt_jax.sampling.masking import training_time
from editmgt_jax.sampling.request import make_request
from editmgt_jax.sampling.settings import Settings
from editmgt_jax.training.cross_entropy import cross_entropy
from editmgt_jax.training.step import loss_weights
from editmgt_jax.weights import conversion
from editmgt_jax.weights.loading import load_mgt, load_vq


def _forward(model, params, golden, reference, strength, text_weights=None, layers=()):
    """-> (logits [B C H W], attention [B J R N] or None)"""

    @jax.jit
    def run(params, reference):
        condition = model.apply(
            {"params": params},
            golden["text_states"],
            golden["pooled_text"],
            golden["micro_conds"],
            reference,
            strength,
            method="condition",
        )
        return model.apply({"params": params}, golden["token_ids"], golden["timestep"], condition, text_weights, layers)

    logits, attention = run(params, reference)
    return jnp.moveaxis(logits, -1, 1), attention


def check_forwards(directory: Path) -> Iterator[Result]:
    """Logits of every stored forward, and the head-mean attention of its captured blocks."""
    for folder in sorted(path.parent for path in directory.glob("mgt*/config.json")):
        model, params = load_mgt(folder)
        for path in sorted(folder.glob("forward*.npz")):
            with np.load(path) as file:
                golden = dict(file)
            case = f"{folder.name}/{path.stem}"
            layers = tuple(int(block) for block in golden.get("capture_blocks", ()))
            batch, length = golden["text_states"].shape[:2]
            text_weights = jnp.broadcast_to(jnp.eye(length), (batch, length, length)) if layers else None
            logits, attention = _forward(
                model,
                params,
                golden,
                golden.get("reference_token_ids"),
                golden["reference_strength"],
                text_weights,
                layers,
            )
            yield compare(f"{case} logits", logits, golden["logits"], 2e-5)
            for index, block in enumerate(layers):
                expected = golden["text_to_image_head_mean"][:, index]
                yield compare(f"{case} attention, block {block}", attention[:, index], expected, 2e-6)


def check_vq(directory: Path) -> Iterator[Result]:
    """Latents, ids and decoded pixels."""
    for folder in sorted(path.parent for path in directory.glob("vq*/config.json")):
        model, params = load_vq(folder)
        with np.load(folder / "encode_decode.npz") as file:
            golden = dict(file)
        pixels = jnp.moveaxis(golden["pixels"], 1, -1)
        latents = jax.jit(partial(model.apply, method="latents"))({"params": params}, pixels)
        decoded = jax.jit(partial(model.apply, method="decode"))({"params": params}, golden["decode_token_ids"])
        ids = model.apply({"params": params}, latents, method="quantize")
        yield compare(f"{folder.name} latents", jnp.moveaxis(latents, -1, 1), golden["latents"], 2e-4)
        yield count_differing(f"{folder.name} ids", ids, golden["token_ids"])
        yield compare(f"{folder.name} decoded pixels", jnp.moveaxis(decoded, -1, 1), golden["decoded"], 2e-4)


def check_training_step(directory: Path) -> Iterator[Result]:
    """Loss, and the gradient norm of every released parameter, relative."""
    for path in sorted(directory.glob("mgt*/training_step.npz")):
        model, params = load_mgt(path.parent)
        with np.load(path) as file:
            golden = dict(file)
        batch = len(golden["mask"])

        def loss(params, golden=golden, model=model, batch=batch):
            condition = model.apply(
                {"params": params},
                golden["text_states"],
                golden["pooled_text"],
                golden["micro_conds"],
                golden.get("reference_token_ids"),
                method="condition",
            )
            time = training_time(golden["mask_prob"], "released")
            logits = model.apply({"params": params}, golden["input_token_ids"], time, condition)[0]
            targets, mask = (x.reshape(batch, -1) for x in (golden["target_token_ids"], golden["mask"]))
            losses, _ = cross_entropy(logits.reshape(batch, -1, logits.shape[-1]), targets)
            return (losses * loss_weights(mask)).sum()

        value, gradients = jax.jit(jax.value_and_grad(loss))(params)
        case = f"{path.parent.name}/training_step"
        yield compare(f"{case} loss", value, golden["loss"], 2e-5)
        norms = json.loads((path.parent / "training_step_grad_norms.json").read_text())
        ours = {key: np.linalg.norm(value) for key, value in conversion.to_released(gradients, model.config).items()}
        yield count_differing(f"{case} parameters with a gradient norm", sorted(ours), sorted(norms))
        worst = max(norms, key=lambda key: abs(ours[key] - norms[key]) / max(norms[key], 1e-12))
        error = abs(ours[worst] - norms[worst]) / max(norms[worst], 1e-12)
        yield Result(f"{case} gradient norms, worst {worst}", float(error), 1e-4)


def _edit_request(golden, model, factor):
    """A stored edit as the product decodes it. -> (Request, StaticSettings)"""
    steps, batch = golden["tokens"].shape[:2]
    scheduler = SchedulerConfig(mask_token_id=model.config.mask_token_id)
    settings = Settings.resolve(
        scheduler,
        model.config.num_blocks,
        steps=steps,
        guidance_scale=float(golden["guidance_scale"]),
        reference_strength=float(golden["reference_strength"]),
        hold_threshold=float(golden.get("threshold", 0)),
        layers=tuple(int(block) for block in golden.get("capture_blocks", (0,))),
        sampling_temperature=1.0,
        temperature=(2.0, 0.0),
        record=True,
    )
    return make_request(
        settings,
        scheduler,
        factor,
        *(TextStates(golden[f"{side}text_states"], golden[f"{side}pooled_text"]) for side in ("", "negative_")),
        reference=golden["reference_token_ids"],
        keys=decode.Noise(*(golden[name].reshape(steps, batch, -1) for name in ("uniform", "gumbel"))),
    )


@partial(jax.jit, static_argnames=("model", "static"))
def _forced_step(params, request, tokens, step, draws, model, static):
    """One step from given tokens [B L]. -> (tokens [B L], attention [B J N])"""
    batch = len(tokens)
    predict = decode.with_region_hold(
        guided_model({"params": params}, request, model, static),
        lambda aux: aux.keep.reshape(batch, -1),
        request.reference.reshape(batch, -1),
    )
    state = decode.DecodeState(tokens, jnp.ones(batch))
    state, prediction = decode.decode_step(predict, state, step, draws, model.config.mask_token_id)
    return state.tokens, prediction.aux.attention


def check_edits(directory: Path) -> Iterator[Result]:
    """Whole edits: share of tokens that differ at each step, teacher-forced and free-running; relevance; the picture."""
    vq, vq_params = load_vq(directory / "vqvae")
    pixels = jnp.asarray(np.asarray(Image.open(directory / "reference_image.png").convert("RGB")), jnp.float32) / 255
    reference_ids = pixels_to_ids(vq_params, pixels[None], vq)
    for path in sorted(directory.glob("edit_*.npz")):
        with np.load(path) as file:
            golden = dict(file)
        yield count_differing(f"{path.stem} reference ids", reference_ids, golden["reference_token_ids"])
        model, params = load_mgt(directory / f"mgt_{path.stem.split('_')[1]}")
        request, static = _edit_request(golden, model, vq.config.factor)
        steps, batch = golden["tokens"].shape[:2]
        expected = golden["tokens"].reshape(steps, batch, -1)
        free = decode_edit({"params": params}, request, model, static).step_tokens.reshape(expected.shape)
        mgt_grid = tuple(side // model.config.stride for side in golden["tokens"].shape[2:])
        for step in range(steps):
            before = expected[step - 1] if step else request.start.reshape(batch, -1)
            at, draws = (jax.tree.map(lambda x, i=step: x[i], tree) for tree in (request.knobs.schedule, request.keys))
            tokens, attention = _forced_step(params, request, before, at, draws, model, static)
            for kind, ids in (("forced", tokens), ("free", free[step])):
                differing = float(np.mean(np.asarray(ids) != expected[step]))
                yield Result(f"{path.stem} step {step}, {kind}: share differing", differing, 1e-3)
            if "smoothed_scores" in golden:
                relevance, smoothed = localize.localize(attention, mgt_grid), golden["smoothed_scores"][step]
                yield compare(f"{path.stem} step {step} relevance", relevance.reshape(smoothed.shape), smoothed, 1e-5)
        picture = np.asarray(ids_to_pixels(vq_params, golden["tokens"][-1], vq))[0]
        picture = np.round(picture * 255).astype(np.uint8)
        side = golden["image_64"].shape[1::-1]
        small = np.asarray(Image.fromarray(picture).resize(side, Image.BOX))
        yield compare(f"{path.stem} picture, levels of 255", small, golden["image_64"], 1)


# Each check, and the files that it reads.
MODEL_CHECKS = {
    check_forwards: "mgt*/forward*.npz",
    check_vq: "vq*/encode_decode.npz",
    check_training_step: "mgt*/training_step.npz",
    check_edits: "edit_*.npz",
}
