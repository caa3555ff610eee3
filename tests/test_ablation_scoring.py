"""Records and their scores: against `localize` one map at a time, numpy, and damaged files."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import planted_records
import pytest

from editmgt_jax.ablation import choices, measures, records, scoring, sets
from editmgt_jax.ablation.config import Score
from editmgt_jax.ablation.records import RecordError, Records
from editmgt_jax.sampling import localize

STRENGTH = (0, 0, 2, 2, 0, 0)
VIEW = choices.View("text_to_image", "all", "rate 1.0", "mean", "adaptive", "bicubic")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    # float32: means of float16 have ties, which another order of the sum breaks otherwise
    return planted_records.write(tmp_path_factory.mktemp("run") / "records", STRENGTH, dtype="float32")


def slow_map(planted, view, layers, example, seed):
    """The map of one set of one example, by what a decode calls. -> [H W]"""
    m = planted.manifest
    raw = [
        planted.maps(seed, moment, signal, view.head, view.group, slice(example, example + 1))
        for moment, signal in itertools.product(view.moments, view.signals)
    ]
    attention = np.mean(raw, axis=0)[:, list(layers)]  # [1 J N]
    bicubic = view.upsampling == "bicubic"
    found = localize.localize(jnp.asarray(attention), m.grid, m.token_grid if bicubic else None, kind=view.filter)[0]
    return np.asarray(found) if bicubic else np.kron(np.asarray(found), np.ones((2, 2), np.float32))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"filter": "none", "upsampling": "nearest"},
        {"filter": "gaussian", "group": "query"},
        {"signal": "text_to_image+image_to_text", "window": "rate 1.0+rate 0.5"},
    ],
)
def test_scores_are_those_of_one_map_at_a_time(planted, changes):
    view = dataclasses.replace(VIEW, **changes)
    some = sets.named_sets(("singles", "1-3"), 6, (0,))
    scored = scoring.Scorer(planted, view).score(some, ("selected", "0.4"))
    truth = planted.truth()
    for z, example, seed in itertools.product((2, 6), (0, 1, 7, 19), (0, 1)):
        relevance = slow_map(planted, view, some[z].blocks, example, seed).reshape(1, -1)
        keys = np.asarray(measures.to_keys(relevance, truth[example]))
        ranked = measures.ranked(keys, int(truth[example].sum()))
        expected = measures.rank_measures(ranked)
        for name, value in expected.items():
            assert scored.columns[name][z, 0, example, seed] == pytest.approx(value[0], abs=1e-5), name
        for t, threshold in enumerate((scored.columns["threshold"][z, 0, 0, 0], 0.4)):
            for name, value in measures.threshold_measures(measures.counts(ranked, np.float32([threshold]))).items():
                assert scored.columns[name][z, t, example, seed] == pytest.approx(value[0, 0], abs=1e-6), name


def test_the_threshold_is_the_best_of_the_even_examples(planted):
    scorer, some = scoring.Scorer(planted, VIEW), sets.named_sets(("2-3",), 6, (0,))
    every = scorer.score(some, tuple(map(str, measures.GRID)))
    means = every.columns["iou"][0, :, ::2].mean(axis=(1, 2))
    chosen = scorer.score(some, ("selected",)).columns
    assert chosen["threshold"][0, 0, 0, 0] == np.float32(measures.GRID[np.argmax(means)])
    np.testing.assert_allclose(chosen["iou"][0, 0], every.columns["iou"][0, np.argmax(means)], atol=1e-6)


def test_scores_do_not_depend_on_the_size_of_blocks(planted, monkeypatch):
    some = sets.named_sets(("singles",), 6, (0,))
    one = scoring.Scorer(planted, VIEW).score(some, ("selected",)).columns
    monkeypatch.setattr(scoring, "KEYS_AT_ONCE", 3 * 6 * 64)
    monkeypatch.setattr(scoring, "KEPT", 0)
    other = scoring.Scorer(planted, VIEW).score(some, ("selected",)).columns
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name])


def test_readings_are_all_combinations():
    config = Score(
        signals=("text_to_image", "text_to_image+image_to_text"), groups=("all", "query"), windows=("each", "all")
    )
    found = choices.views(config, planted_records.manifest())
    assert len(found) == 2 * 2 * 3 and len(set(found)) == 12
    parts = choices.parts(dataclasses.replace(config, sets=("singles",), part=4, thresholds=("selected", "0.2")),
                          planted_records.manifest(), 0)  # fmt: skip
    numbers = [setting.number for part in parts for setting in part.settings()]
    assert numbers == list(range(12 * 6 * 2)) and len(parts) == 24


# ---- what is wrong is said in one line


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"signals": ("output_cosine",)},
            "signal must have been recorded: text_to_image, image_to_text; got 'output_cosine'",
        ),
        ({"groups": ("words",)}, "group must have been recorded: all, query"),
        ({"windows": ("step 3",)}, "moment must have been recorded: rate 1.0, rate 0.5; got 'step 3'"),
        ({"heads": ("0",)}, "head must have been recorded"),
        ({"thresholds": ("otsu",)}, "thresholds must be 'selected' or numbers"),
        ({"sets": ("7",)}, "blocks from 0 to 5"),
        ({"sets": ("random",)}, "at least one set"),
    ],
)
def test_what_was_not_recorded_is_refused(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        choices.parts(Score(**{"sets": ("singles",)} | changes), planted_records.manifest(), 0)
    assert "\n" not in str(error.value)


def one_chunk(folder, name):
    return sorted(path for path in (folder / name / "c").rglob("*") if path.is_file())[0]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone", "unfinished", "no manifest", "other shape"])
def test_damaged_records_are_one_line(tmp_path, damage):
    folder = tmp_path / "records"
    planted_records.write(folder, STRENGTH)
    file = one_chunk(folder, records.ATTENTION)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-40])
    elif damage == "flipped":
        content = bytearray(file.read_bytes())
        content[len(content) // 3] ^= 1
        file.write_bytes(bytes(content))
    elif damage == "gone":
        file.unlink()
    elif damage == "unfinished":
        (folder / records.CHUNKS / "000001.json").unlink()
    elif damage == "no manifest":
        (folder / records.MANIFEST).unlink()
    else:
        dataclasses.replace(planted_records.manifest(), num_blocks=7).write(folder)
    with pytest.raises(RecordError) as error:
        found = Records.open(folder)
        for seed, moment in itertools.product((0, 1), found.manifest.moments):
            for signal, group in itertools.product(found.manifest.signals, found.manifest.groups):
                found.maps(seed, moment, signal, "mean", group)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    print(error.value)
