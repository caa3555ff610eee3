"""Reports: figures of planted records, pages without requests, training runs and evaluations."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import planted_records
import pytest

from editmgt_jax.ablation import score as scores
from editmgt_jax.ablation import search
from editmgt_jax.ablation.config import AblationConfig, Examples, Score, Search, Statistics
from editmgt_jax.ablation.report import report, studies
from editmgt_jax.ablation.workdir import write_workdir
from editmgt_jax.errors import UserError
from editmgt_jax.report import page

pytest.importorskip("vl_convert")
pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An ablation in which blocks 2 and 3 show the truth, with its report."""
    folder = tmp_path_factory.mktemp("planted <run>")
    planted_records.write(folder / "records", (0, 0, 2, 2, 0, 0), examples=40)
    config = AblationConfig(
        task="ablate",
        examples=Examples(count=40, objects="core"),
        score=Score(sets=("singles", "ranges", "released", "default"), signals=("text_to_image", "image_to_text"),
                    groups=("all", "query"), windows=("each", "all")),
        search=Search(shown=3),
        statistics=Statistics(resamples=200, permutations=200),
    )  # fmt: skip
    write_workdir(folder, config)
    scores.score(config, folder)
    search.search(config, folder)
    report.report(folder)
    return folder, config


class Seen(HTMLParser):
    """Tags that are open, and every address that a browser would ask for."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_requests_nothing(run):
    text = (run[0] / "report.html").read_text()
    seen = Seen()
    seen.feed(text)
    assert not seen.open and all(address.startswith("data:") for address in seen.addresses)
    assert "script" not in seen.tags and "@import" not in text and "url(http" not in text
    assert seen.tags.count("svg") >= 6 and seen.tags.count("img") == 2 + 0
    assert "var(--ink)" in text and "prefers-color-scheme: dark" in text
    assert not re.search(r"#0[1-4]0[1-4]0[1-4]\b", text), "a colour of the page that was not replaced"


def test_what_a_report_says_is_what_was_planted(run):
    folder, _ = run
    text = (folder / "report.md").read_text()
    assert "blocks 2-3 (" in text and ": a difference." in text
    assert "planted <run>" in text and "planted &lt;run&gt;" in (folder / "report.html").read_text()
    for words in ("BCa bootstrap", "Benjamini and Hochberg", "Even examples choose", "sign flips"):
        assert words in text


def test_points_of_a_figure_are_means_of_the_odd_examples(run):
    folder, config = run
    found = studies.Scores.read(folder, config)
    number = next(i for i, entry in enumerate(found.entries) if entry["blocks"] == [1, 2])
    values = scores.read_scores(folder, "ap")[found.entries[number]["setting"]].mean(axis=1)[1::2]
    point = found.point(number)
    assert point["mean"] == pytest.approx(values.mean(), abs=1e-6) and point["low"] < point["mean"] < point["high"]


def test_mean_curves_of_a_perfect_and_a_useless_map(tmp_path):
    from editmgt_jax.ablation.choices import View
    from editmgt_jax.ablation.scoring import Scorer

    planted_records.write(tmp_path, (1000.0, 0, 0, 0, 0, 0), noise=1e-3, token_grid=(4, 4))
    scorer = Scorer(search.Records.open(tmp_path), View("text_to_image", "all", "rate 1.0", "mean", "none", "nearest"))
    true_rate, precision = studies._mean_curves(scorer, np.eye(6)[0])
    np.testing.assert_allclose(true_rate, 1)
    np.testing.assert_allclose(precision, 1)
    true_rate, _ = studies._mean_curves(scorer, np.eye(6)[1])
    assert np.abs(true_rate - studies.CURVE).mean() < 0.15


def test_tables_of_markdown_keep_bars():
    text = page.to_markdown("t", [page.Section("s", [page.Table(("a|b", "c"), [("1", "2|3")])])])
    assert "| a\\|b | c |" in text and "| 1 | 2\\|3 |" in text


def test_a_training_run_and_an_evaluation(tmp_path):
    lines = [{"step": step, "loss": 3.0 / step, "eval/loss": 2.0} for step in range(1, 30)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert "eval/loss" in report.report(tmp_path).read_text()
    evaluation = tmp_path / "scenes.json"
    evaluation.write_text(
        json.dumps({"protocol": "scenes", "results": {"free": {"all": {"pairs": 3, "success": 0.5}}}})
    )
    assert report.report(evaluation).name == "scenes_report.html"
    assert "| all | 3 | 0.5 |" in (tmp_path / "scenes_report.md").read_text()


@pytest.mark.parametrize("content", ["{", "[]", '{"results": 3}', "{}"])
def test_another_json_file_is_refused(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match="must") as error:
        report.report(path)
    assert "\n" not in str(error.value)
