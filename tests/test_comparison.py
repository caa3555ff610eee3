"""Evaluations side by side: pairs, intervals, published numbers, the order of the pictures."""

import re

import benchmark_data as made
import numpy as np
import pytest
from PIL import Image

from editmgt_jax import cli
from editmgt_jax.errors import UserError
from editmgt_jax.evaluation import comparison, comparison_report, evaluate, published
from editmgt_jax.evaluation.protocols.table import PROTOCOLS, open_protocol
from editmgt_jax.report.page import to_markdown


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Two systems on MagicBrush: the targets, and the targets made darker, one more the larger its session; one is missing."""
    folder = tmp_path_factory.mktemp("comparison")
    data = made.magicbrush(folder / "data", turns=(1, 2, 1, 3))
    good = made.magicbrush_outputs(folder / "good", data, "output")
    dark = made.magicbrush_outputs(folder / "dark", data, "output")
    for path in dark.rglob("*.png"):
        darker = np.asarray(Image.open(path), float) * (1 - 0.1 * (int(path.parent.name) - 99))
        Image.fromarray(darker.round().astype(np.uint8)).save(path)
    (dark / "100" / "100_1.png").unlink()
    for name, outputs in (("good", good), ("dark", dark)):
        evaluate.evaluate(open_protocol("magicbrush"), data, folder / f"run_{name}", outputs=outputs)
    return folder, comparison.read([folder / "run_good", folder / "run_dark"], ["good", "dark"])


def markdown(*systems):
    found = comparison.compare(systems)
    return to_markdown(comparison_report.title_of(found), comparison_report.sections(found))


def test_differences_are_over_the_pairs_that_both_scored(evaluated):
    _, (good, dark) = evaluated
    found = comparison.difference(good, dark, "l1", "all_turn")
    values = [dark.outcomes[key]["l1"] for key in good.outcomes if good.outcomes[key]["all_turn"] and key != "100_1"]
    assert found["n"] == len(values) == 6 and found["mean"] == pytest.approx(np.mean(values))
    assert 0 < found["low"] < found["mean"] < found["high"]
    assert comparison.difference(good, good, "l1", "final_turn")["mean"] == 0


def test_the_table_has_every_system_and_the_published_numbers(evaluated):
    _, runs = evaluated
    text = markdown(*runs)
    assert "# magicbrush version 2" in text and "## all_turn" in text and "## final_turn" in text
    line = next(line for line in text.splitlines() if line.startswith("| l1 ↓"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == "0 [0, 0]" and cells[3].endswith("* worse")
    assert (
        "| system | l1 ↓ |" in text and "| EditMGT (published) | 0.058 |" in text and "AnyEdit (published)" not in text
    )
    assert "1 missing" in text and f"Published: {published.EDITMGT}." in text


def test_pictures_are_in_order_of_difference(evaluated):
    _, runs = evaluated
    for metric in (None, "l1"):
        keys = [key for key, _ in comparison.ordered(runs, metric)]
        sessions = [key.split("_")[0] for key in keys]
        assert sessions == sorted(sessions, reverse=True) and "100_1" not in keys
    with pytest.raises(UserError, match="l1"):
        comparison.ordered(runs, "nothing")


def test_the_worst_of_one_evaluation_come_first(evaluated):
    _, (_, dark) = evaluated
    keys = [key for key in dark.outcomes if not dark.outcomes[key]["skipped"]]
    assert [key for key, _ in comparison.ordered([dark])] == keys  # without a metric in the order of the data
    for metric, sign in (("l1", -1), ("psnr_outside", 1)):
        found = comparison.ordered([dark], metric)
        assert [value for _, value in found] == sorted((value for _, value in found), key=lambda value: sign * value)
        assert len(found) > 4 and found[0][1] != found[-1][1]
    (title, rows) = comparison_report.edits([dark], "l1", 2).title, comparison_report.edits([dark]).parts
    assert title == "Edits, the worst first, by l1" and "difference" not in rows[0].text
    assert [picture.caption for picture in rows[0].pictures] == ["source", "target", "dark"]


def test_an_editor_that_does_nothing_wins_nothing(evaluated, tmp_path):
    folder, (good, _) = evaluated
    sources = made.magicbrush_outputs(tmp_path / "sources", folder / "data", "input")
    evaluate.evaluate(open_protocol("magicbrush"), folder / "data", tmp_path / "run", outputs=sources)
    (idle,) = comparison.read([tmp_path / "run"], ["idle"])
    assert idle.summary["results"]["all_turn"]["all"]["psnr_outside"]["mean"] == 100
    for metric in ("psnr_outside", "psnr_far", "psnr_outside_edited"):
        assert comparison.difference(good, idle, metric, "all_turn")["n"] == 0
    text = markdown(good, idle)
    assert "idle changes nothing inside the mask in 100 % of its edits" in text and "good changes" not in text
    assert not [line for line in text.splitlines() if line.startswith("| psnr") and "better" in line]


def test_variants_have_a_table_of_their_own():
    figure = {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 2}
    entries = [
        {"metric": f"{variant}:{name}", "values": [figure], "direction": 1}
        for variant in ("free", "held+composite")
        for name in ("psnr_outside", "noop")
    ]
    said, table = comparison_report.variant_table(entries, 0, "model")
    assert "model" in said.text and table.heads == ["figure", "free", "held+composite"]
    assert table.cells[0] == ["psnr_outside ↑", "1 [1, 1]", "1 [1, 1]"]
    assert comparison_report.variant_table([entries[0] | {"values": [None]}], 0, "") == []


def test_the_page_is_whole_and_escapes(evaluated, tmp_path):
    _, runs = evaluated
    key = comparison.ordered(runs, "l1")[0][0]
    runs[0].outcomes[key]["instruction"] = "make <b> bold"
    text = comparison_report.write(runs, tmp_path, "l1", pictures=3).read_text()
    assert text.count('<div class="row"') == 3 and text.count("<img") == 3 * 4
    assert text.count("<table>") == text.count("</table>") == 5 and 'src="data:image/jpeg' in text
    assert not re.search(r"https?://", re.sub(r"arXiv[^<]*", "", text))
    assert (
        "<b>" not in text and "make &lt;b&gt; bold" in comparison_report.write(runs, tmp_path, pictures=9).read_text()
    )


def test_the_command_writes_the_report(evaluated, tmp_path, capsys):
    folder, _ = evaluated
    words = ["report", str(folder / "run_good"), str(folder / "run_dark"), "--labels", "good", "dark"]
    assert cli.main([*words, "--output", str(tmp_path / "out"), "--metric", "l1", "--pictures", "2"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report.html")
    assert (tmp_path / "out" / "report.html").read_text().count('<div class="row"') == 2
    assert "dark - good" in (tmp_path / "out" / "report.md").read_text()
    assert cli.main([*words, "--metric", "nothing"]) == 2 and "a metric must be one of" in capsys.readouterr().err
    assert cli.main(["report", str(folder / "run_good")]) == 0 and (folder / "run_good" / "report.html").is_file()


def test_other_protocols_are_not_compared(evaluated, tmp_path):
    folder, _ = evaluated
    data = made.pie(tmp_path / "pie", count=2)
    evaluate.evaluate(open_protocol("pie"), data, tmp_path / "run", outputs=data / "annotation_images")
    with pytest.raises(UserError, match="magicbrush version 2, pie version 2"):
        comparison.read([folder / "run_good", tmp_path / "run"])
    with pytest.raises(FileNotFoundError, match="summary.json"):
        comparison.read([tmp_path])
    assert comparison.is_evaluation(tmp_path / "run") and not comparison.is_evaluation(tmp_path)


def test_published_numbers_name_their_source_and_known_metrics():
    assert len({(each.protocol, each.system, each.view) for each in published.TABLE}) == len(published.TABLE)
    for each in published.TABLE:
        assert "arXiv" in each.source and each.values
        assert each.values.keys() <= open_protocol(each.protocol).directions.keys()
        assert each.protocol in PROTOCOLS
        assert each.view in (None, "en", *open_protocol(each.protocol).views())
    assert published.of("magicbrush")[0].values == {"clip_i": 0.911, "clip_t": 0.301, "l1": 0.058, "dino": 0.881}
