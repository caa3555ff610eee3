"""The judge against a local endpoint that answers well, badly, late or not at all; the protocols that it scores."""

import csv
import json
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import benchmark_data as made
import numpy as np
import pytest
from PIL import Image
from stub_judge import reply, serving

from editmgt_jax.errors import TRANSIENT, UserError
from editmgt_jax.evaluation import evaluate as job
from editmgt_jax.evaluation import outcomes, report
from editmgt_jax.evaluation.features import Models
from editmgt_jax.evaluation.judge import Judge, Judged, JudgeError, read_prompts
from editmgt_jax.evaluation.protocol import Selection
from editmgt_jax.evaluation.protocols import gedit, geditbench_v2, imgedit
from editmgt_jax.evaluation.protocols.table import open_protocol

PICTURE = made.picture(0)


def make_judge(tmp_path, **options):
    return Judge("model", tmp_path / "cache", **({"first_wait": 0.01, "retries": 4, "timeout": 5} | options))


def evaluate(name, data, workdir, judge, outputs):
    return job.evaluate(open_protocol(name), data, workdir, outputs=outputs, models=Models(judge=judge))


def same(one, other):
    return outcomes.plain(one["results"]) == outcomes.plain(other["results"])


def questions(body):
    """-> (text, number of pictures)"""
    content = body["messages"][0]["content"]
    return content[0]["text"], len(content) - 1


# ---- the endpoint


def test_a_reply_costs_one_request_and_then_none(tmp_path, monkeypatch):
    with serving(lambda body, number: reply("fine"), monkeypatch) as stub:
        judge = make_judge(tmp_path)
        assert judge.ask("what?", [PICTURE, PICTURE]) == judge.ask("what?", [PICTURE, PICTURE]) == "fine"
        assert make_judge(tmp_path).ask("what?", [PICTURE, PICTURE]) == "fine"
        assert len(stub.bodies) == 1 and stub.keys == ["Bearer secret"]
        judge.ask("what?", [PICTURE, PICTURE], attempt=1)
        judge.ask("what else?", [PICTURE])
        assert len(stub.bodies) == 3
    body = stub.bodies[0]
    assert body["model"] == "model" and body["temperature"] == 0 and questions(body) == ("what?", 2)
    assert body["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "cache").rglob("*.json"))


@pytest.mark.parametrize(
    "bad",
    [
        (429, {"Retry-After": "0"}, b'{"error": {"message": "slow down"}}'),
        (500, {}, b"oops"),
        (200, {}, b"<html>"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"message": {"content": null}}]}'),
    ],
    ids=["429", "500", "no JSON", "no choice", "no text"],
)
def test_passing_faults_are_tried_again(tmp_path, monkeypatch, bad):
    with serving(lambda body, number: bad if number < 2 else reply("fine"), monkeypatch) as stub:
        assert make_judge(tmp_path).ask("what?", [PICTURE]) == "fine"
    assert len(stub.bodies) == 3


def test_equal_questions_at_one_time_are_asked_once(tmp_path, monkeypatch):
    def answer(body, number):
        time.sleep(0.2)
        return reply(f"reply {number}")

    with serving(answer, monkeypatch) as stub, ThreadPoolExecutor(4) as pool:
        judge = make_judge(tmp_path)
        replies = list(pool.map(lambda _: judge.ask("what?", [PICTURE]), range(4)))
    assert replies == ["reply 0"] * 4 and len(stub.bodies) == 1


def test_a_late_reply_is_asked_for_again(tmp_path, monkeypatch):
    def answer(body, number):
        if number == 0:
            time.sleep(1.5)
        return reply("fine")

    with serving(answer, monkeypatch) as stub:
        assert make_judge(tmp_path, timeout=0.5).ask("what?", [PICTURE]) == "fine"
    assert len(stub.bodies) == 2


