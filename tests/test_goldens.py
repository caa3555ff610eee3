"""The golden checks, one test each; they also run alone on any directory: python tests/goldens.py DIRECTORY."""

import shutil
from pathlib import Path

import goldens
import goldens_models
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("exact_types")

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("check", goldens.CHECKS, ids=lambda check: check.__name__)
def test_golden(check):
    results = list(goldens.run_check(check, DATA))
    assert results and not [result for result in results if not result.passed]


def test_nothing_to_compare_is_a_failure(tmp_path, capsys):
    assert goldens.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("(no ") == len(goldens.CHECKS)


def test_a_missing_part_is_a_failed_row(tmp_path):
    shutil.copytree(DATA / "vqvae", tmp_path / "vqvae")
    (tmp_path / "vqvae" / "config.json").unlink()
    results = list(goldens.run_check(goldens_models.check_vq, tmp_path))
    assert results and not any(result.passed for result in results)


def test_an_array_that_no_check_reads_is_a_failed_row(tmp_path):
    np.savez(tmp_path / "localization.npz", sharpened_8=np.zeros((1, 64)))
    (result,) = goldens.run_check(goldens.check_localization, tmp_path)
    assert not result.passed and "sharpened_8" in result.case


def test_a_file_without_cases_is_a_failed_row(tmp_path):
    np.savez(tmp_path / "localization.npz", raw_8=np.zeros((1, 64)))
    (result,) = goldens.run_check(goldens.check_localization, tmp_path)
    assert not result.passed


def test_one_wrong_entry_fails_and_sets_the_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(goldens, "CHECKS", {goldens.check_schedule: "schedule.npz"})
    np.savez(tmp_path / "schedule.npz", linear_L8_S4=[6, 4, 2, 0])
    assert goldens.main([str(tmp_path)]) == 0
    np.savez(tmp_path / "schedule.npz", linear_L8_S4=[6, 4, 2, 0], linear_L8_S2=[5, 0])
    assert goldens.main([str(tmp_path)]) == 1
    assert "linear_L8_S2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error, bound, passed", [(0, 0, True), (2e-5, 1e-5, False), (np.nan, 1, False), (np.inf, 1, False)]
)
def test_result_passes_within_its_bound(error, bound, passed):
    assert goldens.Result("case", error, bound).passed is passed


def test_compare_never_broadcasts():
    assert not goldens.compare("case", np.zeros((2, 1)), np.zeros((2, 3)), 1.0).passed
    assert not goldens.count_differing("case", np.zeros(1), np.zeros(3)).passed
