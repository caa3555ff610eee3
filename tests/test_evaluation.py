"""Measures by hand, the verdicts on known pictures, and the protocol on a tiny model."""

import json
import types

import numpy as np
import pytest
from PIL import Image
from tiny import write_model

from editmgt_jax.data.scenes.source import CATEGORIES
from editmgt_jax.errors import UserError
from editmgt_jax.evaluation import comparison, comparison_report, metrics, stats
from editmgt_jax.evaluation.examples import read_picture
from editmgt_jax.evaluation.protocols import scenes, scenes_figures, scenes_run
from editmgt_jax.evaluation.protocols.scenes import Encoded, Pairs, Runner
from editmgt_jax.images import ImageError
from editmgt_jax.pipeline import EditPipeline


@pytest.fixture(scope="module")
def pairs():
    return Pairs(32, "heldout", 21, "core")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), text_length=96)


def test_measures_by_hand():
    a, b = np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 3))
    b[0, 0, 0], b[0, 1, 1] = 0.5, 0.1
    top = np.array([[[True, True], [False, False]]])
    assert metrics.l1(a, b, top) == pytest.approx(0.25)
    assert metrics.psnr(a, b, top) == pytest.approx(-10 * np.log10(0.125))
    assert metrics.psnr(a, a, top) == 100
    assert np.isnan(metrics.l1(a, b, np.zeros_like(top)))
    assert metrics.nearer_to_target(a, b, a, top) and not metrics.nearer_to_target(b, b, a, top)
    assert metrics.nearest(b[0], np.stack([a[0], b[0] + 0.1]), top[0]) == 1
    ids, other = np.array([[[1, 2], [3, 4]]]), np.array([[[1, 9], [3, 9]]])
    assert metrics.share_changed(ids, other, top) == pytest.approx(0.5)


def test_colours_are_compared_wherever_they_lie():
    """Stripes of the other phase: each pixel is as in the source, or further from the target than the source's."""
    source, target = np.full((4, 6, 3), 0.4), np.full((4, 6, 3), 0.4)
    target[:, ::2] = 1.0
    shifted, where = np.roll(target, 1, axis=1), np.ones((4, 6), bool)
    assert not metrics.nearer_to_target(shifted[None], source[None], target[None], where[None])
    assert metrics.nearer_in_colours(shifted, source, target, where)
    assert not metrics.nearer_in_colours(source, source, target, where)
    few = source.copy()
    few[0, 0] = 1.0  # one pixel in place of twelve
    assert not metrics.nearer_in_colours(few, source, target, where)
    where[:, ::2] = False  # where the target is as the source: nothing is nearer
    assert not metrics.nearer_in_colours(target, source, target, where)


def test_gradient_energy_by_hand():
    pixels = np.zeros((2, 3, 3, 3))
    pixels[0, 1, 1] = 0.5
    centre = np.zeros((2, 3, 3), bool)
    centre[0, 1, 1] = True
    np.testing.assert_allclose(metrics.gradient_energy(pixels, centre), [0.25, np.nan])  # four neighbours, all 0.5 away
    np.testing.assert_allclose(metrics.gradient_energy(pixels, np.ones_like(centre)), [0.25 * 4 / 12, 0])


def test_iou_and_its_best_threshold():
    truth = np.array([[[True, False], [True, False]]])
    relevance = np.array([[[0.9, 0.4], [0.6, 0.1]]])
    assert metrics.iou(relevance, truth, 0.5) == 1
    assert metrics.iou(relevance, truth, 0.3) == pytest.approx(2 / 3)
    assert metrics.iou(relevance, truth, 0.7) == pytest.approx(1 / 2)
    threshold, value = metrics.best_threshold(relevance, truth)
    assert 0.4 < threshold <= 0.6 and value == 1


def test_the_target_succeeds_and_the_source_fails(pairs):
    assert set(pairs.categories) == set(CATEGORIES)
    assert scenes_figures.succeeded(pairs, pairs.target, pairs.source, pairs.target).mean() > 0.95
    assert not scenes_figures.succeeded(pairs, pairs.source, pairs.source, pairs.target).any()


