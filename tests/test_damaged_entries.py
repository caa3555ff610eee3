"""Entries of benchmarks that are none: each is one line that names the file, and nothing is written."""

import dataclasses
import json

import benchmark_data as made
import pytest

from editmgt_jax.errors import UserError
from editmgt_jax.evaluation import evaluate as job
from editmgt_jax.evaluation.features import Models
from editmgt_jax.evaluation.judge import Judged
from editmgt_jax.evaluation.protocol import Selection
from editmgt_jax.evaluation.protocols.table import open_protocol

MAKERS = {
    "magicbrush": (made.magicbrush, "edit_sessions.json"),
    "pie": (made.pie, "mapping_file.json"),
    "imgedit": (made.imgedit, "basic_edit.json"),
    "geditbench_v2": (made.geditbench_v2, "metadata.jsonl"),
    "anybench": (made.anybench, "edit_result.json"),
}
TURN = {"input": "a.png", "output": "b.png", "instruction": "turn"}
ITEM = {"editing_instruction": "x", "image_path": "a.png", "mask": [], "editing_prompt": "p", "original_prompt": "p"}


@pytest.mark.parametrize(
    "name, text, told",
    [
        ("magicbrush", json.dumps({"7": 3}), "session 7 .* must be a list of turns; got 3"),
        ("magicbrush", json.dumps({"7": [5]}), "turn 1 of session 7 .* must be a JSON object; got int"),
        (
            "magicbrush",
            json.dumps({"7": [TURN, TURN | {"instruction": 5}]}),
            "turn 2 .* must have 'instruction', a text; got 5",
        ),
        ("pie", json.dumps({"a": 1}), "a of mapping_file.json .* must be a JSON object; got int"),
        ("pie", json.dumps({"a": ITEM}), "must have 'editing_type_id', a text or an integer; got None"),
        ("pie", json.dumps({"a": ITEM | {"editing_type_id": "x"}}), "must have a number as 'editing_type_id'; got 'x'"),
        ("imgedit", json.dumps({"k": {"id": 3}}), "k of basic_edit.json .* must have 'id', a text; got 3"),
        ("geditbench_v2", "{", "line 1 of .*metadata.jsonl must be JSON"),
        ("geditbench_v2", "[1]", "line 1 of .* must be a JSON object; got list"),
        ("geditbench_v2", '{"key": "a"}', "line 1 of .* must have 'instruction', a text; got None"),
        ("anybench", '[{"edit": "x"}]', "entry 0 of .*edit_result.json must have 'image_file', a text; got None"),
    ],
)
def test_entries_of_json(tmp_path, name, text, told):
    maker, file = MAKERS[name]
    data, outputs = tmp_path / "data", tmp_path / "outputs"
    data.mkdir()
    outputs.mkdir()
    data = maker(data) or data
    for path in (tmp_path / "data").rglob(file):
        path.write_text(text)
    with pytest.raises(UserError, match=told) as error:
        job.evaluate(open_protocol(name), data, tmp_path / "run", outputs=outputs)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name, choice", [("magicbrush", {"split": "test"}), ("emu_paper", {"language": "en"})])
def test_what_a_benchmark_has_once_cannot_be_chosen(tmp_path, name, choice):
    (told,) = choice
    with pytest.raises(UserError, match=f"{name} has no {told} to choose; got '{choice[told]}'"):
        job.evaluate(open_protocol(name), tmp_path, tmp_path / "run", outputs=tmp_path, selection=Selection(**choice))
    assert not (tmp_path / "run").exists()


def test_a_table_that_is_cut_off(tmp_path):
    """A Parquet file that is cut off is told by name."""
    pytest.importorskip("pyarrow")
    made.emu(tmp_path / "data", False)
    (tmp_path / "outputs").mkdir()
    whole = next((tmp_path / "data").rglob("*.parquet"))
    for path in (tmp_path / "data").rglob("*.parquet"):
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"{whole.parent}.*parquet must be a Parquet file; it is cut off or damaged"):
        job.evaluate(open_protocol("emu_paper"), tmp_path / "data", tmp_path / "run", outputs=tmp_path / "outputs")


