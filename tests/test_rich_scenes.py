"""Rich scenes: what they add to the others, and that they keep every promise of `data.scenes`."""

import collections
import dataclasses
import pickle

import numpy as np
import pytest

from editmgt_jax.data.scenes import colours, drawing, patterns, phrases, sprites
from editmgt_jax.data.scenes import source as scenes
from editmgt_jax.data.scenes.variety import OBJECTS, Variety, variety
from editmgt_jax.evaluation.protocols import scenes_figures as protocol

SIZE, N_DRAWN, N_PLANNED = 96, 350, 5000
RICH = variety("rich")
LOCAL = ("add", "remove", "replace", "colour", "motion")


def source_of(split, **options):
    return scenes.SceneSource(scenes.SceneConfig(size=SIZE, split=split, objects="rich", seed=3, **options))


@pytest.fixture(scope="module")
def plans():
    """{split: [(plan, template, instruction)]}, none of them drawn."""
    return {
        split: [next(source_of(split).plan(index))[1:] for index in range(N_PLANNED)] for split in ("train", "heldout")
    }


@pytest.fixture(scope="module")
def drawn():
    """[(example, its plan)] of both splits."""
    return [
        source_of(split, categories=categories).drawn(index)
        for split in ("train", "heldout")
        for categories in (scenes.CATEGORIES, LOCAL)
        for index in range(N_DRAWN)
    ]


def names(scene):
    return [thing.name for thing in scene.things]


def test_an_example_depends_on_seed_split_and_index_alone():
    first = source_of("train")
    second = pickle.loads(pickle.dumps(first))
    forward = [first[index] for index in range(21)]
    for index in reversed(range(21)):
        again = second[index]
        assert all(np.array_equal(again[name], forward[index][name]) for name in again)


def test_outside_the_mask_nothing_changes(drawn):
    for example, _ in drawn:
        changed = (example["source"] != example["target"]).any(-1)
        assert not (changed & ~example["mask"]).any(), example["instruction"]


def test_every_edit_is_visible(drawn):
    for example, _ in drawn:
        clear = np.abs(example["source"].astype(int) - example["target"]).max(-1) > 20
        assert clear.mean() > 0.015, example["instruction"]


def test_kinds_and_novel_kinds():
    """About 130 kinds, a tenth of them novel, all of them pictures, and none named like a colour or a position."""
    known, pictures = {*RICH.names} - {*phrases.PRONOUNS}, sprites.catalogue()[0]
    assert len(known) + len(RICH.novel) == len(known | {*RICH.novel}) and {*sprites.NOVEL} < {*RICH.novel}
    assert 110 <= len(known) + len(RICH.novel) <= 150
    assert 0.08 < len(RICH.novel) / (len(known) + len(RICH.novel)) < 0.12
    assert known | {*RICH.novel} <= {*pictures}
    reserved = {*colours.NAMES, *colours.GREYS, *patterns.PATTERNS, "left", "middle", "right"}
    assert not reserved & {word for name in known for word in name.split()}


def test_training_never_shows_or_names_a_novel_object(plans):
    for plan, _, instruction in plans["train"]:
        assert not {*names(plan.source), *names(plan.target)} & {*RICH.novel}
        words = set(instruction.lower().strip(".?").split())
        assert not any({*name.split()} <= words for name in RICH.novel), instruction


def test_novel_objects_are_only_what_is_already_there(plans):
    seen = collections.Counter()
    for plan, _, _ in plans["heldout"]:
        novel = {*names(plan.source)} & {*RICH.novel}
        seen.update(novel)
        assert not ({*names(plan.target)} - {*names(plan.source)}) & {*RICH.novel}
    assert set(seen) == {*RICH.novel} and 0.06 < seen.total() / N_PLANNED < 0.13


def test_splits_share_no_combination(plans):
    triples = {
        split: {
            (plan.subject, plan.source.background, template)
            for plan, template, _ in some
            if plan.subject not in RICH.novel
        }
        for split, some in plans.items()
    }
    assert not triples["train"] & triples["heldout"]


