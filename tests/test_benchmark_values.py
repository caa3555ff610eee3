"""What pictures equal to the targets, and pictures equal to the sources, score under every protocol: perfect, and as an editor that
does nothing. Features and judges are stand-ins whose answers are known, and figures are compared with formulas written out here.
"""

import hashlib
import shutil

import benchmark_data as made
import numpy as np
import pytest
from PIL import Image

from editmgt_jax.evaluation import evaluate as job
from editmgt_jax.evaluation import outcomes, pixels
from editmgt_jax.evaluation.examples import Example, read_picture
from editmgt_jax.evaluation.features import Models
from editmgt_jax.evaluation.protocol import Selection
from editmgt_jax.evaluation.protocols import pie
from editmgt_jax.evaluation.protocols.table import PROTOCOLS, open_protocol

MAKERS = {
    "magicbrush": lambda folder: made.magicbrush(folder, turns=(1, 2, 3)),
    "emu_paper": lambda folder: made.emu(folder, generations=False),
    "emu_anybench": lambda folder: made.emu(folder, generations=True),
    "anybench": made.anybench,
    "pie": made.pie,
    "gedit_step1x": lambda folder: made.gedit(folder, {"color_alter": 2, "subject-add": 1}),
    "gedit_editmgt": lambda folder: made.gedit(folder, {"color_alter": 2, "subject-add": 1}),
    "imgedit": made.imgedit,
    "geditbench_v2": made.geditbench_v2,
}
PERFECT = {
    "emu_paper": {"l1": 0, "l2": 0, "clip_i": 1, "dino": 1},
    "emu_anybench": {"l1": 0, "l2": 0, "clip_i": 1, "dino": 1},
    "anybench": {"l1": 0, "clip_i": 1, "dino": 1},
    "magicbrush": {"l1": 0, "l2": 0, "clip_i": 1, "dino": 1, "l1_inside": 0},
    "gedit_step1x": {"sementics_score": 10, "quality_score": 10, "overall_score": 10, "unparsed": 0},
    "gedit_editmgt": {"sementics_score": 10, "quality_score": 10, "overall_score": 10, "unparsed": 0},
    "imgedit": {"score": 5, "score_rounded": 5, "unparsed": 0},
    "geditbench_v2": {"wins": 1, "unparsed": 0},
}
_OUTSIDE = {"psnr": pixels.EQUAL, "mse": 0, "ssim": 1, "lpips": 0}
IDLE = {
    "pie": {"noop": 1, "psnr_outside": pixels.EQUAL, "structure_distance": 0, "changed_inside": 0}
    | {f"{name}_unedit_part{rule}": value for name, value in _OUTSIDE.items() for rule in ("", "_no_border")},
    "magicbrush": {"noop": 1, "changed_inside": 0, "psnr_outside": pixels.EQUAL},
    "gedit_step1x": {"sementics_score": 0, "quality_score": 10, "overall_score": 0},
    "gedit_editmgt": {"sementics_score": 0, "quality_score": 10, "overall_score": 0},
    "imgedit": {"score": 1},
    "geditbench_v2": {"wins": 0},
}


def direction(words: str) -> np.ndarray:
    """A unit vector [16] of a text."""
    vector = np.random.default_rng(list(hashlib.sha256(words.encode()).digest())).normal(size=16)
    return vector / np.linalg.norm(vector)


def mean_colours(picture: Image.Image) -> np.ndarray:
    """A vector [16] of a picture: the means of its four rows of four cells."""
    cells = np.asarray(picture.resize((32, 32)), float).reshape(4, 8, 4, 8, 3).mean(axis=(1, 3, 4)).ravel()
    return cells - 100


class Features:
    """In the place of CLIP, DINO, structure distance and LPIPS."""

    where, variant = "stand-in", "none"

    def __init__(self, unit: bool):
        self.unit = unit

    def images(self, pictures):
        found = np.stack([mean_colours(picture) for picture in pictures])
        return found / np.linalg.norm(found, axis=1, keepdims=True) if self.unit else found

    def texts(self, captions):
        return np.stack([direction(caption) for caption in captions])

    def distance(self, one, other):
        return float(np.square(np.asarray(one, float) - np.asarray(other, float)).sum())


class Eyes:
    """In the place of a judge: it gives full marks to every picture that is not its source."""

    where, variant, workers = "stand-in", "none", 1

    def prompt(self, name, house):
        return f"{name} of <instruction>"

    def ask(self, text, pictures, attempt=0):
        source, *edited = [np.asarray(picture) for picture in pictures]
        changed = [picture.shape == source.shape and (picture != source).any() for picture in edited]
        if text.startswith("semantics"):
            return f'{{"score": [{10 * changed[0]}, 10]}}'
        if text.startswith("quality"):
            return '{"score": [10, 10]}'
        if text.startswith("pairwise"):
            return f'{{"winner": "{"Tie" if changed[0] == changed[1] else "Image A" if changed[0] else "Image B"}"}}'
        return "\n".join(f"{name}: {5 if changed[0] else 1}" for name in ("Compliance", "Seamlessness", "Fidelity"))


