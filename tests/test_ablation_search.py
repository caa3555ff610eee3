"""Statistics against scipy and exact enumeration; a planted best set is found, and no difference is found where there is none."""

import dataclasses
import itertools
import json
import sys
import types

import numpy as np
import planted_records
import pytest
from scipy import stats

from editmgt_jax.ablation import score as scores
from editmgt_jax.ablation import scoring, search, sets, statistics, steps, study
from editmgt_jax.ablation.choices import View
from editmgt_jax.ablation.config import AblationConfig, Examples, Score, Search, Statistics
from editmgt_jax.errors import UserError
from editmgt_jax.training import tracking

HOW = Statistics(resamples=500, permutations=999)
VIEW = View("text_to_image", "all", "rate 1.0", "mean", "none", "nearest")


def test_the_interval_is_scipys():
    values = np.random.default_rng(0).gamma(1.0, size=40)
    found = statistics.interval(np.append(values, np.nan), HOW)
    expected = stats.bootstrap((values,), np.mean, n_resamples=500, method="BCa", rng=np.random.default_rng(0))
    assert found[:3] == pytest.approx((values.mean(), *expected.confidence_interval)) and found.count == 40
    assert statistics.interval(np.array([0.5, 0.5]), HOW) == (0.5, 0.5, 0.5, 2)
    assert np.isnan(statistics.interval(np.array([np.nan]), HOW).mean)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    """95 % of 300 draws of 40 skewed numbers: at least 89 %, as BCa intervals of so few do."""
    dice, covered = np.random.default_rng(1), 0
    for _ in range(300):
        found = statistics.interval(dice.gamma(2.0, size=40), HOW)
        covered += found.low <= 2.0 <= found.high
    assert 0.89 * 300 <= covered <= 0.99 * 300


def test_paired_p_values_equal_all_sign_flips():
    dice = np.random.default_rng(0)
    better, others = dice.random(9), dice.random((9, 3)) - [0, 0.2, 0.5]
    found = statistics.paired_p_values(better, others, dataclasses.replace(HOW, permutations=40_000))
    differences = others - better[:, None]
    flips = np.array(list(itertools.product((-1, 1), repeat=9)))
    expected = (np.abs(flips @ differences) >= np.abs(differences.sum(axis=0)) - 1e-12).mean(axis=0)
    np.testing.assert_allclose(found, expected, atol=0.01)  # of 40 000 draws: 4 standard deviations
    with pytest.raises(UserError, match="at least 2 examples"):
        statistics.paired_p_values(better[:1], others[:1], HOW)


def test_corrected_p_values_by_hand():
    np.testing.assert_allclose(statistics.corrected([0.01, 0.04, 0.03, 0.5]), [0.04, 0.16 / 3, 0.16 / 3, 0.5])


# ---- planted truth


def planted(folder, strength, seed, examples=40):
    return planted_records.write(
        folder, strength, seed=seed, examples=examples, seeds=(0,), moments=("rate 1.0",), signals=("text_to_image",),
        groups=("all",), dtype="float32", chunk=examples,
    )  # fmt: skip