def meant(words, scene):
    """The things of a scene that 'the left red cup' or 'the cup on the left' may mean."""
    said = words.split()
    slots = {slot for slot in ("left", "middle", "right") if slot in said} | ({"middle"} if "center" in said else set())
    looks = {*colours.NAMES, *colours.GREYS, *patterns.PATTERNS} & {*said}
    return [
        thing
        for thing in scene.things
        if {*thing.name.split()} <= {*said}
        and (not slots or thing.slot in slots)
        and (not looks or thing.seen_colour in looks)
    ]


def test_what_an_instruction_is_about_is_unambiguous(plans):
    several = collections.Counter()
    for plan, _, instruction in plans["train"] + plans["heldout"]:
        main = plan.source.things[0] if plan.source.things else None
        if plan.kind in ("add", "background", "style") or plan.slots["old"] in phrases.PRONOUNS.values():
            continue
        assert meant(plan.slots["old"], plan.source) == [main], instruction
        if names(plan.source).count(main.name) > 1:
            said = plan.slots["old"].split()
            several["colour" if not {"left", "middle", "center", "right"} & {*said} else "position"] += 1
    assert several["colour"] > 40 and several["position"] > 200


def test_another_of_a_kind_is_called_another(plans):
    found = 0
    for plan, _, instruction in plans["train"]:
        if plan.kind == "add":
            again = plan.facts["new"] in names(plan.source)
            assert again == ("another" in instruction.split()), instruction
            found += again
    assert found > 20


def test_left_of_is_left(plans):
    """Wherever things overlap, the one called left is still left of the others."""
    rank = {"left": 0, "middle": 1, "right": 2}
    for plan, *_ in plans["train"]:
        for scene in (plan.source, plan.target):
            if len(scene.things) > 1:
                across = [thing.slot for thing in sorted(scene.things, key=lambda thing: thing.x)]
                assert across == sorted(across, key=rank.get)


def test_instructions_are_short_and_hold_their_query(plans):
    for plan, _, instruction in plans["train"] + plans["heldout"]:
        assert 2 <= len(instruction.split()) <= phrases.MAX_WORDS
        assert phrases.mentions(instruction[0].lower() + instruction[1:], plan.query), instruction
    assert all(len(options) >= 10 for options in RICH.templates.values())


def test_words_fit_their_template():
    placed = {"new": "a cat", "where": ""}
    assert phrases.fits("add {new} {where}", placed) and not phrases.fits("{where}, add {new}", placed)
    assert not phrases.fits("{old} should {verb}", {"old": "him"}) and phrases.fits(
        "{old} should {verb}", {"old": "the man"}
    )


def test_only_requests_take_a_polite_form(plans):
    """'could you add a cat', never 'could you i need a cat' or 'could you the cat should be blue'."""
    polite = 0
    for _, template, instruction in plans["train"]:
        words = instruction.lower().split()
        asked = words[0] == "please" or words[1] == "you" or words[-1].strip(".") == "please"
        polite += asked
        assert not (asked and "should" in template or asked and template.startswith(("i ", "i'd ", "as ", "where "))), (
            instruction
        )
    assert 0.07 < polite / N_PLANNED < RICH.polite


def test_objects_are_large_and_not_cut_off(plans):
    for plan, *_ in plans["train"][:400]:
        for thing in plan.source.things + plan.target.things:
            layer = sprites.layer(thing.key, thing.side, thing.look)
            assert thing.side >= 0.36 * SIZE
            assert drawing.footprint(thing, SIZE, whole=False).sum() >= 0.97 * layer.body.sum(), thing


def test_numbers_of_objects_are_as_declared(plans):
    counts = collections.Counter(
        len(plan.source.things) for plan, *_ in plans["train"] if plan.kind in ("remove", "style")
    )
    shares = [counts[count] / counts.total() for count in (1, 2, 3)]
    np.testing.assert_allclose(shares, [RICH.one, RICH.two, 1 - RICH.one - RICH.two], atol=0.05)


def test_what_hides_an_edited_thing_is_not_in_the_mask(drawn):
    hidden = 0
    for example, plan in drawn:
        if plan.kind != "recolour" or len(plan.source.things) == 1:
            continue
        thing = plan.target.things[0]
        body = drawing.footprint(thing, SIZE, whole=False)
        in_front = drawing.opaque(drawing.in_front(thing, plan.target), SIZE)
        assert not (example["mask"] & in_front).any()
        assert (body & ~in_front).sum() >= RICH.visible * body.sum()
        hidden += (body & in_front).any()
    assert hidden >= 5


