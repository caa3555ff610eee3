"""The sections about decodes with other settings and with blocks switched off."""

from pathlib import Path

from editmgt_jax.ablation.config import AblationConfig
from editmgt_jax.ablation.report.page import Section


def has_decodes(workdir: Path) -> bool:
    """Whether there are decodes to tell of."""
    return False


def sections(config: AblationConfig, workdir: Path) -> list[Section]:
    """Success against leakage, and causal against read-out."""
    return []
