"""Evaluations of tiny data sets in each benchmark's layout: readers, layouts, figures, resuming, broken folders."""

import json
import shutil

import benchmark_data as made
import jax
import numpy as np
import pytest
from PIL import Image
from tiny import write_model

from editmgt_jax import cli
from editmgt_jax.errors import UserError
from editmgt_jax.evaluation import evaluate as job
from editmgt_jax.evaluation import outcomes, pixels, report
from editmgt_jax.evaluation.devices import SpreadPipeline
from editmgt_jax.evaluation.editing import Editor
from editmgt_jax.evaluation.examples import Example, picture_bytes
from editmgt_jax.evaluation.protocol import Selection
from editmgt_jax.evaluation.protocols import anybench, emu, pie
from editmgt_jax.evaluation.protocols.table import PROTOCOLS, open_protocol
from editmgt_jax.pipeline import EditPipeline


def evaluate(name, data, workdir, **options):
    return job.evaluate(open_protocol(name), data, workdir, **options)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return EditPipeline.from_pretrained(write_model(tmp_path_factory.mktemp("model")), batch_size=4)


@pytest.fixture
def editor(pipe):
    return Editor(pipe, 0, {"steps": 2}, hold_threshold=0.3)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_entries_and_classes_agree(name):
    protocol = open_protocol(name)
    assert protocol.name == name and protocol.version and protocol.reference and protocol.title


def test_an_unknown_protocol_names_the_known():
    with pytest.raises(UserError, match="magicbrush"):
        open_protocol("gedit")


# ---- MagicBrush


@pytest.mark.parametrize("captions", ["local_captions.json", "local_descriptions.json"])
def test_magicbrush_reads_turns_and_both_caption_files(tmp_path, captions):
    data = made.magicbrush(tmp_path, turns=(1, 3), captions=captions)
    found = list(open_protocol("magicbrush").read(data, Selection()))
    names = [example.output for example in found]
    assert names == [f"{name}.png" for name in ("100/100_1", "101/101_1", "101/101_inde_2", "101/101_inde_3")] + [
        "101/101_iter_2.png",
        "101/101_iter_3.png",
    ]
    assert [example.after for example in found][-2:] == ["101_1", "101_iter_2"]
    assert found[2].source.name == "101-output1.png" and found[2].caption == "picture 2"
    mask = found[0].mask()
    assert mask[:16, :16].all() and mask.sum() == 16 * 16