@pytest.mark.parametrize("draws", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_a_planted_set_is_found_in_95_percent_of_draws(tmp_path, draws):
    """Blocks 2 and 3 of 6 show the truth in noise; all 63 subsets compete."""
    found = 0
    every = sets.named_sets(("subsets",), 6, (0,))
    entries = [{"blocks": list(one.blocks)} for one in every]
    for draw in range(draws):
        records = planted(tmp_path / str(draw), (0, 0, 2.0, 2.0, 0, 0), draw, examples=80)
        values = search.objective_of(scoring.Scorer(records, VIEW), every, "ap", "selected")
        best = search.Candidates(entries, values).chosen_by(lambda entry: True)
        found += entries[best]["blocks"] == [2, 3]
    assert found >= 0.95 * draws


@pytest.mark.parametrize("candidates", [2, 12])
def test_where_nothing_differs_nothing_is_found(candidates):
    """400 draws in which the candidates differ by noise alone: in at most 5 % of them is any difference declared."""
    dice, wrong = np.random.default_rng(0), 0
    for draw in range(400):
        values = dice.random((1, 60)) + 0.3 * dice.standard_normal((candidates, 60))
        found = search.Candidates([{}] * candidates, values)
        winner = found.chosen_by(lambda entry: True)
        others = [index for index in range(candidates) if index != winner]
        odd = values[:, 1::2]
        p_values = statistics.paired_p_values(odd[winner], odd[others].T, dataclasses.replace(HOW, seed=draw))
        wrong += (statistics.corrected(p_values) <= 0.05).any()
    assert wrong <= 0.05 * 400


def test_greedy_and_learnt_sets_find_the_planted(tmp_path):
    scorer = scoring.Scorer(planted(tmp_path, (0, 0, 3.0, 3.0, 0, 0), 0, examples=80), VIEW)
    assert search.grown(scorer, "ap", "selected").blocks == (2, 3)
    assert search.shrunk(scorer, "ap", "selected").blocks == (2, 3)
    weights = np.array(search.learnt(scorer).weights)
    assert weights[[2, 3]].sum() > 0.9 and weights.sum() == pytest.approx(1) and (weights >= 0).all()


def test_learnt_weights_are_those_of_all_rows_at_once(tmp_path):
    scorer = scoring.Scorer(planted(tmp_path, (1, 0, 2.0, 0, 0, 0.5), 0), VIEW)
    maps = scorer.attention(range(0, 40, 2), 0).astype(float)
    maps -= maps.mean(axis=2, keepdims=True)
    maps /= maps.std(axis=(1, 2), keepdims=True)
    truth = scorer.truth[::2].reshape(20, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(20, 16)
    truth = truth - truth.mean(axis=1, keepdims=True)
    from scipy.optimize import nnls

    expected, _ = nnls(maps.transpose(0, 2, 1).reshape(-1, 6), truth.reshape(-1))
    np.testing.assert_allclose(search.learnt(scorer).weights, expected / expected.sum(), atol=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A work directory with planted records, its scores and its config."""
    pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("run")
    planted_records.write(folder / "records", (0, 0, 2, 2, 0, 0), examples=40)
    config = AblationConfig(
        task="ablate",
        examples=Examples(count=40),
        score=Score(sets=("subsets", "released"), signals=("text_to_image", "image_to_text"), windows=("each", "all"),
                    filters=("adaptive", "none"), thresholds=("selected", "0.5"), part=20),
        search=Search(shown=3, trials=8),
        statistics=HOW,
    )  # fmt: skip
    scores.score(config, folder)
    return folder, config


def test_the_summary_of_a_planted_run(run):
    folder, config = run
    found = json.loads(search.search(config, folder).read_text())
    assert found["winner"]["blocks"] == [2, 3] and found["winner"]["window"] == "rate 1.0+rate 0.5"
    assert found["candidates"] == 2 * 3 * 2 * 63 + 3 + 1 and found["examples"] == {"even": 20, "odd": 20}
    roles = {rival["role"]: rival for rival in found["rivals"]}
    single = roles["best single block"]
    assert single["blocks"] in ([2], [3]) and single["difference"]["high"] < 0 and single["differs"]
    assert single["difference"]["mean"] == pytest.approx(single["odd"]["mean"] - found["winner"]["odd"]["mean"])
    assert {"best with signal image_to_text", "best with window rate 0.5"} <= roles.keys()
    read = roles["as the model reads it"], roles["as the paper reads it"]
    assert [(one["blocks"], one["signal"]) for one in read] == [([4], "image_to_text"), ([4, 5], "text_to_image")]


def test_a_study_finds_the_planted_set_and_goes_on_as_if_not_killed(tmp_path):
    """Blocks 2 and 3 of 6 in the first of two signals; 40 trials of 2 x 64 candidates."""
    pytest.importorskip("optuna")
    records = planted_records.write(tmp_path / "records", (0, 0, 3, 3, 0, 0), examples=40, moments=("rate 1.0",))
    score = Score(signals=("image_to_text", "text_to_image"), groups=("all",), filters=("none",))
    config = AblationConfig(task="ablate", examples=Examples(count=40), score=score, statistics=HOW)

    def opened(name):
        return study.Study(config, records, tmp_path / name, "selected")

    best, view, values = opened("whole").run(40)
    assert best.blocks == (2, 3) and values.shape == (40,) and best.kind == "study"
    np.testing.assert_array_equal(values, opened("whole").values((2, 3), view))
    begun = opened("killed")
    begun.run(7)
    begun._study.ask()  # cut off
    assert opened("killed").run(40)[:2] == (best, view)
    trials = [[(one.value, one.params) for one in opened(name)._study.trials] for name in ("whole", "killed")]
    assert trials[0] == trials[1] and len(trials[0]) == 40


def test_a_search_with_trials_needs_optuna(run, monkeypatch):
    folder, config = run
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="pip install 'editmgt_jax\\[ablate\\]'"):
        search.search(dataclasses.replace(config, search=Search(trials=3)), folder)


def test_a_tracker_is_told_the_intervals_of_a_search(run, monkeypatch):
    folder, config = run
    told = []
    tracker = types.SimpleNamespace(scalars=lambda *given: told.append(given), close=lambda: told.append("closed"))
    monkeypatch.setattr(tracking, "opened", lambda names, *_: [tracker] * len(names))
    steps.run("search", config, folder, ["wandb"])
    found = json.loads((folder / search.FOLDER / search.SUMMARY).read_text())
    assert told[0][0] == 0 and told[0][1]["winner/low"] == found["winner"]["odd"]["low"] and told[1] == "closed"
    assert len(told[0][1]) == 4 * (1 + len(found["rivals"]))


def test_scores_in_tables_are_the_scorers(run):
    folder, config = run
    settings = scores.read_settings(folder)
    values = scores.read_scores(folder, "iou")
    assert values.shape == (len(settings), 40, 2) and [entry["setting"] for entry in settings] == list(
        range(len(settings))
    )
    entry = settings[500]
    one = sets.of_blocks(entry["blocks"], 6)
    scorer = scoring.Scorer(search.Records.open(folder / "records"), search.view_of(entry))
    expected = scorer.score([one], (entry["threshold_rule"],)).columns["iou"][0, 0]
    np.testing.assert_allclose(values[500], expected, atol=1e-6)


def test_scoring_goes_on_with_the_same_bytes(run):
    folder, config = run
    before = {path.name: path.read_bytes() for path in (folder / scores.FOLDER).iterdir()}
    (folder / scores.FOLDER / "part-00003.parquet").unlink()
    with pytest.raises(UserError, match="go on with"):
        scores.read_scores(folder, "ap")
    scores.score(config, folder)
    assert {path.name: path.read_bytes() for path in (folder / scores.FOLDER).iterdir()} == before


def test_another_choice_of_sets_begins_anew(run, tmp_path):
    folder, config = run
    (tmp_path / "records").symlink_to(folder / "records")
    for names, count in ((("singles",), 6), (("ranges",), 21)):
        scores.score(dataclasses.replace(config, score=Score(sets=names)), tmp_path)
        assert len(scores.read_scores(tmp_path, "ap")) == count
