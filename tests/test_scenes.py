"""Procedural edits: what the source promises, checked on a few hundred drawn pairs and a few thousand plans."""

import collections
import hashlib
import pickle

import numpy as np
import pytest

from editmgt_jax.data.scenes import drawing, phrases, sprites, styles
from editmgt_jax.data.scenes import source as scenes

N_DRAWN, N_PLANNED = 420, 4000


def drawn(split, **options):
    source = scenes.SceneSource(scenes.SceneConfig(split=split, seed=3, **options))
    return [source[index] for index in range(N_DRAWN)]


@pytest.fixture(scope="module")
def train():
    return drawn("train")


@pytest.fixture(scope="module")
def heldout():
    return drawn("heldout")


@pytest.fixture(scope="module")
def both(train, heldout):
    return train + heldout


def planned(split, seed, objects="core"):
    """(plan, template, instruction) of many examples, none of them drawn."""
    source = scenes.SceneSource(scenes.SceneConfig(split=split, seed=seed, objects=objects))
    return [next(source.plan(index))[1:] for index in range(N_PLANNED)]


@pytest.fixture(scope="module")
def plans():
    return {split: planned(split, seed=5) for split in scenes.SPLITS}


def names(scene):
    return [thing.name for thing in scene.things]


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_an_example_depends_on_seed_split_and_index_alone():
    config = scenes.SceneConfig(seed=11)
    first = scenes.SceneSource(config)
    second = pickle.loads(pickle.dumps(first))
    forward = [first[index] for index in range(20)]
    for index in reversed(range(20)):
        assert same(second[np.int64(index)], forward[index])
    others = (scenes.SceneConfig(seed=12), scenes.SceneConfig(seed=11, split="heldout"))
    for other in others:
        assert not any(same(scenes.SceneSource(other)[index], forward[index]) for index in range(20))


def test_an_example_is_golden():
    """The words of the first examples, so that a change of the draws does not go unnoticed."""
    source = scenes.SceneSource(scenes.SceneConfig())
    assert [source[index]["instruction"] for index in range(3)] == [
        "draw a crab",
        "remove the red pineapple",
        "Please replace the carrot with a bicycle.",
    ]


@pytest.mark.parametrize(("objects", "digest"), [("core", "61d59b553d3af1f4"), ("all", "e9b6446cc54966e4")])
def test_plans_are_golden(objects, digest):
    """What the shipped model was trained and is evaluated on: scenes to the pixel, and their words."""

    def described(scene):
        things = [(t.key, t.look, t.side, t.x, t.y, t.flip, t.slot) for t in scene.things]
        assert scene.light is None
        return scene.background, scene.direction, scene.shift, scene.flip, things

    source = scenes.SceneSource(scenes.SceneConfig(objects=objects, seed=1))
    found = []
    for index in range(140):
        category, plan, _, words = next(source.plan(index))
        found.append((category, words, plan.query, described(plan.source), described(plan.target)))
    assert hashlib.sha256(repr(found).encode()).hexdigest()[:16] == digest


def test_length_and_range():
    source = scenes.SceneSource(scenes.SceneConfig(length=7))
    assert len(source) == len(list(source)) == 7
    with pytest.raises(IndexError, match=r"\[0, 7\), got 7"):
        source[7]


@pytest.mark.parametrize("categories", [scenes.CATEGORIES, ("motion", "add", "style"), ("colour",)])
def test_categories_are_even(categories):
    source = scenes.SceneSource(scenes.SceneConfig(categories=categories))
    for stride in (1, 3, 7):  # whichever share of the examples a host takes
        count = collections.Counter(next(source.plan(stride * index))[0] for index in range(42 * len(categories)))
        assert count == dict.fromkeys(categories, 42)


@pytest.mark.parametrize("stride", [1, 3, 7])
def test_categories_come_as_often_as_their_weights(stride):
    source = scenes.SceneSource(
        scenes.SceneConfig(categories=("add", "style", "motion", "colour"), weights=(3, 0, 2, 0.5))
    )
    first = 77_777  # wherever one begins
    count = collections.Counter(next(source.plan(first + stride * index))[0] for index in range(220))
    assert set(count) == {"add", "motion", "colour"}
    for name, wanted in (("add", 120), ("motion", 80), ("colour", 20)):
        assert abs(count[name] - wanted) <= 4


def test_every_changed_pixel_is_in_the_mask(both):
    for example in both:
        changed = (example["source"] != example["target"]).any(-1)
        assert not (changed & ~example["mask"]).any(), example["instruction"]


