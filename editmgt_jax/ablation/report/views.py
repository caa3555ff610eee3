"""A table of every signal and moment: the best set and the best single block, chosen on the even examples, on the odd ones."""

from pathlib import Path

import numpy as np

from editmgt_jax.ablation import score as scores
from editmgt_jax.ablation import statistics
from editmgt_jax.ablation.config import AblationConfig
from editmgt_jax.ablation.report.studies import NAMES, Scores, told
from editmgt_jax.ablation.search import Candidates
from editmgt_jax.report.page import Section, Table, Text

HOLD = ("iou", "kept_wrongly", "released_wrongly")


def sections(config: AblationConfig, workdir: Path) -> list[Section]:
    """One entry for each signal and moment, over all groups of tokens, filters and sets that were scored."""
    found = Scores.read(workdir, config)
    candidates = Candidates(found.entries, found.values)
    hold = {name: statistics.seed_means(scores.read_scores(workdir, name)) for name in HOLD}
    lines, p_values = [], []
    for signal, window in dict.fromkeys((entry["signal"], entry["window"]) for entry in found.entries):
        best, single = (
            candidates.chosen_by(
                lambda entry, most=most, signal=signal, window=window: (
                    entry["signal"] == signal and entry["window"] == window and len(entry["blocks"]) <= most
                )
            )
            for most in (10**6, 1)
        )
        if best is None or single is None:
            continue
        odd = found.values[:, 1::2]
        gain = statistics.interval(odd[best] - odd[single], found.how)._asdict()
        p_values.append(statistics.paired_p_values(odd[single], odd[[best]].T, found.how)[0] if best != single else 1.0)
        number = found.entries[best]["setting"]
        costs = [f"{np.nanmean(hold[name][number, 1::2]):.3f}" for name in HOLD]
        of_best, of_single = (found.entries[index] for index in (best, single))
        lines.append(
            [signal, window, f"{of_best['set']} ({of_best['group']})", told(found.point(best)),
             f"{of_single['set']} ({of_single['group']})", told(found.point(single)), told(gain), *costs]
        )  # fmt: skip
    if not lines:
        return []
    for line, q_value in zip(lines, statistics.corrected(np.array(p_values)), strict=True):
        line.insert(7, f"{q_value:.2g}")
    measure = NAMES[found.objective]
    heads = ("signal", "moment", "best set (tokens)", measure, "best single block (tokens)", f"its {measure}", "gain of the set",
             "corrected p", "IoU", "kept wrongly", "released wrongly")  # fmt: skip
    about = (
        "Sets, single blocks and thresholds are chosen on the even examples for each signal and moment; figures are of the odd ones. IoU "
        "and what a hold would keep and release wrongly are those of the best set at its threshold."
    )
    return [
        Section("Every signal and moment: does a set beat the best single block?", [Text(about), Table(heads, lines)])
    ]