def test_an_example_without_an_instruction_is_skipped(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    (tmp_path / "data").mkdir()
    (tmp_path / "outputs").mkdir()
    protocol = open_protocol("imgedit")
    first, *others = protocol.read(made.imgedit(tmp_path / "data"), None)
    monkeypatch.setattr(protocol, "read", lambda *_: [dataclasses.replace(first, instruction=None), *others])
    summary = job.evaluate(protocol, tmp_path / "data", tmp_path / "run", outputs=tmp_path / "outputs")
    assert summary["skipped"]["no instruction"] == {"count": 1, "keys": [first.key]} and summary["examples"] == len(
        others
    )


CSV = "key,sementics_score,quality_score,instruction_language\n"
PAIR = '{"key": "q_pair_a_vs_b"'


@pytest.mark.parametrize(
    "name, text, told",
    [
        ("gedit_editmgt", "a,b\n1,2\n", "line 2 of .*judged.csv must have two numbers .*; got None, None, None"),
        ("gedit_editmgt", CSV + "x,high,3,en\n", "line 2 of .*; got high, 3, en"),
        ("gedit_editmgt", CSV + "x,7\n", "line 2 of .*; got 7, None, None"),
        ("gedit_editmgt", b"\xff\xfe", "judged.csv must be a CSV file of text"),
        ("geditbench_v2", "{", "line 1 of .*judged.jsonl must be JSON: it is cut off"),
        ("geditbench_v2", "[1]", "^line 1 of .* must be a JSON object; got list"),
        ("geditbench_v2", '{"key": 3}', "^line 1 of .* must have 'key', a text; got 3"),
        ("geditbench_v2", '\n{"key": "x"}', "line 2 of .* of the form KEY_pair_A_vs_B; got 'x'"),
        ("geditbench_v2", PAIR + ', "results": 3}', "the results in line 1 of .* must be a JSON object; got int"),
    ],
)
def test_judged_files(tmp_path, name, text, told):
    data, outputs, judged = tmp_path / "data", tmp_path / "outputs", tmp_path / "judged"
    data.mkdir()
    judged.mkdir()
    data = made.gedit(data, {"color_alter": 1}) if name.startswith("gedit_") else made.geditbench_v2(data, count=1)
    (entry,) = open_protocol(name).read(data, Selection())
    made.save(made.picture(1), outputs / entry.output)
    file = judged / ("judged.csv" if name.startswith("gedit_") else "judged.jsonl")
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=told) as error:
        job.evaluate(open_protocol(name), data, tmp_path / "run", outputs=outputs, models=Models(judge=Judged(judged)))
    assert "\n" not in str(error.value)


def test_judged_scores_that_are_none_are_counted(tmp_path):
    data, outputs = tmp_path / "data", tmp_path / "outputs"
    data.mkdir()
    made.gedit(data, {"color_alter": 4})
    for entry in open_protocol("gedit_editmgt").read(data, Selection()):
        made.save(made.picture(1), outputs / entry.output)
    lines = ["color_alter0,8,2,en", "color_alter1,nan,2,en", "color_alter2,70,2,en", 'color_alter3,"8",2,en']
    (tmp_path / "judged.csv").write_text(CSV + "\n".join(lines))
    models = Models(judge=Judged(tmp_path / "judged.csv"))
    found = job.evaluate(open_protocol("gedit_editmgt"), data, tmp_path / "run", outputs=outputs, models=models)
    figures = found["results"]["en"]["all"]
    assert figures["unparsed"]["mean"] == 0.5 and figures["overall_score"]["mean"] == 4
    assert figures["overall_score"]["n"] == 2 and figures["quality_score"]["n"] == 4