def test_a_new_colour_measures_as_its_name(drawn):
    """In any light. Patterns, black, white and gray have no measured name, so their facts say none."""
    found = collections.Counter()
    for example, plan in drawn:
        if example["category"] == "colour":
            wanted = example["facts"]["colour"]
            found[wanted] += 1
            if wanted is None:
                assert plan.target.things[0].look in (*colours.GREYS, *patterns.PATTERNS)
            else:
                assert scenes.name_colour(example["target"][example["mask"]]) == wanted
    assert {*colours.NAMES, None} == set(found)


def test_light_is_the_same_in_source_and_target_and_changes_the_picture(plans):
    lit = [plan for plan, *_ in plans["train"] if plan.source.light]
    assert all(plan.source.light == plan.target.light for plan, *_ in plans["train"])
    assert abs(len(lit) / N_PLANNED - RICH.light) < 0.03
    scene = lit[0].source
    plain = drawing.render(dataclasses.replace(scene, light=None), SIZE).astype(float)
    for light in drawing.LIGHTS:
        seen = drawing.render(dataclasses.replace(scene, light=light), SIZE)
        steps = (np.arange(SIZE) + 0.5) / SIZE - 0.5
        angle = light.towards * np.pi / 4
        bright = 1 + light.slope * (np.cos(angle) * steps + np.sin(angle) * steps[:, None])
        expected = np.minimum(255, plain * bright[..., None] * light.tint)
        assert np.abs(seen - expected).max() < 2.5


@pytest.mark.parametrize("pattern", patterns.PATTERNS)
@pytest.mark.parametrize("name", ["teapot", "car", "lemon"])
def test_patterns_mark_about_half_of_the_main_colour_and_nothing_else(name, pattern):
    rgba = sprites.picture(name)
    rgb, alpha = rgba[..., :3], rgba[..., 3]
    area, marked = colours.main_area(rgb, alpha), patterns.draw(rgb, alpha, pattern)
    changed = np.abs(marked.astype(int) - rgb).max(-1) > 20
    assert not changed[area == 0].any()
    assert 0.25 < changed[(area > 0.9) & (alpha > 200)].mean() < 0.65


@pytest.mark.parametrize(("name", "low", "high"), [("black", 0, 80), ("gray", 80, 190), ("white", 190, 255)])
def test_greys_are_grey_and_as_light_as_their_name(name, low, high):
    rgba = sprites.picture("teapot")
    painted = colours.recolour(rgba[..., :3], rgba[..., 3], name)[colours.main_area(rgba[..., :3], rgba[..., 3]) > 0.99]
    assert np.ptp(painted.astype(int), axis=-1).max() <= 2
    assert low < np.median(painted) < high
    assert scenes.name_colour(painted) is None


@pytest.mark.parametrize("count", [1, 57, 1000])
def test_pure_red_is_red(count):
    assert scenes.name_colour(np.full((count, 3), (255, 0, 0), np.uint8)) == "red"


def test_success_of_a_pattern_is_to_have_its_colours():
    pairs = protocol.Pairs(64, "train", 60, "rich", categories=("colour",))
    unnamed, patterned = (
        np.array(some)
        for some in zip(*((facts["colour"] is None, facts["kind"] == "pattern") for facts in pairs.facts), strict=True)
    )
    assert 0 < patterned.sum() < unnamed.sum() < len(pairs) and unnamed[patterned].all()
    assert protocol.succeeded(pairs, pairs.target, pairs.source, pairs.target).all()
    assert not protocol.succeeded(pairs, pairs.source, pairs.source, pairs.target).any()
    shuffled, dice = np.array(pairs.target), np.random.default_rng(0)
    for picture, mask in zip(shuffled, pairs.mask, strict=True):
        picture[mask] = dice.permutation(picture[mask])
    assert protocol.succeeded(pairs, shuffled, pairs.source, pairs.target)[patterned].all()


def test_choices_are_declared_once():
    assert all(isinstance(variety(objects), Variety) for objects in OBJECTS)
    with pytest.raises(ValueError, match="no name is novel"):
        dataclasses.replace(RICH, novel=("cat",))
    with pytest.raises(ValueError, match="at most all scenes"):
        dataclasses.replace(RICH, one=0.7, two=0.4)