def test_magicbrush_targets_are_perfect_and_sources_are_a_no_op(tmp_path):
    data = made.magicbrush(tmp_path / "data", turns=(1, 2, 3))
    targets = evaluate(
        "magicbrush", data, tmp_path / "a", outputs=made.magicbrush_outputs(tmp_path / "t", data, "output")
    )
    assert targets["scored"] == 1 + 3 + 5 and not targets["skipped"] and targets["version"] == "2"
    for view, count in {"all_turn": 6, "final_turn": 3}.items():
        figures = targets["results"][view]["all"]
        assert figures["l1"] == {"mean": 0, "low": 0, "high": 0, "n": count}
        assert figures["l2"]["mean"] == 0 and figures["l1_inside"]["mean"] == 0
    sources = evaluate(
        "magicbrush", data, tmp_path / "b", outputs=made.magicbrush_outputs(tmp_path / "s", data, "input")
    )
    figures = sources["results"]["all_turn"]["all"]
    expected = []
    for name, turns in json.loads((data / "edit_sessions.json").read_text()).items():
        for turn in turns:
            a, b = (
                np.asarray(Image.open(data / "images" / name / turn[side]), float) / 255 for side in ("input", "output")
            )
            expected.append(np.abs(a - b).mean())
    assert figures["l1"]["mean"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert figures["l1"]["low"] < figures["l1"]["mean"] < figures["l1"]["high"]
    assert figures["noop"]["mean"] == 1 and figures["psnr_outside"]["mean"] == pixels.EQUAL
    assert figures["psnr_outside_edited"]["n"] == 0  # doing nothing wins nothing
    text = report.benchmark(sources)
    assert "magicbrush version 2" in text and "EditMGT" in text and "arXiv 2512.11715" in text


def test_a_broken_folder_is_counted_and_named_and_the_rest_is_scored(tmp_path):
    data = made.magicbrush(tmp_path / "data", turns=(1, 1, 1, 1, 1, 1))
    outputs = made.magicbrush_outputs(tmp_path / "outputs", data, "output")

    def path(session):
        return outputs / session / f"{session}_1.png"

    path("100").unlink()
    path("101").write_bytes(path("101").read_bytes()[:200])
    Image.open(path("102")).resize((48, 64)).save(path("102"))
    frames = [made.picture(1), made.picture(2)]
    frames[0].save(path("103"), "GIF", save_all=True, append_images=frames[1:])
    made.picture(40).convert("CMYK").save(path("104"), "JPEG")
    made.picture(9).save(outputs / "stray.png")
    found = evaluate("magicbrush", data, tmp_path / "run", outputs=outputs)
    assert {reason: each["keys"] for reason, each in found["skipped"].items()} == {
        "corrupt": ["101_1"],
        "missing": ["100_1"],
    }
    assert {note: each["keys"] for note, each in found["notes"].items()} == {
        "CMYK, read as RGB": ["104_1"],
        "animated, first frame": ["103_1"],
        "another size, resized": ["102_1"],
    }
    assert found["extra"] == {"count": 1, "files": ["stray.png"]} and found["scored"] == 4
    table = outcomes.read(tmp_path / "run" / "outcomes.parquet")
    assert [outcome["skipped"] for outcome in table] == ["missing", "corrupt", None, None, None, None]
    assert {(outcome["protocol"], outcome["version"]) for outcome in table} == {("magicbrush", "2")}
    text = report.benchmark(found)
    assert "1 missing (100_1)" in text and "stray.png" in text


# ---- a model


def assert_the_official_loader_pairs(data, outputs):
    """MagicBrush's own rules of names: every turn on its own, and the last turn in sequence, has its target."""
    assert {p.name for p in outputs.iterdir()} == {p.name for p in (data / "images").iterdir()}
    for folder in outputs.iterdir():
        names = [p.name for p in folder.iterdir()]
        targets = [p.name for p in (data / "images" / folder.name).iterdir() if "output" in p.name]
        alone = [name for name in names if "_1" in name or "inde_" in name]
        in_sequence = sorted(name for name in names if "iter_" in name)
        assert len(alone) == len(targets) == (1 if len(names) == 1 else len(in_sequence) + 1)
        assert not in_sequence or in_sequence[-1].endswith(f"_{len(targets)}.png")


def test_edits_are_the_same_killed_resumed_and_in_two_processes(tmp_path, editor, monkeypatch):
    monkeypatch.setattr(job, "CHUNK", 2)
    data = made.magicbrush(tmp_path / "data", turns=(2, 1, 3, 1))
    whole = evaluate("magicbrush", data, tmp_path / "whole", editor=editor, model="tiny")
    expected = (tmp_path / "whole" / "outcomes.parquet").read_bytes()
    assert whole["scored"] == 7 + 3 and not whole["skipped"]
    columns = outcomes.read(tmp_path / "whole" / "outcomes.parquet")[0]
    for name in ("flipped_outside", "psnr_ceiling", "free:flipped_outside", "held+composite:psnr_outside"):
        assert columns[name] is not None, name

    real, calls = editor.edit, []

    def stops(examples, sources):
        calls.append(len(examples))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(examples, sources)

    monkeypatch.setattr(editor, "edit", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate("magicbrush", data, tmp_path / "killed", editor=editor, model="tiny")
    assert not (tmp_path / "killed" / "outcomes.parquet").exists()
    evaluate("magicbrush", data, tmp_path / "killed", editor=editor, model="tiny")
    assert (tmp_path / "killed" / "outcomes.parquet").read_bytes() == expected
    monkeypatch.setattr(editor, "edit", real)

    first = evaluate("magicbrush", data, tmp_path / "two", editor=editor, model="tiny", process=(0, 2))
    assert first is None and not (tmp_path / "two" / "outcomes.parquet").exists()
    assert evaluate("magicbrush", data, tmp_path / "two", editor=editor, model="tiny", process=(1, 2))
    assert (tmp_path / "two" / "outcomes.parquet").read_bytes() == expected
    assert_the_official_loader_pairs(data, tmp_path / "two" / "outputs")
    assert sorted(p.name for p in (tmp_path / "two" / "outputs" / "102").iterdir()) == [
        "102_1.png", "102_inde_2.png", "102_inde_3.png", "102_iter_2.png", "102_iter_3.png",
    ]  # fmt: skip


def test_edits_on_many_devices_are_those_of_one(pipe, editor):
    spread = SpreadPipeline(pipe.model, batch_size=5)
    assert spread.batch_size == 8 == len(jax.local_devices())
    sources = [made.picture(seed, size) for seed, size in enumerate([(32, 32)] * 3 + [(48, 24)])]
    examples = [Example(str(i), "", "make the car red", "", b"", mask=lambda: None) for i in range(4)]
    many = Editor(spread, 0, {"steps": 2}, hold_threshold=0.3).edit(examples, sources)
    for one, other in zip(editor.edit(examples, sources), many, strict=True):
        np.testing.assert_array_equal(one.traces.source_ids, other.traces.source_ids)
        assert (one.traces.ids == other.traces.ids).mean() > 0.98 and one.picture.size == other.picture.size
        assert set(one.variants) == set(other.variants)
    ids = np.arange(6 * 64).reshape(6, 8, 8) % 32
    assert spread.decode_image(ids).shape == (6, 32, 32, 3)
    np.testing.assert_allclose(spread.decode_image(ids), pipe.decode_image(ids), atol=1e-5)
    recorded = spread.edit_tokens(ids[:3], [pipe.encode("make the car red")] * 3, record=True, steps=2)
    assert recorded.step_tokens.shape == (2, 3, 8, 8) and recorded.passes.shape == (3,)


def test_a_workdir_belongs_to_one_evaluation(tmp_path):
    data = made.magicbrush(tmp_path / "data", turns=(1,))
    outputs = made.magicbrush_outputs(tmp_path / "outputs", data, "output")
    evaluate("magicbrush", data, tmp_path / "run", outputs=outputs)
    evaluate("magicbrush", data, tmp_path / "run", outputs=outputs)
    shutil.copytree(outputs, tmp_path / "others")
    with pytest.raises(UserError, match="other edited"):
        evaluate("magicbrush", data, tmp_path / "run", outputs=tmp_path / "others")


def test_what_cannot_be_edited_is_skipped_with_its_reason(tmp_path, editor):
    data = made.magicbrush(tmp_path / "data", turns=(1, 2))
    sessions = json.loads((data / "edit_sessions.json").read_text())
    sessions["101"][0]["instruction"] = "make it red " * 200
    (data / "edit_sessions.json").write_text(json.dumps(sessions))
    found = evaluate("magicbrush", data, tmp_path / "run", editor=editor, model="tiny")
    assert found["scored"] == 2 and sum(each["count"] for each in found["skipped"].values()) == 2
    assert found["skipped"][job.NEVER_FIRST]["keys"] == ["101_iter_2"]


# ---- PIE-Bench


def test_pie_masks_are_runs_and_the_border_rule():
    mask = pie.decode_mask([513, 3, 512 * 512 - 2, 10])
    assert mask.sum() == 3 + 2 and mask[1, 1:4].all() and mask[-1, -2:].all()
    assert pie.decode_mask([], border=True).sum() == 4 * 511


def test_pie_figures_by_hand(tmp_path):
    data = made.pie(tmp_path / "data", count=3)
    outputs = tmp_path / "outputs"
    shutil.copytree(data / "annotation_images", outputs)
    pixels_of = np.array(Image.open(outputs / "0_type" / f"{0:012}.png"))
    pixels_of[0, 0] ^= 255  # a border pixel, outside of the true mask
    pixels_of[150] ^= 255
    Image.fromarray(pixels_of).save(outputs / "0_type" / f"{0:012}.png")
    wide = Image.new("RGB", (1024, 512))
    wide.paste(Image.open(outputs / "1_type" / f"{1:012}.png"), (512, 0))
    wide.save(outputs / "1_type" / f"{1:012}.png")
    found = evaluate("pie", data, tmp_path / "run", outputs=outputs)
    assert found["scored"] == 3 and list(found["results"]["all"])[1:] == ["0_random", "1_change_object", "2_add_object"]
    outcome = outcomes.read(tmp_path / "run" / "outcomes.parquet")[0]
    source = np.asarray(Image.open(data / "annotation_images" / "0_type" / f"{0:012}.png"), float) / 255
    error = np.square(source[0, 0] - (255 - np.round(source[0, 0] * 255)) / 255).sum() / (512 * 512 * 3)
    assert outcome["mse_unedit_part"] == 0 and outcome["psnr_unedit_part"] == pixels.EQUAL
    assert outcome["mse_unedit_part_no_border"] == pytest.approx(error, rel=1e-9)
    assert outcome["psnr_unedit_part_no_border"] == pytest.approx(-10 * np.log10(error), rel=1e-9)
    assert outcome["psnr_far"] < pixels.EQUAL == outcome["psnr_band"]
    last = outcomes.read(tmp_path / "run" / "outcomes.parquet")[2]  # its mask is the whole picture
    assert np.isnan(last["psnr_unedit_part"] or np.nan) and found["results"]["all"]["all"]["psnr_unedit_part"]["n"] == 2


def test_pie_of_another_size_is_skipped(tmp_path):
    data = made.pie(tmp_path / "data", count=2)
    shutil.copytree(data / "annotation_images", tmp_path / "outputs")
    made.save(made.picture(0, (256, 256)), tmp_path / "outputs" / "0_type" / f"{0:012}.png")
    found = evaluate("pie", data, tmp_path / "run", outputs=tmp_path / "outputs")
    assert found["skipped"] == {"wrong size": {"count": 1, "keys": [f"{0:012}"]}} and found["scored"] == 1


# ---- the Emu Edit test set and AnyBench


def test_the_two_emu_protocols_read_other_pictures_and_splits(tmp_path):
    data = made.emu(tmp_path / "data", generations=True)
    paper, other = (list(open_protocol(name).read(data, Selection())) for name in ("emu_paper", "emu_anybench"))
    assert [example.key for example in paper] == ["0", "1", "2", "3", "4"]
    assert [example.key for example in other] == ["100", "101", "102", "103", "104"]
    assert picture_bytes(paper[3].target) == picture_bytes(paper[3].source) == made.png(3)
    assert picture_bytes(other[3].target) == made.png(53) and picture_bytes(other[3].source) == made.png(3)
    assert other[3].group == "style" and other[3].caption == "edited picture 3"
    with pytest.raises(UserError, match="edited_image"):
        list(open_protocol("emu_anybench").read(made.emu(tmp_path / "plain", generations=False), Selection()))


@pytest.mark.parametrize("name, first, seed", [("emu_paper", 0, 0), ("emu_anybench", 100, 50)])
def test_emu_pictures_like_the_compared_ones_are_perfect(tmp_path, name, first, seed):
    data = made.emu(tmp_path / "data", generations=True)
    for number in range(4):
        made.save(made.picture(seed + number), tmp_path / "outputs" / f"{first + number}.png")
    made.save(Image.new("RGB", (32, 32)), tmp_path / "outputs" / f"{first + 4}.png")
    found = evaluate(name, data, tmp_path / "run", outputs=tmp_path / "outputs")
    figures = found["results"]["all"]["all"]
    if name == "emu_anybench":
        assert found["skipped"] == {emu.BLACK: {"count": 1, "keys": ["104"]}}
        assert figures["l1"]["mean"] == figures["l2"]["mean"] == 0 and figures["l1"]["n"] == 4
        assert found["published"][0]["values"]["clip_i"] == 0.878
    else:
        black = np.asarray(made.picture(4), float).mean() / 255
        assert figures["l1"]["mean"] == pytest.approx(black / 5) and figures["l1"]["n"] == 5
        assert [each["system"] for each in found["published"]][-1] == "Emu Edit"


def test_anybench_types_layout_and_resizing(tmp_path, editor):
    kinds = [kind for kinds in anybench.TYPES.values() for kind in kinds]
    assert len(kinds) == len(set(kinds)) == 25
    data = made.anybench(tmp_path)
    outputs = tmp_path / "outputs"
    for kind in ("add", "style_change", "visual_depth"):
        shutil.copytree(data / kind / "edited", outputs / kind)
    small = Image.open(outputs / "add" / "add_0.png").resize((16, 24))
    made.save(small, outputs / "add" / "add_0.png")
    found = evaluate("anybench", data, tmp_path / "run", outputs=outputs)
    assert found["scored"] == 6 and list(found["results"]) == ["all", "local", "global", "visual"]
    assert found["results"]["visual"]["all"]["l1"] == {"mean": 0, "low": 0, "high": 0, "n": 2}
    assert found["results"]["local"]["add"]["l1"]["n"] == 2
    assert found["notes"]["another size, the target resized"]["keys"] == ["add/add_0.png"]
    edited = evaluate("anybench", data, tmp_path / "edited", editor=editor, model="tiny")
    assert edited["scored"] == 4 and edited["skipped"][anybench.VISUAL]["count"] == 2
    assert (tmp_path / "edited" / "outputs" / "style_change" / "style_change_1.png").is_file()


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name != "scenes"])
def test_another_layout_is_refused_in_one_line(tmp_path, name):
    (tmp_path / "data").mkdir()
    (tmp_path / "outputs").mkdir()
    with pytest.raises((UserError, FileNotFoundError)) as caught:
        evaluate(name, tmp_path / "data", tmp_path / "run", outputs=tmp_path / "outputs")
    assert str(tmp_path / "data") in str(caught.value) and "\n" not in str(caught.value)


