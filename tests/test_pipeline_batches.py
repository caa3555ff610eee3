"""Seeds, batches and lists: a picture does not depend on what is decoded beside it."""

import numpy as np
import pytest
from test_pipeline import INSTRUCTION, picture

from editmgt_jax.batching import by_shape, map_batches
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


def test_lists_must_have_one_length():
    with pytest.raises(ValueError, match="one length"):
        broadcast(a=[1, 2], b=[1, 2, 3])
    with pytest.raises(ValueError, match="at least 1"):
        broadcast(a=[], b=1)
