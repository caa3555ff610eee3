"""The training loop: mesh, state, restore, then evaluate, save, draw a batch, step, log.

A run is a function of (config, data): resuming at step k gives bit-identical parameters to never having stopped.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from editmgt_jax import executables
from editmgt_jax.data.loader import Batches
from editmgt_jax.errors import EditMGTError, UserError
from editmgt_jax.files import mounted
from editmgt_jax.training import compiler, inputs, processes, runs, samples, sharding
from editmgt_jax.training.checkpoint import Checkpoints
from editmgt_jax.training.config import TrainConfig
from editmgt_jax.training.goodput import Ledger
from editmgt_jax.training.metrics import Profiler, RunLog, Sums, keep_lines
from editmgt_jax.training.optimizer import make_optimizer
from editmgt_jax.training.programs import jitted_steps
from editmgt_jax.training.samples import Samples
from editmgt_jax.training.state import new_state
from editmgt_jax.training.step import GRADIENT_NORM
from editmgt_jax.training.tasks.protocol import Task
from editmgt_jax.training.tasks.table import TASKS, make_task
from editmgt_jax.weights.trees import check_name

BAD_BATCHES = "bad_batches.jsonl"
PROFILE = "profile"


class TrainingError(EditMGTError, RuntimeError):
    """Training that must not go on: says why, and what to do."""


def train(
    config: TrainConfig, workdir: str | Path, profile: tuple[int, int] | None = None, track: Sequence[str] = ()
) -> dict:
    """Trains `config.task` in `workdir` until `config.steps`, resuming from its latest whole checkpoint.

    Args:
      profile: steps (first, end) that are traced into the folder `profile`; track: trackers of `tracking.TRACKERS`.
    Returns: the last evaluation, {metric: mean}.
    Errors: UserError, FileNotFoundError for the config; CheckpointError, TrainingError, DataError.
    """
    workdir = mounted(workdir, "the workdir")
    check_name(workdir)
    runs.check_not_another_s(workdir)
    processes.check_joined()
    ledger = Ledger(workdir if processes.is_first() else None)
    with (
        _told_of_full_disks(workdir),
        processes.holding(workdir, "train"),
        contextlib.closing(processes.Watchdog(config.watchdog.seconds, config.watchdog.end)) as watchdog,
    ):
        watchdog.heard()
        run, state = _set_up(config, workdir, ledger, watchdog)
        with run.layout.active(), processes.Preemption() as preemption:
            evaluation = run.loop(state, preemption, profile, track)
    _say(f"time went to: {ledger.describe()}")
    return evaluation


@contextlib.contextmanager
def _told_of_full_disks(workdir):
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TrainingError(
            f"{workdir} cannot be written to ({error.strerror}): make room and start again; the checkpoints are as they were"
        ) from error


def _set_up(config, workdir, ledger, watchdog):
    """-> (_Run, the state that it goes on from)"""
    with processes.first_then_others():
        config = TASKS[config.task].resolve(config, workdir, make=processes.is_first())
    changed = runs.changed_keys(workdir, config)

    # ---- task, mesh and data
    task = make_task(config)
    layout = sharding.Layout(sharding.make_mesh(dataclasses.asdict(config.mesh)), task.rules)
    layout.check_batch(config.batch_size, config.accumulate)
    examples = layout.local_examples(config.batch_size)
    data, heldout = (
        inputs.make_batches(config, split, task.encode_prompts, examples) for split in ("train", "heldout")
    )

    # ---- state: the latest checkpoint's, or new
    optimizer, key = make_optimizer(config.optimizer), jax.random.key(config.seed)
    new = functools.partial(_new_state, task, optimizer, config.optimizer.ema_decay > 0)
    abstract = jax.eval_shape(lambda: new(task.init(key)))
    shardings = layout.of(abstract)
    frozen = task.frozen(layout.put_leaf, inputs.encoded_in_steps(config))
    checkpoints = _checkpoints(config, workdir, task, frozen)
    state = checkpoints.restore(sharding.with_shardings(abstract, shardings), data)
    ledger.resume(0 if state is None else int(state.step))
    if state is None:
        state = _first_state(task, new, key, shardings, layout)
    else:
        _say(f"resuming {workdir} at step {int(state.step)}")
    for note in (*changed, *config.optimizer.notes(config.steps), *task.notes()):
        _say(f"note: {note}")
    if int(state.step) > config.steps:
        raise UserError(
            f"the run in {workdir} is at step {int(state.step)}, past steps={config.steps}: name more steps"
        )

    # ---- programs
    if described := compiler.describe(config.compiler, layout.mesh.devices.flat[0].platform):
        _say(described)
    step, evaluate_step = jitted_steps(task, optimizer, config, layout, shardings)
    run = _Run(
        config=config,
        workdir=workdir,
        task=task,
        layout=layout,
        key=key,
        frozen=frozen,
        train_step=step,
        evaluate_step=evaluate_step,
        train_data=data,
        heldout_data=heldout,
        checkpoints=checkpoints,
        ledger=ledger,
        watchdog=watchdog,
        samples=_samples(config, workdir, task, layout),
    )
    if processes.is_first():
        runs.write_config(workdir, config)
    return run, state


def _checkpoints(config, workdir, task, frozen) -> Checkpoints:
    """Those of the run, in its folder, which is made."""
    with processes.first_then_others():
        workdir.mkdir(parents=True, exist_ok=True)
    return Checkpoints(
        workdir / runs.CHECKPOINTS,
        config.to_dict(),
        task.monitor,
        config.checkpoint.keep,
        config.checkpoint.keep_every,
        task.identity(frozen),
    )


def _samples(config, workdir, task, layout) -> Samples | None:
    count = min(config.sample_edits, config.batch_size)
    if not count:
        return None
    if not task.edits:
        raise UserError("sample_edits must be 0: only editors edit")
    batches = inputs.make_batches(config, "heldout", task.encode_prompts, range(count))
    return Samples(workdir / samples.FOLDER, task, layout, batches, count)


def _first_state(task, new, key, shardings, layout):
    """The state of a new run, made where it shall lie."""
    params = task.start(key, layout.put_leaf)
    if params is None:
        return jax.jit(lambda: new(task.init(key)), out_shardings=shardings)()
    return jax.jit(new, out_shardings=shardings, donate_argnums=0)(params)


def _new_state(task, optimizer, ema, params):
    return new_state(params, optimizer, ema, task.extra(params))


def _say(text) -> None:
    if processes.is_first():
        print(f"editmgt: {text}", file=sys.stderr)


@dataclasses.dataclass
class _Run:
    """A run under way: all that its loop needs besides the state."""

    config: TrainConfig
    workdir: Path
    task: Task
    layout: sharding.Layout
    key: jax.Array
    frozen: dict
    train_step: Callable
    evaluate_step: Callable
    train_data: Batches
    heldout_data: Batches
    checkpoints: Checkpoints
    ledger: Ledger
    watchdog: processes.Watchdog
    samples: Samples | None
    bad_batches: int = 0

    def loop(self, state, preemption, profile, track=()) -> dict:
        """Evaluate, save, draw a batch, step, log. Returns: the last evaluation.

        The order must not change, or a run that is resumed would differ from one that never stopped: step n evaluates and
        saves the state of n updates, with the position in the data before batch n is drawn; a checkpoint then holds its own
        evaluation, by which the best one is chosen, and the batch that comes next.
        """
        config, start, evaluation, pending = self.config, int(state.step), {}, None
        self.bad_batches = self._count_bad(start)
        seen = self.workdir if processes.is_first() else None
        log = RunLog(seen, config, self.ledger, start, self.bad_batches, track)
        tracer = Profiler(self.workdir / PROFILE, profile)
        self.ledger.enter("step")
        try:
            for step in range(start, config.steps + 1):
                # 1. Signs of life, and failures of a write that began some steps ago.
                self.watchdog.heard()
                self.checkpoints.check()
                # 2. What is due. Every process must decide alike, so `reached` asks all of them.
                last, asked = step == config.steps, preemption.reached(step)
                saving = last or asked or (step % config.checkpoint.every == 0 and step > start)
                evaluating = not asked and (last or (step % config.eval_every == 0 and step > start))
                # 3. A state is saved once its last step is known to be good; so this waits, and comes before the evaluation.
                if saving:
                    self._check(pending, log)
                    pending = None
                # 4. Evaluate the state of before this step's update.
                if evaluating:
                    evaluation = self._evaluate(step, state)
                    log.write(step, {f"eval/{name}": value for name, value in evaluation.items()})
                    self.watchdog.heard()
                # 5. Save it with its position in the data, which the batch of this step has not moved yet.
                if saving:
                    self._save(step, state, evaluation if evaluating else {})
                if last or asked:
                    break
                # 6. Draw a batch and dispatch the update; it runs while the host goes on.
                tracer.at(step, state)
                state, metrics, flops = self._step(step, state, log)
                # 7. Log the step before: its metrics are waited for only now, so the device has the next step to work on.
                self._check(pending, log)
                pending = step, metrics, flops
            # 8. The last checkpoint is whole before the run says that it is over.
            with self.ledger.during("checkpoint"):
                self.watchdog.heard()
                self.checkpoints.close()
            if asked and not last:
                _say(f"asked to stop: saved at step {step}; the same command goes on from there")
            self.ledger.write()
        except BaseException:  # Ctrl-C, too; a second one does not wait
            self.checkpoints.settle()  # what is being written is good
            raise
        finally:
            tracer.close()
            log.close()
            self.train_data.close()
            self.heldout_data.close()
        return evaluation

    def _step(self, step, state, log):
        with self.ledger.during("data wait"):
            batch = self.layout.put_batch(next(self.train_data), self.config.batch_size)
        flops, shape = self.task.flops(batch), tuple(sorted((name, x.shape) for name, x in batch.items()))
        new, started = log.is_first(shape), time.perf_counter()
        with (
            self.ledger.during("compile" if new else "step"),
            jax.profiler.StepTraceAnnotation("train", step_num=step),
            executables.listening() as events,
        ):
            state, metrics = self.train_step(state, self.frozen, batch)
        if new:
            how = "read from the cache on disk" if executables.CACHE_HIT in events else "compiled"
            _say(f"the train step was {how} in {time.perf_counter() - started:.0f} s")
        return state, metrics, flops

    def _check(self, pending, log) -> None:
        """Waits for a step's metrics, so that the device is at most a step behind, and logs them.

        Errors: TrainingError for a bad step, unless bad steps are left out.
        """
        if pending is None:
            return
        step, metrics, flops = pending
        metrics = jax.device_get(metrics)
        if metrics["bad"][0]:
            self._note_bad(step, metrics)
            metrics = {"bad": metrics["bad"]}
        log.add(step, metrics, flops)

    def _count_bad(self, start) -> int:
        """How many steps of this run were left out before `start`; what is noted of later ones will come again."""
        with processes.first_then_others():
            return len(keep_lines(self.workdir / BAD_BATCHES, start - 1, write=processes.is_first()))

    def _note_bad(self, step, metrics) -> None:
        watched = ("loss", *sorted(name for name in metrics if name.endswith(GRADIENT_NORM) and metrics[name][1]))
        values = {name: float(metrics[name][0] / metrics[name][1]) for name in watched}
        self.bad_batches += 1
        path = self.workdir / BAD_BATCHES
        if processes.is_first():
            facts = {"step": step} | {name: repr(value) for name, value in values.items()}
            with path.open("a") as file:
                file.write(json.dumps(facts | {"records": self.train_data.names(step)}) + "\n")
        guard = self.config.guard
        found = " and ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())
        what = f"step {step} has {found} (allowed: finite, loss <= {guard.max_loss:g})"
        if self.bad_batches > guard.skip:
            raise TrainingError(
                f"{what}; its records are named in {path}. The checkpoints are from before it. Leave such batches out with "
                f"guard.skip (now {guard.skip}), or lower the learning rate"
            )
        _say(f"left out: {what}")

    def _evaluate(self, step, state) -> dict:
        """Means over `config.eval_batches` held-out batches, always the same ones, with the same draws."""
        sums, params = Sums(), state.params if state.ema is None else state.ema
        with self.ledger.during("eval"):
            for index in range(self.config.eval_batches):
                batch = self.layout.put_batch(next(self.heldout_data), self.config.batch_size)
                metrics = self.evaluate_step(params, self.frozen, batch, jax.random.fold_in(self.key, index))
                sums.add(jax.device_get(metrics))
            self.heldout_data.rewind()
            if self.samples is not None:
                self.samples.write(step, params, self.frozen)
        return sums.means()

    def _save(self, step, state, metrics) -> None:
        if step == self.checkpoints.latest_step:
            return
        with self.ledger.during("checkpoint"):
            self.checkpoints.save(step, state, self.train_data, metrics)
        self.ledger.saved(step)