def test_a_sharp_edit_beside_the_place_succeeds_when_smoothed():
    """A small bright square for another one three pixels away, in a wide region."""
    one = types.SimpleNamespace(mask=np.ones((1, 64, 64), bool), categories=np.array(["add"]))
    source, target, edited = (np.zeros((1, 64, 64, 3)) for _ in range(3))
    target[:, 20:22, 20:22] = edited[:, 20:22, 23:25] = 1
    assert not scenes_figures.succeeded(one, edited, source, target)
    assert scenes_figures.succeeded(one, edited, source, target, 1 / 16)
    assert not scenes_figures.succeeded(one, source, source, target, 1 / 16)


def test_a_colour_edit_must_have_the_colour_that_was_asked_for(pairs):
    index = np.flatnonzero(pairs.categories == "colour")[0]
    wrong = {"blue": (1, 0, 0)}.get(pairs.facts[index]["colour"], (0, 0, 1))
    edited = np.array(pairs.target)
    edited[index][pairs.mask[index]] = wrong
    assert not scenes_figures.succeeded(pairs, edited, pairs.source, pairs.target)[index]


def test_only_the_right_object_is_recognised(pairs):
    new = np.isin(pairs.categories, ("add", "replace"))
    found = scenes_figures.recognised(pairs, pairs.target)
    np.testing.assert_array_equal(np.isnan(found), ~new)
    assert (found[new] == 1).all()
    edited = np.array(pairs.target)
    for index in np.flatnonzero(new):
        edited[index] = pairs.distractors(int(index), scenes_figures.DISTRACTORS)[0] / 255
    assert (scenes_figures.recognised(pairs, edited)[new] == 0).all()


def test_figures_of_a_perfect_edit(pairs):
    ids = np.zeros((len(pairs), 8, 8), np.int32)
    changed = np.where(pairs.token_mask((8, 8)), 1, ids)
    encoded = Encoded(ids, changed, pairs.source, pairs.target)
    figures = scenes_figures.score_edits(pairs, changed, pairs.target, encoded)
    assert np.nanmax(figures["l1_inside"]) == 0 and np.nanmax(figures["changed_outside"]) == 0
    new = np.isin(pairs.categories, ("add", "replace"))
    assert (figures["gradient_share"][new] == 1).all() and np.isnan(figures["gradient_share"][~new]).all()
    leaking = scenes_figures.score_edits(pairs, np.ones_like(ids), pairs.target, encoded)
    assert np.nanmin(leaking["changed_outside"]) == 1


def test_leakage_of_scenes(pairs):
    ids = np.zeros((len(pairs), 8, 8), np.int32)
    changed = np.where(pairs.token_mask((8, 8)), 1, ids)
    encoded = Encoded(ids, changed, pairs.source, pairs.target)
    local = np.isin(pairs.categories, scenes.LOCAL)
    for found in scenes_figures.leaks(pairs, changed, pairs.target, encoded):
        assert (found["psnr_outside"][local] == 100).all() and (found["flipped_outside"][local] == 0).all()
        assert (found["noop"] == 0).mean() > 0.9 and np.isnan(found["psnr_outside"][pairs.categories == "style"]).all()
    for found in scenes_figures.leaks(pairs, ids, pairs.source, encoded):
        assert (found["noop"] == 1).all() and np.isnan(found["psnr_outside_edited"]).all()
    dark = np.where(
        pairs.mask[..., None], pairs.target, pairs.source / 2
    )  # it leaks, in cells whose ids did not change
    plain, composited = scenes_figures.leaks(pairs, changed, dark, encoded)
    assert (composited["psnr_far"][local] > plain["psnr_far"][local] + 5).all()
    np.testing.assert_array_equal(composited["flipped_outside"], plain["flipped_outside"])


def test_only_the_inside_is_perceived(pairs):
    """A stand-in for LPIPS, whose distance is the largest difference."""
    network = types.SimpleNamespace(distance=lambda one, other: np.abs(one - other).max())
    edited = np.where(pairs.mask[..., None], pairs.target, 1 - pairs.target)
    assert (scenes_figures.lpips_inside(pairs, edited, network) == 0).all()
    edited[:] = np.where(pairs.mask[..., None], np.clip(pairs.target - 0.25, 0, 1), edited)
    found = scenes_figures.lpips_inside(pairs, edited, network)
    assert found.max() == pytest.approx(0.25) and (found > 0.05).all()


