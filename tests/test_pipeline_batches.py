"""Seeds, batches and lists: a picture does not depend on what is decoded beside it."""

import numpy as np
import pytest
from PIL import Image
from test_pipeline import INSTRUCTION, picture

from editmgt_jax.batching import by_shape, map_batches, power_of_two
from editmgt_jax.models.prompts import PromptError
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.sampling.orders import broadcast


def test_seed_reproduces_and_matters(pipe):
    first, again, other = (pipe(picture(), INSTRUCTION, seed=seed).token_ids for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_picture_i_does_not_depend_on_how_many_or_on_the_batch(pipe, tiny_model):
    several = pipe(picture(), INSTRUCTION, num_images=3)
    assert len({ids.tobytes() for ids in several.token_ids}) == 3
    np.testing.assert_array_equal(pipe(picture(), INSTRUCTION).token_ids[0], several.token_ids[0])
    np.testing.assert_array_equal(pipe(picture(), INSTRUCTION, num_images=2).token_ids, several.token_ids[:2])
    chunked = EditPipeline(pipe.model, batch_size=2)(picture(), INSTRUCTION, num_images=3)
    np.testing.assert_array_equal(chunked.token_ids, several.token_ids)
    for a, b in zip(chunked.images, several.images, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_lists_equal_one_by_one(pipe):
    pictures = [picture((32, 32)), picture((61, 47), 1), picture((32, 32), 2)]
    instructions = ["make the car red", "remove the tree", "add a small blue bird"]
    queries = ["car", None, "bird"]
    together = pipe(pictures, instructions, query=queries)
    for result, image, instruction, query in zip(together, pictures, instructions, queries, strict=True):
        alone = pipe(image, instruction, query=query)
        np.testing.assert_array_equal(result.token_ids, alone.token_ids)
        np.testing.assert_array_equal(result.source_ids, alone.source_ids)
        np.testing.assert_allclose(result.relevance, alone.relevance, atol=1e-5)
    assert len(pipe(picture(), instructions[:2])) == 2
    assert len(pipe(pictures, INSTRUCTION)) == 3


def test_separate_calls_together_are_what_they_are_alone(pipe):
    """Each has its own settings, seed, mask and negative prompt; one that is wrong has its error."""
    calls = [
        {"image": picture(), "instruction": INSTRUCTION, "seed": 3, "guidance_scale": 2.0, "steps": 4},
        {
            "image": picture((32, 32), 1),
            "instruction": "remove the tree",
            "steps": 4,
            "hold_threshold": 0.4,
            "num_images": 2,
        },
        {"image": picture(), "instruction": " "},
        {
            "image": picture((61, 47), 2),
            "instruction": INSTRUCTION,
            "steps": 2,
            "query": "car",
            "negative_prompt": "a bird",
        },
        {
            "image": picture(),
            "instruction": INSTRUCTION,
            "steps": 4,
            "mask": Image.linear_gradient("L").resize((32, 32)),
        },
        {"image": picture(), "instruction": [INSTRUCTION]},
    ]
    found = pipe.together(calls)
    assert "must say what to change" in str(found[2]) and "one instruction each" in str(found[5])
    for number in (0, 1, 3, 4):
        alone = pipe(**calls[number])
        np.testing.assert_array_equal(found[number].token_ids, alone.token_ids)
        for one, other in zip(found[number].images, alone.images, strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    assert pipe.together([]) == [] and isinstance(pipe.together(calls[2:3])[0], PromptError)


def test_encoded_instruction_is_the_string(pipe):
    encoded = pipe.encode(INSTRUCTION)
    assert pipe.encode(INSTRUCTION) is encoded
    a, b = pipe(picture(), INSTRUCTION, query="car"), pipe(picture(), encoded, query="car")
    np.testing.assert_array_equal(a.token_ids, b.token_ids)
    np.testing.assert_array_equal(a.relevance, b.relevance)


def test_items_of_one_shape_go_together_and_the_last_batch_is_filled_up():
    work = [(0, 4), (1, 8), (2, 4), (3, 4), (4, 8), (5, 4)]
    found = list(by_shape(work, lambda item: item[1], lambda shape: 3))
    assert found == [(4, [(0, 4), (2, 4), (3, 4)], 3), (4, [(5, 4)] * 3, 1), (8, [(1, 8), (4, 8)], 2)]
    doubled = map_batches(lambda batch: 2 * batch, np.arange(7), 3)
    np.testing.assert_array_equal(doubled, 2 * np.arange(7))


def test_batches_of_powers_of_two():
    assert [power_of_two(n) for n in (1, 2, 3, 4, 5, 8, 9)] == [1, 2, 4, 4, 8, 8, 16]
    found = list(by_shape("abcde", lambda _: 0, lambda _: 4, power_of_two))
    assert found == [(0, ["a", "b", "c", "d"], 4), (0, ["e", "e", "e", "e"], 1)]


def test_lists_must_have_one_length():
    with pytest.raises(ValueError, match="one length"):
        broadcast(a=[1, 2], b=[1, 2, 3])
    with pytest.raises(ValueError, match="at least 1"):
        broadcast(a=[], b=1)