def test_waits_grow_and_retry_after_is_obeyed(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr("editmgt_jax.evaluation.judge.time.sleep", waits.append)
    headers = {"Retry-After": "7"}
    with serving(lambda body, number: (429, headers if number == 3 else {}, b"{}"), monkeypatch):
        with pytest.raises(JudgeError) as caught:
            make_judge(tmp_path, first_wait=1.0).ask("what?", [PICTURE])
    assert caught.value.transient and caught.value.exit_code == TRANSIENT
    for wait, most in zip(waits[:3], (1, 2, 4), strict=True):
        assert most / 2 <= wait <= most
    assert len(waits) == 4 and 7 <= waits[3] <= 8


def test_a_refusal_is_final(tmp_path, monkeypatch):
    with serving(lambda body, number: (401, {}, b'{"error": {"message": "bad key"}}'), monkeypatch) as stub:
        with pytest.raises(JudgeError, match="401: bad key") as caught:
            make_judge(tmp_path).ask("what?", [PICTURE])
    assert not caught.value.transient and len(stub.bodies) == 1


def test_an_address_is_needed(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UserError, match="OPENAI_BASE_URL"):
        make_judge(tmp_path)


def test_prompts_of_a_file(tmp_path, monkeypatch):
    path = tmp_path / "prompts.json"
    path.write_text('{"semantics": "S <instruction>"}')
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1")
    judge, house = make_judge(tmp_path, prompts=path), make_judge(tmp_path)
    assert judge.prompt("semantics", gedit.HOUSE) == "S <instruction>"
    assert house.variant == "temperature 0, prompts house-1" != judge.variant
    with pytest.raises(UserError, match="'quality'"):
        judge.prompt("quality", gedit.HOUSE)
    path.write_text("[1]")
    with pytest.raises(UserError, match="names and texts"):
        read_prompts(path)


MODULE = """import os
os.abort()
_context_no_delimit = \"\"\"You judge.\"\"\"
_prompts_0shot_two_image_edit_rule = "Two pictures."
_prompts_0shot_tie_rule_SC = "Did it: <instruction>?"
_prompts_0shot_rule_PQ = "Natural?"
"""


def test_the_official_module_of_prompts_is_read_and_not_run(tmp_path, monkeypatch):
    path = tmp_path / "data" / "viescore" / "vie_prompts.py"
    path.parent.mkdir(parents=True)
    path.write_text(MODULE)
    expected = {"semantics": "You judge.\nTwo pictures.\nDid it: <instruction>?", "quality": "You judge.\nNatural?"}
    assert read_prompts(path) == open_protocol("gedit_step1x").prompts(tmp_path) == expected
    path.write_text(MODULE.replace("_rule_PQ", "_rule_XY"))
    with pytest.raises(UserError, match="lacks _prompts_0shot_rule_PQ"):
        read_prompts(path)
    path.write_text("prompt = 'cut off")
    with pytest.raises(UserError, match="no Python") as error:
        read_prompts(path)
    assert "\n" not in str(error.value)


def test_prompts_of_the_data_are_taken_unless_a_file_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1")
    data = made.gedit(tmp_path / "data", {"style_change": 1})
    (data / "vie_prompts.py").write_text(MODULE)
    made.save(made.picture(0), tmp_path / "outputs" / "stray.png")
    given = tmp_path / "prompts.json"
    given.write_text('{"semantics": "S", "quality": "Q"}')
    judges = make_judge(tmp_path), make_judge(tmp_path, prompts=given)
    for number, judge in enumerate(judges):
        found = evaluate("gedit_step1x", data, tmp_path / str(number), judge, tmp_path / "outputs")
        assert judge.variant in found["models"]["judge"] and "house" not in judge.variant
    assert judges[0].prompt("quality", {}) == "You judge.\nNatural?" and judges[1].prompt("quality", {}) == "Q"


# ---- GEdit-Bench


@pytest.mark.parametrize(
    "text, scores",
    [
        ('{"score": [7, 9], "reasoning": "good"}', [7, 9]),
        ('Sure:\n```json\n{"score": [7,\n 9], "reasoning": "good"}\n```', [7, 9]),
        ('{"score": 4}', [4]),
        ("[3, 5]", [3, 5]),
        ("8", [8]),
        ("I cannot help with that", None),
        ('{"score": [7, 9]', None),
        ('{"score": ["high", "low"]}', None),
        ('{"score": [11, 3]}', None),
        ('{"score": []}', None),
        ("", None),
    ],
)
def test_replies_are_parsed(text, scores):
    assert gedit.parse_scores(text) == scores


def test_expected_scores_of_guesses():
    assert gedit.guessed(4.0, 9.0) == 6
    assert gedit.guessed(None, 9.0) == pytest.approx(np.mean([math.sqrt(9 * n) for n in range(11)]))
    assert gedit.guessed(None, None) == pytest.approx(np.mean(np.sqrt(np.arange(11))) ** 2)


@pytest.mark.parametrize("size, expected", [((80, 40), (724, 362)), ((512, 512), (512, 512)), ((30, 90), (295, 886))])
def test_area_of_512_squared(size, expected):
    assert gedit.of_area(Image.new("RGB", size)).size == expected


def test_gedit_against_the_stub(tmp_path, monkeypatch):
    data = made.gedit(tmp_path / "data", {"color_alter": 2, "subject-add": 1})
    protocol = open_protocol("gedit_step1x")
    examples = list(protocol.read(data, Selection()))
    assert [example.output for example in examples] == [
        "fullset/color_alter/en/color_alter0.png",
        "fullset/color_alter/en/color_alter1.png",
        "fullset/subject-add/en/subject-add0.png",
    ]
    assert len(list(protocol.read(data, Selection(language="cn")))) == 1
    outputs = tmp_path / "outputs"
    for number, example in enumerate(examples):
        protocol.prepare(example, outputs)
        made.save(made.picture(20 + number, (60, 60)), outputs / example.output)

    def answer(body, number):
        text, pictures = questions(body)
        if pictures == 1:
            return reply('{"score": [8, 9]}')
        return reply('{"score": [2, 5]}')

    with serving(answer, monkeypatch) as stub:
        found = evaluate("gedit_step1x", data, tmp_path / "run", make_judge(tmp_path), outputs)
        again = evaluate("gedit_step1x", data, tmp_path / "again", make_judge(tmp_path), outputs)
    assert len(stub.bodies) == 6 and same(again, found)
    figures = found["results"]["en"]["all"]
    assert figures["sementics_score"]["mean"] == 2 and figures["quality_score"]["mean"] == 8
    assert figures["overall_score"]["mean"] == 4 and figures["overall_score_shift_by_guesses"]["mean"] == 0
    assert found["results"]["en, intersection"]["all"]["overall_score"]["n"] == 2
    assert found["extra"]["count"] == 0
    files = sorted(path.name for path in (tmp_path / "run" / "csv").iterdir())
    assert len(files) == 12 and "run_combined_gpt_score.csv" in files
    with (tmp_path / "run" / "csv" / "run_color_alter_gpt_score.csv").open(newline="") as file:
        entries = list(csv.DictReader(file))
    assert list(entries[0]) == [
        "source_image", "edited_image", "instruction", "sementics_score", "quality_score", "intersection_exist",
        "instruction_language",
    ]  # fmt: skip
    assert [entry["intersection_exist"] for entry in entries] == ["True", "False"]

    (outputs / "fullset/subject-add/en/subject-add0_SRCIMG.png").unlink()
    judged = evaluate("gedit_step1x", data, tmp_path / "offline", Judged(tmp_path / "run" / "csv"), outputs)
    assert judged["skipped"] == {gedit.NO_SOURCE: {"count": 1, "keys": ["subject-add/en/subject-add0"]}}
    assert judged["results"]["en"]["color_alter"]["overall_score"]["mean"] == 4


def test_unparsed_replies_are_counted_and_never_a_number(tmp_path, monkeypatch):
    data = made.gedit(tmp_path / "data", {"color_alter": 2, "subject-add": 2})
    outputs = tmp_path / "outputs"
    for number, example in enumerate(open_protocol("gedit_editmgt").read(data, Selection())):
        made.save(made.picture(20 + number, (60, 30)), outputs / example.output)
    bad = []

    def answer(body, number):
        text, pictures = questions(body)
        if pictures == 1:
            return reply('{"score": [9, 9]}')
        url = body["messages"][0]["content"][2]["image_url"]["url"]
        if not bad or url in bad:
            bad.append(url)
            return reply("no")
        return reply('{"score": [4, 4]}')

    with serving(answer, monkeypatch):
        judge = make_judge(tmp_path, workers=1)
        found = evaluate("gedit_editmgt", data, tmp_path / "run", judge, outputs)
    assert len(bad) == 2  # asked again once
    figures = found["results"]["en"]["all"]
    assert figures["unparsed"]["mean"] == 0.25 and figures["overall_score"] == {"mean": 6, "low": 6, "high": 6, "n": 3}
    guess = gedit.guessed(None, 9.0)
    assert figures["overall_score_shift_by_guesses"]["mean"] == pytest.approx(((guess + 6) / 2 + 6) / 2 - 6)
    assert sorted(path.name for path in (tmp_path / "run" / "csv").iterdir())[1] == "run_color_alter_en_vie_score.csv"
    assert "unparsed" in report.benchmark(found)


def test_a_stopped_evaluation_goes_on_without_new_questions(tmp_path, monkeypatch):
    data = made.gedit(tmp_path / "data", {"color_alter": 4})
    outputs = tmp_path / "outputs"
    for number, example in enumerate(open_protocol("gedit_editmgt").read(data, Selection())):
        made.save(made.picture(20 + number, (60, 30)), outputs / example.output)
    with serving(lambda body, number: reply('{"score": [5, 5]}') if number < 5 else (500, {}, b""), monkeypatch):
        with pytest.raises(JudgeError):
            evaluate("gedit_editmgt", data, tmp_path / "run", make_judge(tmp_path, workers=1, retries=0), outputs)
    with serving(lambda body, number: reply('{"score": [5, 5]}'), monkeypatch) as stub:
        found = evaluate("gedit_editmgt", data, tmp_path / "run", make_judge(tmp_path, workers=1), outputs)
    assert len(stub.bodies) == 8 - 5 and found["scored"] == 4


# ---- ImgEdit-Bench


def test_imgedit_marks_and_layout(tmp_path, monkeypatch):
    text = (
        "Brief reasoning: shell: textured.\nPrompt Compliance: 1\nVisual Seamlessness: 4\nPhysical & Detail Fidelity: 5"
    )
    assert list(imgedit.marks_of(text).values()) == [1, 4, 5]
    data = made.imgedit(tmp_path / "data")
    for key in ("1082", "1083", "1084"):
        made.save(made.picture(int(key)), tmp_path / "outputs" / f"{key}.png")

    def answer(body, number):
        asked, pictures = questions(body)
        assert pictures == 2 and "make the car red" in asked
        return reply("no marks" if "style" in asked else text)

    with serving(answer, monkeypatch):
        found = evaluate("imgedit", data, tmp_path / "run", make_judge(tmp_path), tmp_path / "outputs")
    figures = found["results"]["all"]["all"]
    assert figures["score"]["mean"] == pytest.approx(10 / 3) and figures["score_rounded"]["mean"] == 3.33
    assert figures["score"]["n"] == 2 and figures["unparsed"]["mean"] == pytest.approx(1 / 3)
    assert found["results"]["all"]["style"]["score"]["n"] == 0
    assert found["results"]["mean of types"]["all"]["score"]["mean"] == pytest.approx(10 / 3)
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written == {"1082": text, "1083": text, "1084": "no marks"}
    judged = evaluate(
        "imgedit", data, tmp_path / "offline", Judged(tmp_path / "run" / "result.json"), tmp_path / "outputs"
    )
    assert same(judged, found)


def test_imgedit_needs_its_own_prompts(tmp_path, monkeypatch):
    data = made.imgedit(tmp_path / "data", prompts=False)
    made.save(made.picture(0), tmp_path / "outputs" / "1082.png")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1")
    with pytest.raises(UserError, match="--prompts"):
        evaluate("imgedit", data, tmp_path / "run", make_judge(tmp_path), tmp_path / "outputs")


# ---- GEditBench v2


def test_geditbench_v2_pairs_and_ratings(tmp_path, monkeypatch):
    monkeypatch.setattr("editmgt_jax.evaluation.ratings.BOOTSTRAPS", 20)
    data = made.geditbench_v2(tmp_path / "data")
    shutil.copytree(data / "images" / "edited" / "BAGEL", tmp_path / "outputs")
    for path in (tmp_path / "outputs").iterdir():
        made.save(made.picture(7 + int(path.stem[-1])), path)

    def answer(body, number):
        return reply('{"winner": "Tie", "reasoning": ""}')

    with serving(answer, monkeypatch) as stub:
        found = evaluate("geditbench_v2", data, tmp_path / "run", make_judge(tmp_path), tmp_path / "outputs")
    assert len(stub.bodies) == 8 and found["results"]["all"]["all"]["wins"]["mean"] == 0.5
    rated = found["results"]["ratings"]["all"]
    assert {name: round(figure["mean"], 3) for name, figure in rated.items()} == {
        "BAGEL": 1000,
        "FLUX": 1000,
        "evaluated": 1000,
    }
    lines = [json.loads(line) for line in (tmp_path / "run" / "pairs.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and lines[0]["results"] == {"winner": "Tie"}
    query, pair = lines[0]["key"].split("_pair_")
    assert query == "color_alter_000000" and set(pair.split("_vs_")) == {"evaluated", "BAGEL"}
    judged = evaluate(
        "geditbench_v2", data, tmp_path / "offline", Judged(tmp_path / "run" / "pairs.jsonl"), tmp_path / "outputs"
    )
    assert same(judged, found)
    kept = outcomes.read(tmp_path / "run" / "outcomes.parquet")
    assert kept[0]["group"] == "color_alter" and json.loads(kept[0]["pairs"])[0][2] == 0.5


def test_which_picture_is_a_depends_on_the_query():
    firsts = [geditbench_v2.is_first(f"key_{n}", "BAGEL") for n in range(200)]
    assert 70 < sum(firsts) < 130
    assert geditbench_v2.winner_of('{"winner": "Image B"}') == 0 and geditbench_v2.winner_of("B") is None