def test_pictures_of_another_size_are_resized_for_the_model_and_back(model, pairs):
    pipe = EditPipeline.from_pretrained(model)
    native, larger = Runner(pipe, 8, seed=0), Runner(pipe, 8, seed=0, size=64)
    smooth = np.repeat(np.repeat(pairs.source[:8], 2, axis=1), 2, axis=2)
    ids = larger.ids(smooth)
    assert ids.shape == (8, 8, 8) and larger.with_seed(3).size == 64
    painted = larger.decode(ids)
    assert painted.shape == (8, 64, 64, 3)
    rough = painted.reshape(8, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    exact = native.decode(ids)
    assert np.corrcoef(rough.ravel(), exact.ravel())[0, 1] > 0.95  # noise of single pixels, which resizing softens
    assert np.corrcoef(rough[:, ::-1].ravel(), exact.ravel())[0, 1] < 0.5


def test_a_pair_is_edited_alike_in_any_batch(model, pairs):
    pipe = EditPipeline.from_pretrained(model)
    one, other = Runner(pipe, 4, seed=0), Runner(pipe, 3, seed=0)
    encoded = one.encode(pairs)
    np.testing.assert_array_equal(encoded.source_ids, other.encode(pairs).source_ids)
    first, second = (runner.edit(pairs, encoded.source_ids, steps=2)["tokens"] for runner in (one, other))
    assert (first == second).mean() > 0.999


def test_protocol_on_a_tiny_model(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scenes, "SELECTION_PAIRS", 10)
    report, gallery = tmp_path / "report.json", tmp_path / "gallery.png"
    options = {"count": 14, "batch_size": 8, "split": "train", "steps": 2, "layers": [0, 1], "seeds": (0, 5)}
    scenes.evaluate_scenes(model, report, gallery, workdir=tmp_path / "run", **options)
    printed = capsys.readouterr().out
    assert "without region hold" in printed and "recognised" in printed
    assert "held+composite" in printed and "psnr_ceiling" in printed
    found = json.loads(report.read_text())
    assert found["split"] == "train" and found["seeds"] == [0, 5] and found["settings"]["steps"] == 2
    free, held = found["results"]["free"], found["results"]["held"]
    low, high = found["intervals"]["free"]["l1_inside"]
    assert low < free["all"]["l1_inside"] < high and {"gradient_share", "vq_gradient_share"} <= free["all"].keys()
    assert free["all"]["pairs"] == 14 and all(free[category]["pairs"] == 2 for category in CATEGORIES)
    assert free["local"]["pairs"] == 10
    assert held["all"]["changed_outside"] <= free["all"]["changed_outside"]
    assert 0 <= free["local"]["iou_consolidated"] <= 1 and "iou_consolidated" not in held["local"]
    assert found["localisation"]["layers"] == [0, 1]
    assert set(found["localisation"]["selection_iou_of_single_layers"]) == {"0", "1", "2"}
    with Image.open(gallery) as drawn:
        assert drawn.width > 6 * 64
    (run,) = comparison.read([tmp_path / "run"])
    assert len(run.outcomes) == 14 and run.outcomes["00003"]["protocol"] == "scenes"
    for name in ("success", "changed_outside"):
        mean = np.nanmean(stats.column(list(run.outcomes.values()), f"held:{name}"))
        assert mean == pytest.approx(held["all"][name], abs=1e-4)
        assert run.summary["results"]["all"]["all"][f"held:{name}"]["mean"] == pytest.approx(mean)
    assert "held:success ↑" in str(comparison_report.sections(comparison.compare([run, run])))
    with Image.open(run.outputs / run.outcomes["00003"]["output"]) as edited:
        assert edited.size == (32, 32)
    row = comparison_report.edits([run]).parts[3]
    assert [picture.caption for picture in row.pictures] == ["source", "target", "run free", "run held"]
    captions = [picture.caption for picture in comparison_report.edits([run], "held:l1_inside").parts[0].pictures]
    assert captions[2] == "run free" and captions[3].startswith("run held: held:l1_inside 0.")
    again = scenes.Scenes().examples_again(run.summary, ["00003"], run.outputs)["00003"]
    pair = Pairs(32, "train", [3], "rich", scenes.SELECTION_SEED + 1)
    assert again.instruction == pair.instructions[0] == run.outcomes["00003"]["instruction"]
    np.testing.assert_allclose(np.asarray(read_picture(again.target)[0]) / 255, pair.target[0], atol=1e-6)


def test_stopped_and_shared_evaluations_end_with_the_same_files(model, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "SELECTION_PAIRS", 10)
    monkeypatch.setattr(scenes_run, "CHUNK", 8)
    pipe = EditPipeline.from_pretrained(model)

    def run(name, **others):
        options = {"split": "train", "steps": 2, "layers": [0, 1], "seeds": (0, 5)} | others
        return scenes.evaluate(pipe, 14, 8, workdir=name and tmp_path / name, **options)

    def files(name):
        folder = tmp_path / name
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    report, draw = run("whole")
    in_memory, drawn = run(None)
    assert in_memory == report and draw(1).tobytes() == drawn(1).tobytes()

    kept = scenes_run.Store.keep
    stop = lambda store, number, *rest: kept(store, number, *rest) if number == 0 else 1 / 0  # noqa: E731
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(scenes_run.Store, "keep", stop)
        run("stopped")
    assert "outcomes.parquet" not in files("stopped")
    made = (tmp_path / "stopped" / "parts" / "000000.npz").stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(scenes, "choose_localisation", None)  # it has been chosen
        assert run("stopped")[0] == report
        assert run("stopped")[0] == report  # where nothing is left to do
    assert (tmp_path / "stopped" / "parts" / "000000.npz").stat().st_mtime_ns == made
    assert files("stopped") == files("whole")

    assert run("shared", process=(1, 2)) is None
    assert run("shared", process=(0, 2))[0] == report and files("shared") == files("whole")
    with pytest.raises(UserError, match="belongs to a job with other edited"):
        run("whole", seeds=(0,))
    with pytest.raises(UserError, match="name it with --workdir"):
        run(None, process=(0, 2))


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_a_hold_threshold_that_is_asked_for_is_used(model, monkeypatch, threshold):
    monkeypatch.setattr(scenes, "SELECTION_PAIRS", 10)
    pipe = EditPipeline.from_pretrained(model)
    report, _ = scenes.evaluate(pipe, count=7, batch_size=7, steps=1, hold_threshold=threshold)
    assert report["settings"]["hold_threshold"] == threshold


def test_nowhere_to_write_is_found_first(model, tmp_path):
    with pytest.raises(ImageError, match="existing folder"):
        scenes.evaluate_scenes(model, tmp_path / "gone" / "report.json")


@pytest.mark.parametrize("hold, filter", [("released", "adaptive"), ("from_step", "none")])
def test_hold_of_one_step_is_applied_afterwards(model, pairs, hold, filter):
    runner = Runner(EditPipeline.from_pretrained(model), 8, seed=0)
    settings = {"steps": 1, "hold": hold, "filter": filter, "layers": [1, 2]}
    source_ids = runner.ids(pairs.source)
    free = runner.edit(pairs, source_ids, **(settings | {"layers": [0, 1, 2], "hold_threshold": 0.0}))
    held = runner.edit(pairs, source_ids, **(settings | {"hold_threshold": 0.4}))
    found = runner.hold(free, source_ids, 0.4, **settings)
    np.testing.assert_allclose(found["relevance"], held["relevance"], atol=1e-5)
    sure = np.abs(held["relevance"] - 0.4) > 1e-4  # a cell at the threshold may be rounded to either side
    assert sure.mean() > 0.99 and 0.05 < held["keep"].mean() < 0.95
    np.testing.assert_array_equal(found["tokens"][sure], held["tokens"][sure])
    np.testing.assert_array_equal(found["passes"], held["passes"])


@pytest.mark.parametrize("settings", [{"steps": 1}, {"steps": 1, "image_guidance_scale": 3.0}, {"steps": 2}], ids=str)
def test_attention_is_that_of_guided_edits(model, pairs, settings):
    runner = Runner(EditPipeline.from_pretrained(model), 4, seed=0)
    settings = settings | {"layers": [0, 1, 2], "hold_threshold": 0.0, "guidance_scale": 4.0}
    source_ids = runner.ids(pairs.source)
    guided = runner.edit(pairs, source_ids, **settings)["attention"]
    np.testing.assert_array_equal(runner.attention(pairs, source_ids, **settings), guided)
    unguided = runner.edit(pairs, source_ids, **(settings | {"guidance_scale": 1.0}))["attention"]
    assert np.abs(unguided - guided).max() < 1e-6 or settings["steps"] > 1