def test_every_edit_is_visible(both):
    for example in both:
        clear = np.abs(example["source"].astype(int) - example["target"]).max(-1) > 20
        assert clear.mean() > 0.01, example["instruction"]


def test_masks_are_tight(both):
    """Most of the mask of an object edit changes, and no object edit claims the whole picture."""
    for example in both:
        if example["category"] not in ("style", "background"):
            assert example["mask"].mean() < 0.7
    local = [e for e in both if e["category"] in ("add", "remove", "replace", "colour")]
    shares = [(e["source"] != e["target"]).any(-1)[e["mask"]].mean() for e in local]
    assert np.mean(shares) > 0.9


def test_splits_share_no_combination(plans):
    triples = {
        split: {
            (plan.subject, plan.source.background, template)
            for plan, template, _ in plans[split]
            if plan.subject not in sprites.NOVEL
        }
        for split in plans
    }
    assert not triples["train"] & triples["heldout"]
    assert min(map(len, triples.values())) > N_PLANNED / 3


@pytest.mark.parametrize("objects", ["core", "all"])
def test_training_never_shows_a_novel_object(plans, objects):
    examples = plans["train"] if objects == "core" else planned("train", seed=6, objects=objects)
    for plan, _, instruction in examples:
        assert not {*names(plan.source), *names(plan.target)} & {*sprites.NOVEL}
        assert not any(name in instruction for name in sprites.NOVEL)


def test_novel_objects_are_only_what_is_already_there(plans):
    novel = 0
    for plan, _, _ in plans["heldout"]:
        novel += bool({*names(plan.source)} & {*sprites.NOVEL})
        assert not ({*names(plan.target)} - {*names(plan.source)}) & {*sprites.NOVEL}
    assert 0.07 < novel / N_PLANNED < 0.13


def test_facts_say_what_is_novel(both):
    for example in both:
        facts = example["facts"]
        assert facts["novel"] == any(name in sprites.NOVEL for name in facts["objects"])


def test_a_new_colour_measures_as_its_name():
    source = scenes.SceneSource(scenes.SceneConfig(categories=("colour",), seed=2))
    right = 0
    for index in range(200):
        example = source[index]
        facts, mask = example["facts"], example["mask"]
        assert facts["colour"] in example["instruction"] and facts["colour"] != facts["colour_before"]
        right += scenes.name_colour(example["target"][mask]) == facts["colour"]
    assert right >= 0.97 * 200


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((230, 20, 30), "red"),
        ((250, 140, 20), "orange"),
        ((250, 220, 30), "yellow"),
        ((30, 200, 60), "green"),
        ((30, 220, 230), "cyan"),
        ((30, 90, 240), "blue"),
        ((140, 40, 230), "purple"),
        ((250, 130, 210), "pink"),
        ((120, 70, 30), "brown"),
        ((128, 128, 128), None),
        ((0, 0, 0), None),
    ],
)
def test_plain_colours_have_their_names(rgb, name):
    assert scenes.name_colour(np.full((50, 3), rgb, np.uint8), np.ones(50)) == name


def test_instructions_are_short_unambiguous_and_hold_their_query(both, plans):
    for example in both:
        assert phrases.mentions(example["instruction"], example["query"])
    for plan, _, instruction in plans["train"] + plans["heldout"]:
        assert 2 <= len(instruction.split()) <= phrases.MAX_WORDS
        assert len(set(names(plan.source))) == len(plan.source.things)
    assert all(len(options) >= 5 for options in phrases.TEMPLATES.values())


def test_corpus_is_the_instructions():
    config = scenes.SceneConfig(seed=4)
    corpus = list(scenes.instruction_corpus(300, config))
    source = scenes.SceneSource(config)
    agree = sum(source[index]["instruction"] == corpus[index] for index in range(60))
    assert len(corpus) == 300 and agree >= 50  # the rest were redrawn because the edit could not be seen


def test_objects_are_large_and_not_cut_off(both):
    source = scenes.SceneSource(scenes.SceneConfig())
    for index in range(200):
        _, plan, *_ = next(source.plan(index))
        for thing in plan.source.things + plan.target.things:
            layer = sprites.layer(thing.key, thing.side, thing.look)
            assert thing.side >= 0.4 * 64
            assert drawing.footprint(thing, 64, whole=False).sum() >= 0.97 * layer.body.sum(), thing


