"""`editmgt report`: one HTML file and a Markdown summary of an ablation, a training run or an evaluation."""

import json
from pathlib import Path

from editmgt_jax.ablation.report import pictures, runs, studies, sweeps, views
from editmgt_jax.ablation.search import FOLDER, SUMMARY
from editmgt_jax.ablation.workdir import is_ablation, read_workdir
from editmgt_jax.errors import UserError
from editmgt_jax.files import real, write_text
from editmgt_jax.report.page import Section, to_html, to_markdown

HTML, MARKDOWN = "report.html", "report.md"


def report(where: str | Path) -> Path:
    """Writes the report of a folder into it, or beside an evaluation's JSON file. -> the HTML file

    Errors: UserError, FileNotFoundError.
    """
    where = Path(where)
    if not where.exists():
        raise FileNotFoundError(
            f"a report is of a folder of an ablation or a run, or of an evaluation's file; no {where}"
        )
    if where.is_dir() and is_ablation(where):
        title, sections, folder = f"Ablation {real(where).name}", of_ablation(where), where
    elif where.is_dir() and (where / "metrics.jsonl").is_file():
        title, sections, folder = f"Training run {real(where).name}", runs.of_training(where), where
    elif where.is_dir() and (where / "summary.json").is_file():
        title, sections, folder = (
            f"Evaluation {real(where).name}",
            runs.of_evaluation(where / "summary.json"),
            where,
        )
    elif where.suffix == ".json":
        title, sections, folder = f"Evaluation {where.stem}", runs.of_evaluation(where), real(where).parent
    else:
        raise UserError(
            f"a report is of a folder of an ablation or a run, or of an evaluation's JSON file; {where} is none"
        )
    stem = "report" if where.is_dir() else f"{where.stem}_report"
    write_text(folder / f"{stem}.md", to_markdown(title, sections) + "\n")
    write_text(folder / f"{stem}.html", to_html(title, sections))
    return folder / f"{stem}.html"


def of_ablation(workdir: Path) -> list[Section]:
    """The sections of all that has been done in a work directory. Errors: UserError when nothing has."""
    config, found = read_workdir(workdir), []
    searched = workdir / FOLDER / SUMMARY
    if searched.is_file():
        found += studies.sections(config, workdir)
        methods = found.pop()
        found += views.sections(config, workdir)
        found += pictures.sections(config, workdir, json.loads(searched.read_text()))
    if sweeps.has_decodes(workdir):
        found += sweeps.sections(config, workdir, studies.single_blocks(config, workdir) if found else None)
    if not found:
        raise UserError(
            f"a report needs `editmgt ablate search` or `editmgt ablate decode` before it; {workdir} has neither"
        )
    return [*found, methods] if searched.is_file() else found