def scored(name, tmp_path, pictures, idle_others=False):
    """The summary, the outcomes by key, and the examples, for the pictures that `pictures(example)` names (None: made up).

    Args:
      idle_others: whether the systems that a benchmark compares with change nothing.
    """
    protocol, data, outputs = open_protocol(name), tmp_path / "data", tmp_path / "outputs"
    data.mkdir()
    data = MAKERS[name](data)
    if name == "geditbench_v2" and idle_others:
        for folder in (data / "images" / "edited").iterdir():
            shutil.copytree(data / "images" / "source", folder, dirs_exist_ok=True)
    examples = [entry for entry in protocol.read(data, Selection()) if isinstance(entry, Example)]
    for number, example in enumerate(examples):
        protocol.prepare(example, outputs)
        found = pictures(example)
        source = read_picture(example.source)[0]
        made.save(
            read_picture(found)[0] if found is not None else made.picture(500 + number, source.size),
            outputs / example.output,
        )
    models = Models(clip=Features(True), dino=Features(False), judge=Eyes() if protocol.judged else None)
    if name == "pie":
        models = Models(clip=Features(True), structure=Features(True), lpips=Features(True))
    summary = job.evaluate(protocol, data, tmp_path / "run", outputs=outputs, models=models)
    assert summary["scored"] == len(examples) and not summary["skipped"] and not summary["extra"]["count"]
    return summary, {each["key"]: each for each in outcomes.read(tmp_path / "run" / "outcomes.parquet")}, examples


def assert_means(summary, expected):
    """Every view has these means."""
    for view, tables in summary["results"].items():
        for metric, value in expected.items() if view != "ratings" else ():
            if metric in tables["all"]:
                assert tables["all"][metric]["mean"] == pytest.approx(value, abs=1e-9), (view, metric)
    assert any(expected.keys() <= tables["all"].keys() for tables in summary["results"].values())


@pytest.fixture(autouse=True)
def few_bootstraps(monkeypatch):
    monkeypatch.setattr("editmgt_jax.evaluation.ratings.BOOTSTRAPS", 20)


def test_every_protocol_is_here():
    assert MAKERS.keys() == PERFECT.keys() | IDLE.keys() == PROTOCOLS.keys() - {"scenes"}


@pytest.mark.parametrize("name", PERFECT)
def test_targets_are_perfect(name, tmp_path):
    summary, _, _ = scored(name, tmp_path, lambda example: example.target, idle_others=True)
    assert_means(summary, PERFECT[name])


@pytest.mark.parametrize("name", MAKERS)
def test_sources_score_as_an_editor_that_does_nothing(name, tmp_path):
    summary, found, examples = scored(name, tmp_path, lambda example: example.source)
    assert_means(summary, IDLE.get(name, {}))
    if name == "magicbrush":  # an editor of one turn after the other, that does nothing, has another source
        examples = [example for example in examples if example.after is None]
    for example in examples if not open_protocol(name).judged else ():
        source = read_picture(example.source)[0]
        by_hand = figures_by_hand(example, source) if name != "pie" else similarities_by_hand(example, source, source)
        for metric, value in by_hand.items():
            assert found[example.key][metric] == pytest.approx(value, abs=1e-9), metric
    if name.startswith("emu"):
        assert all(each["clip_dir"] is None or np.isnan(each["clip_dir"]) for each in found.values())


@pytest.mark.parametrize("name", ["emu_paper", "emu_anybench", "anybench", "magicbrush", "pie"])
def test_figures_of_other_pictures_by_hand(name, tmp_path):
    _, found, examples = scored(name, tmp_path, lambda example: None)
    for number, example in enumerate(examples):
        source = read_picture(example.source)[0]
        edited = made.picture(500 + number, source.size)
        by_hand = figures_by_hand(example, edited) if name != "pie" else similarities_by_hand(example, source, edited)
        if name.startswith("emu"):
            change = unit(mean_colours(edited)) - unit(mean_colours(source))
            words = direction(example.caption) - direction(example.source_caption)
            by_hand["clip_dir"] = unit(change) @ unit(words)
        if name == "emu_anybench":
            by_hand["clip_t_other"] = unit(mean_colours(read_picture(example.target)[0])) @ direction(example.caption)
        for metric, value in by_hand.items():
            assert found[example.key][metric] == pytest.approx(value, abs=1e-9), metric


def unit(vector):
    return vector / np.linalg.norm(vector)


def figures_by_hand(example, edited):
    target = read_picture(example.target)[0]
    difference = (np.asarray(edited, float) - np.asarray(target, float)) / 255
    ours, theirs = unit(mean_colours(edited)), unit(mean_colours(target))
    figures = {"l1": np.abs(difference).mean(), "clip_i": ours @ theirs, "dino": ours @ theirs}
    if "/" not in example.key:  # AnyBench has no L2
        figures["l2"] = np.square(difference).mean()
    if example.caption is not None:
        figures["clip_t"] = ours @ direction(example.caption)
    return figures


def similarities_by_hand(example, source, edited):
    """PIE-Bench's: 100 times the cosine, at least 0; structure distance and LPIPS of the stand-in are sums of squares."""
    inside = np.zeros((512, 512, 1))
    inside[100:200] = 1
    if not (~pie.decode_mask(example.facts["runs"])).any():
        inside[:] = 1
    inside[[0, -1]] = inside[:, [0, -1]] = 1
    part = Image.fromarray((np.asarray(edited) * inside).astype(np.uint8))
    before, after = direction("a red car"), direction("a blue car")
    figures = {
        "clip_similarity_source_image": unit(mean_colours(source)) @ before,
        "clip_similarity_target_image": unit(mean_colours(edited)) @ after,
        "clip_similarity_target_image_edit_part": unit(mean_colours(part)) @ after,
    }
    figures = {name: max(0, 100 * value) for name, value in figures.items()}
    figures["structure_distance"] = np.square(np.asarray(source, float) - np.asarray(edited, float)).sum()
    if (inside == 0).any():
        outside = (np.asarray(source, float) - np.asarray(edited, float)) * (1 - inside) / 255
        figures["mse_unedit_part"] = np.square(outside).mean()
        figures["lpips_unedit_part"] = np.square(outside).sum()
    return figures