@pytest.mark.parametrize("size", [96, 128, 256])
def test_other_sizes(size):
    source = scenes.SceneSource(scenes.SceneConfig(size=size, objects="all"))
    for index in range(7):
        example = source[index]
        assert example["source"].shape == example["target"].shape == (size, size, 3)
        assert example["source"].dtype == np.uint8 and example["mask"].dtype == bool
        assert example["mask"].shape == (size, size)
        assert not ((example["source"] != example["target"]).any(-1) & ~example["mask"]).any()


def test_every_style_has_words_and_a_picture():
    assert set(styles.STYLES) == set(phrases.STYLES)
    picture = scenes.SceneSource(scenes.SceneConfig())[0]["source"]
    for name in styles.STYLES:
        out = styles.apply(name, picture)
        assert out.shape == picture.shape and out.dtype == np.uint8


def test_styles_do_what_their_names_say():
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    luma = picture @ np.array([0.299, 0.587, 0.114])
    drawn = {name: styles.apply(name, picture).astype(int) for name in styles.STYLES}
    np.testing.assert_allclose(drawn["grayscale"], np.repeat(luma[..., None], 3, -1), atol=0.51)
    np.testing.assert_array_equal(drawn["negative"], 255 - picture.astype(int))
    red, green, blue = np.moveaxis(drawn["sepia"], -1, 0)
    assert (red >= green).all() and (green >= blue).all() and (red - blue).max() > 60  # brown, whatever it was
    assert np.corrcoef(green.ravel(), luma.ravel())[0, 1] > 0.99
    assert set(np.unique(drawn["poster"])) <= {0, 127, 128, 255} and np.ptp(drawn["poster"]) > 100
    blocks = drawn["pixels"].reshape(16, 2, 16, 2, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    np.testing.assert_allclose(blocks[:, 0, :, 0], picture.reshape(16, 2, 16, 2, 3).mean((1, 3)), atol=0.51)
    assert (np.ptp(drawn["sketch"], axis=-1) == 0).all() and drawn["sketch"].mean() > luma.mean()


def test_preview_shows_source_target_and_mask():
    grid = np.asarray(scenes.preview(scenes.SceneConfig(size=32), rows=1, columns=1))
    example = scenes.SceneSource(scenes.SceneConfig(size=32))[0]
    tiles = [grid[14:78:2, left : left + 64 : 2] for left in (0, 65, 130)]
    np.testing.assert_array_equal(tiles[0], example["source"])
    np.testing.assert_array_equal(tiles[1], example["target"])
    np.testing.assert_array_equal(tiles[2][..., 0] > 0, example["mask"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8}, "at least 32 pixels, got 8"),
        ({"split": "test"}, "split must be one of .* got 'test'"),
        ({"objects": "some"}, "objects must be one of .* got 'some'"),
        ({"seed": -1}, "seed must be >= 0"),
        ({"length": 0}, "length >= 1"),
        ({"categories": ("add", "explode")}, "categories must be distinct.*explode"),
        ({"categories": ()}, "categories must be distinct"),
        ({"categories": ("add", "add")}, "categories must be distinct"),
        (
            {"categories": ("add",), "weights": (1, 2)},
            r"weights must be one of at least 0 for each of \('add',\).*got \(1, 2\)",
        ),
        ({"categories": ("add",), "weights": (-1,)}, "weights must be one of at least 0"),
        ({"categories": ("add",), "weights": (0,)}, "not all 0"),
    ],
)
def test_bad_configurations_say_why(options, message):
    with pytest.raises(ValueError, match=message):
        scenes.SceneConfig(**options)


def test_distractors_show_another_object_in_the_same_place():
    source = scenes.SceneSource(scenes.SceneConfig(seed=3, categories=("add", "replace")))
    for index in range(6):
        example, others = source[index], source.distractors(index, 4)
        assert others.shape == (4, *example["target"].shape)
        np.testing.assert_array_equal(others, source.distractors(index, 4))
        pictures = {picture.tobytes() for picture in [*others, example["target"], example["source"]]}
        assert len(pictures) == 6
        rows, columns = np.nonzero((others != example["target"]).any(axis=(0, -1)))
        centre = [axis.mean() for axis in np.nonzero(example["mask"])]
        assert abs(rows.mean() - centre[0]) < 16 and abs(columns.mean() - centre[1]) < 16
    with pytest.raises(ValueError, match="only add and replace"):
        scenes.SceneSource(scenes.SceneConfig(categories=("style",))).distractors(0, 2)
