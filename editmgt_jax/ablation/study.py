"""An Optuna study over the space of a search: any set of blocks, in any view that the config scores. Its trials lie in RUN/search/study.db.

A trial depends on the trials before it and on its position alone. So a study that was killed goes on as if it had not been, and one of more
trials begins with the trials of one of fewer.

Axes    J blocks
Source  Bergstra et al. 2011, tree-structured Parzen estimators, by optuna
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np

from editmgt_jax.ablation import statistics
from editmgt_jax.ablation.choices import View, views
from editmgt_jax.ablation.config import AblationConfig
from editmgt_jax.ablation.records import Records
from editmgt_jax.ablation.scoring import Scorer
from editmgt_jax.ablation.sets import BlockSet, of_blocks
from editmgt_jax.errors import UserError

TRIALS, KIND = "study.db", "study"


def optuna() -> ModuleType:
    """The package. Errors: UserError when it is not installed."""
    try:
        import optuna as package
    except ImportError as error:
        raise UserError("search.trials needs optuna: pip install 'editmgt_jax[ablate]'") from error
    package.logging.set_verbosity(package.logging.WARNING)
    return package


class Study:
    """A study of the even examples.

    Args:
      records: opened; folder: of the file of trials; rule: how thresholds are chosen.
    """

    def __init__(self, config: AblationConfig, records: Records, folder: Path, rule: str):
        self.config, self.records, self.rule = config, records, rule
        self.views = views(config.score, records.manifest)
        self._scorer: Scorer | None = None
        self._stored = self._opened(folder)
        # Trials are drawn in memory and stored when they are done: a file is slow, and would keep those that a kill cut off.
        self._study = optuna().create_study(direction="maximize")
        self._study.add_trials(self._stored.trials)

    def _opened(self, folder):
        """The study in the file; another question of the same records is another study of it."""
        score, m = self.config.to_dict()["score"], self.records.manifest
        facts = [score, self.config.search.objective, self.rule, self.config.statistics.seed, m.fingerprint, m.shape]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        storage = f"sqlite:///{(folder / TRIALS).resolve()}"
        return optuna().create_study(storage=storage, study_name=digest, direction="maximize", load_if_exists=True)

    def _sampler(self, position):
        seed = np.random.default_rng([self.config.statistics.seed, position]).integers(2**31)
        return optuna().samplers.TPESampler(seed=int(seed))

    def run(self, trials: int) -> tuple[BlockSet, View, np.ndarray] | None:
        """Goes on until there are so many trials. -> the best set, its view, its objective [n]; None if no trial has a number"""
        state = optuna().trial.TrialState
        for position in range(len(self._study.trials), trials):
            self._study.sampler = self._sampler(position)
            trial = self._study.ask()
            blocks, view = self._drawn(trial)
            even = self.values(blocks, view)[::2] if blocks else np.array([np.nan])
            known = even[~np.isnan(even)]
            if known.size:
                done = self._study.tell(trial, float(known.mean()))
            else:  # no block, or every truth is empty or full
                done = self._study.tell(trial, state=state.PRUNED)
            self._stored.add_trial(done)
        done = [trial for trial in self._study.trials[:trials] if trial.state == state.COMPLETE]
        if not done:
            return None
        blocks, view = self._drawn(max(done, key=lambda one: one.value))
        return of_blocks(blocks, self.records.manifest.num_blocks, KIND), view, self.values(blocks, view)

    def _drawn(self, trial) -> tuple[tuple[int, ...], View]:
        """What a trial stands for; a new one draws it."""
        axes, blocks = [field.name for field in dataclasses.fields(View)], range(self.records.manifest.num_blocks)
        if not trial.params:
            for axis in axes:
                trial.suggest_categorical(axis, list(dict.fromkeys(getattr(view, axis) for view in self.views)))
            for block in blocks:
                trial.suggest_categorical(f"block {block}", (False, True))
        params = trial.params
        return tuple(block for block in blocks if params[f"block {block}"]), View(*(params[axis] for axis in axes))

    def values(self, blocks: tuple[int, ...], view: View) -> np.ndarray:
        """The objective of some blocks, means over seeds. -> float64 [n]"""
        if self._scorer is None or self._scorer.view != view:
            self._scorer = Scorer(self.records, view)
        one = of_blocks(blocks, self.records.manifest.num_blocks, KIND)
        scored = self._scorer.score([one], (self.rule,))
        return statistics.seed_means(scored.columns[self.config.search.objective][0, 0])
