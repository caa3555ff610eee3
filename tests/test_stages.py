"""The configs of the three stages at full size, by shapes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from editmgt_jax.training.config_files import load_config

ROOT = Path(__file__).parents[1]
STAGES = ("stage1_adapt", "stage2_finetune", "stage3_refine")


def test_the_full_train_state_is_split_over_16_64_and_256_devices():
    command = [sys.executable, str(ROOT / "benchmarks" / "stages.py")]
    importable = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=importable)
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == 9, done.stderr[-2000:]
    for report in reports:
        assert report["parameters"] == 1_009_306_624
        assert report["whole_leaves"] == 0 and report["replicated_share"] < 0.02
        assert report["state_gib_per_device"] == pytest.approx(report["state_gib"] / report["mesh"]["fsdp"], rel=1e-2)
    assert {report["devices"]: report["mesh"]["data"] for report in reports} == {16: 1, 64: 4, 256: 16}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_s_config_is_complete(stage):
    config = load_config(ROOT / "configs" / f"{stage}.py", ["--config.batch_size=512"])
    assert config.batch_size == 512 and config.steps == config.optimizer.total_steps
    assert config.data.tokens and config.data.heldout and config.start_from
    assert config.model.reference == (stage != "stage1_adapt")