# ---- the command


def test_the_command_scores_a_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("editmgt_jax.cli.shared.use_disk_cache", lambda: None)
    data = made.magicbrush(tmp_path / "data", turns=(1, 2))
    outputs = made.magicbrush_outputs(tmp_path / "outputs", data, "output")
    words = ["evaluate", "magicbrush", "--data", str(data), "--workdir", str(tmp_path / "run")]
    assert cli.main([*words, "--outputs", str(outputs), "--limit", "3"]) == 0
    printed = capsys.readouterr().out
    assert "3 examples of the benchmark's 1571; 3 scored" in printed and "final_turn" in printed
    assert cli.main([*words, "--outputs", str(outputs)]) == 2
    assert "other examples_sha256, selection" in capsys.readouterr().err
    assert cli.main([*words, "--outputs", str(tmp_path / "none")]) == 2
    assert "there is none at" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(words)


def test_a_judged_protocol_without_a_judge_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("editmgt_jax.cli.shared.use_disk_cache", lambda: None)
    data = made.gedit(tmp_path / "data", {"color_alter": 1})
    made.save(made.picture(0), tmp_path / "outputs" / "fullset" / "color_alter" / "en" / "color_alter0.png")
    words = f"evaluate gedit_editmgt --data {data} --outputs {tmp_path / 'outputs'} --workdir {tmp_path / 'run'}"
    assert cli.main(words.split()) == 0
    assert "no scores without --judge" in capsys.readouterr().err
