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

from editmgt_jax import convert, decode, localize
from editmgt_jax.loading import load_mgt, load_vq
from editmgt_jax.masking import decode_schedule
from editmgt_jax.training.mgt_task import model_time
from editmgt_jax.training.step import masked_cross_entropy


def _forward(model, params, golden, reference, strength, rows=None, layers=()):
    """-> (logits [B C H W], relevance [B layers R N] or None)"""

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
        return model.apply({"params": params}, golden["token_ids"], golden["timestep"], condition, rows, layers)

    logits, relevance = run(params, reference)
    return jnp.moveaxis(logits, -1, 1), relevance


def check_forwards(directory: Path) -> Iterator[Result]:
    """Logits of every stored forward, and the head-mean relevance of its captured blocks."""
    for folder in sorted(path.parent for path in directory.glob("mgt*/config.json")):
        model, params = load_mgt(folder)
        for path in sorted(folder.glob("forward*.npz")):
            with np.load(path) as file:
                golden = dict(file)
            case = f"{folder.name}/{path.stem}"
            layers = tuple(int(block) for block in golden.get("capture_blocks", ()))
            batch, length = golden["text_states"].shape[:2]
            rows = jnp.broadcast_to(jnp.eye(length), (batch, length, length)) if layers else None
            logits, relevance = _forward(
                model, params, golden, golden.get("reference_token_ids"), golden["reference_strength"], rows, layers
            )
            yield compare(f"{case} logits", logits, golden["logits"], 2e-5)
            for index, block in enumerate(layers):
                expected = golden["text_to_image_head_mean"][:, index]
                yield compare(f"{case} relevance, block {block}", relevance[:, index], expected, 2e-6)


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
                golden["reference_token_ids"],
                method="condition",
            )
            time = model_time(golden["mask_prob"], "released")
            logits = model.apply({"params": params}, golden["input_token_ids"], time, condition)[0]
            flat = (x.reshape(batch, -1) for x in (golden["target_token_ids"], golden["mask"]))
            return masked_cross_entropy(logits.reshape(batch, -1, logits.shape[-1]), *flat)

        value, gradients = jax.jit(jax.value_and_grad(loss))(params)
        case = f"{path.parent.name}/training_step"
        yield compare(f"{case} loss", value, golden["loss"], 2e-5)
        norms = json.loads((path.parent / "training_step_grad_norms.json").read_text())
        ours = {key: np.linalg.norm(value) for key, value in convert.to_released(gradients, model.config).items()}
        yield count_differing(f"{case} parameters with a gradient norm", sorted(ours), sorted(norms))
        worst = max(norms, key=lambda key: abs(ours[key] - norms[key]) / max(norms[key], 1e-12))
        error = abs(ours[worst] - norms[worst]) / max(norms[worst], 1e-12)
        yield Result(f"{case} gradient norms, worst {worst}", float(error), 1e-4)


def _edit_predict(model, params, golden):
    """The prediction function of a whole edit: guidance, relevance of the conditional half, region hold."""
    grid = golden["reference_token_ids"].shape[1:]
    mgt_grid = tuple(side // model.config.stride for side in grid)
    reference = golden["reference_token_ids"].reshape(1, -1)
    threshold = float(golden["threshold"]) if "smoothed_scores" in golden else 0.0
    layers = tuple(int(block) for block in golden["capture_blocks"]) if threshold else ()
    length = golden["text_states"].shape[1]
    factor = 16  # of the released tokenizer: these edits are of 16 pixels a token
    micro = jnp.array([[grid[1] * factor, grid[0] * factor, 0, 0, 6.0]] * 2)
    condition = model.apply(
        {"params": params},
        jnp.concatenate([golden["negative_text_states"], golden["text_states"]]),
        jnp.concatenate([golden["negative_pooled_text"], golden["pooled_text"]]),
        micro,
        jnp.concatenate([golden["reference_token_ids"]] * 2),
        golden["reference_strength"],
        method="condition",
    )
    rows = jnp.full((1, 1, length), 1 / length) if layers else None

    def predict_both(tokens, row):
        logits, relevance = model.apply({"params": params}, tokens.reshape(2, *grid), row.time, condition, rows, layers)
        scores = None
        if layers:
            scores = localize.localize(relevance, mgt_grid)
        return decode.Prediction(logits.reshape(2, -1, logits.shape[-1]), aux=scores)

    def keep_of(scores):
        return localize.hold_mask(localize.upsample(scores, grid), threshold).reshape(1, -1)

    predict = decode.with_guidance(predict_both, golden["guidance_scale"])
    return decode.with_region_hold(predict, keep_of, reference) if layers else predict


def check_edits(directory: Path) -> Iterator[Result]:
    """Whole edits: share of tokens that differ at each step, teacher-forced and free-running; scores; the picture."""
    vq, vq_params = load_vq(directory / "vqvae")
    pixels = jnp.asarray(np.asarray(Image.open(directory / "reference_image.png").convert("RGB")), jnp.float32) / 255
    reference_ids = jax.jit(partial(vq.apply, method="encode"))({"params": vq_params}, pixels[None])
    for path in sorted(directory.glob("edit_*.npz")):
        with np.load(path) as file:
            golden = dict(file)
        yield count_differing(f"{path.stem} reference ids", reference_ids, golden["reference_token_ids"])
        model, params = load_mgt(directory / f"mgt_{path.stem.split('_')[1]}")
        mask_id, steps = model.config.mask_token_id, len(golden["tokens"])
        expected = golden["tokens"].reshape(steps, 1, -1)
        start = jnp.full_like(expected[0], mask_id)
        schedule = decode_schedule(steps)
        noise = decode.Noise(golden["uniform"][:, None], golden["gumbel"][:, None])

        @jax.jit
        def free(golden=golden, model=model, params=params, start=start, schedule=schedule, noise=noise):
            predict = _edit_predict(model, params, golden)
            return decode.decode(predict, start, schedule, noise, model.config.mask_token_id)

        @jax.jit
        def forced(tokens, row, draws, golden=golden, model=model, params=params):
            state = decode.DecodeState(tokens, jnp.ones(1))
            predict = _edit_predict(model, params, golden)
            state, prediction = decode.decode_step(predict, state, row, draws, model.config.mask_token_id)
            return state.tokens, prediction.aux

        decoded = free()
        for step in range(steps):
            row, draws = (jax.tree.map(lambda x, step=step: x[step], tree) for tree in (schedule, noise))
            tokens, scores = forced(expected[step - 1] if step else start, row, draws)
            for kind, ids in (("forced", tokens), ("free", decoded.steps[step])):
                differing = float(np.mean(np.asarray(ids) != expected[step]))
                yield Result(f"{path.stem} step {step}, {kind}: share differing", differing, 1e-3)
            if scores is not None:
                smoothed = golden["smoothed_scores"][step]
                yield compare(f"{path.stem} step {step} scores", scores.reshape(smoothed.shape), smoothed, 1e-5)
        picture = jax.jit(partial(vq.apply, method="decode"))({"params": vq_params}, golden["tokens"][-1])[0]
        picture = np.round(np.clip(np.asarray(picture), 0, 1) * 255).astype(np.uint8)
        side = golden["image_64"].shape[1::-1]
        small = np.asarray(Image.fromarray(picture).resize(side, Image.BOX))
        yield compare(f"{path.stem} picture, levels of 255", small, golden["image_64"], 1)


MODEL_CHECKS = [check_forwards, check_vq, check_training_step, check_edits]
