"""The model that comes with the package: it loads, it is small, it edits; and, slowly, how well."""

import numpy as np
import pytest

from editmgt_jax import images
from editmgt_jax.evaluation.protocols import scenes
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.weights.loading import DEFAULT_MODEL

EXAMPLES = DEFAULT_MODEL.parents[2] / "examples"


@pytest.fixture(scope="module")
def pipe():
    return EditPipeline.from_pretrained()


def test_it_ships_in_less_than_36_mb():
    files = [path for path in DEFAULT_MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 36e6
    assert {path.parent.name for path in files} == {"editmgt", "vqvae", "text_encoder", "tokenizer", "scheduler"}


def test_it_edits_what_the_instruction_is_about(pipe):
    """On a picture of a pizza, left, and a cactus, right."""
    result = pipe(EXAMPLES / "pizza.png", "remove the pizza")
    relevance = result.relevance[0]
    middle = relevance.shape[1] // 2
    assert relevance[:, :middle].mean() > 1.1 * relevance[:, middle:].mean()  # weak: docs/default_model.md
    pictures = images.load(EXAMPLES / "pizza.png"), result.images[0]
    before, after = (np.asarray(picture, np.float32) for picture in pictures)
    left, right = np.abs(after - before).mean(axis=(0, 2)).reshape(2, -1).mean(axis=1)
    assert left > 3 * right


@pytest.mark.slow
def test_held_out_scenes():
    """What is expected of it on pairs that training never showed. About half an hour."""
    report, _ = scenes.evaluate(EditPipeline.from_pretrained())
    free = report["results"]["free"]
    assert report["reconstruction_psnr"] > 30
    assert free["all"]["success"] > 0.9
    assert free["all"]["changed_outside"] < free["all"]["vq_changed_outside"]
