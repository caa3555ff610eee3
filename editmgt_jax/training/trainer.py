"""The training loop: mesh, state, restore, then evaluate, save, draw a batch, step, log.

A run is a function of (config, data): resuming at step k gives bit-identical parameters to never having stopped.
"""

import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from tqdm import tqdm

from editmgt_jax.data.loader import Mixture, batches, token_batches
from editmgt_jax.data.records import TOKENS, read_manifest
from editmgt_jax.data.scenes import SceneConfig, SceneSource, instruction_corpus
from editmgt_jax.data.tokenize import Encoders
from editmgt_jax.data.tokenize import tokenize as write_tokens
from editmgt_jax.prompts import PromptTokenizer, train_tokenizer
from editmgt_jax.training.checkpoint import Checkpoints, restore_params
from editmgt_jax.training.metrics import MetricsWriter
from editmgt_jax.training.mgt_task import MGTTask
from editmgt_jax.training.optimizer import make_optimizer
from editmgt_jax.training.token_job import identity, on_local_devices, print_rate
from editmgt_jax.training.vq_task import VQTask
from editmgt_jax.weights import new_directory

TASKS = {"vq": VQTask, "mgt": MGTTask}
CHECKPOINTS = "checkpoints"  # folder in a run's workdir


def make_task(config):
    if config.task not in TASKS:
        raise ValueError(f"task must be one of {sorted(TASKS)}; got {config.task!r}")
    return TASKS[config.task](config)


def scene_source(config, split: str, length: int = 1_000_000_000) -> SceneSource:
    """The first `length` pairs of a split. The held-out ones are of another seed than the evaluation protocols report on."""
    data = config.data
    seed = data.seed + (split == "heldout")
    return SceneSource(SceneConfig(size=data.size, split=split, seed=seed, objects=data.objects, length=length))


def make_batches(config, split: str, tokenizer=None):
    """The batch iterator of a split: token records if `config.data.tokens` names them (training only), else scenes."""
    if config.batch_size % jax.device_count():
        raise ValueError(f"batch_size must be a multiple of the {jax.device_count()} devices; got {config.batch_size}")
    if split == "train" and config.data.tokens:
        _check_tokens(config)
        mixture = Mixture(((config.data.tokens, 1.0),))
        host = (jax.process_index(), jax.process_count())
        return token_batches(mixture, config.batch_size, seed=config.data.seed, host=host, threads=config.data.threads)
    return batches(scene_source(config, split), config.batch_size, encode_text=tokenizer, threads=config.data.threads)


def train(config, workdir) -> dict:
    """Trains `config.task` in `workdir` until `config.steps`, resuming from its latest checkpoint. -> last evaluation"""
    workdir = Path(workdir).absolute()
    _resolve_paths(config)
    workdir.mkdir(parents=True, exist_ok=True)

    # ---- task and data
    tokenizer = run_tokenizer(config, workdir) if config.task == "mgt" else None
    if tokenizer is not None:
        config.model.text.update(tokenizer.special_ids())
    task = make_task(config)
    iterator = make_batches(config, "train", tokenizer)

    # ---- mesh: one axis, the batch is spread over all devices and the state is on each of them
    mesh = Mesh(np.array(jax.devices()), ("data",))
    replicated, spread = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    optimizer = make_optimizer(config.optimizer)
    key = jax.random.key(config.seed)
    train_step = jax.jit(
        lambda state, batch: task.train_step(state, batch, jax.random.fold_in(key, state.step), optimizer),
        donate_argnums=0,
        in_shardings=(replicated, spread),
        out_shardings=replicated,
    )
    eval_step = jax.jit(task.eval_step, in_shardings=(replicated, spread, None), out_shardings=replicated)

    # ---- state: new, or the latest checkpoint's
    state = jax.device_put(task.init(key, optimizer), replicated)
    checkpoints = Checkpoints(workdir / CHECKPOINTS, config.to_dict(), task.monitor, config.checkpoint.keep)
    start = checkpoints.latest_step
    if start is not None:
        state = checkpoints.restore(start, state, iterator)
        print(f"resuming {workdir} at step {start}", file=sys.stderr)
    elif config.start_from:
        state = _warm_start(task, state, config.start_from, replicated)
    (workdir / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    start = start or 0
    writer = MetricsWriter(workdir, start)

    # ---- loop
    def evaluate(step):
        params = state.params if state.ema is None else state.ema
        results = _evaluate(eval_step, params, make_batches(config, "heldout", tokenizer), config, key)
        writer.write(step, {f"eval/{name}": value for name, value in results.items()})
        return results

    evaluation, pending = {}, []
    with tqdm(total=config.steps, initial=start, unit="step", dynamic_ncols=True, mininterval=5) as bar:
        for step in range(start, config.steps + 1):
            last = step == config.steps
            saving = last or (step % config.checkpoint.every == 0 and step > start)
            if saving or (step % config.eval_every == 0 and step > start):
                evaluation = evaluate(step)
            if saving:
                checkpoints.save(step, state, iterator, {task.monitor[0]: evaluation[task.monitor[0]]})
            if last:
                break
            state, metrics = train_step(state, next(iterator))
            pending.append(metrics)
            if (step + 1) % config.log_every == 0:
                means = {name: np.mean([float(m[name]) for m in pending]) for name in pending[0]}
                pending = []
                writer.write(step + 1, means)
                bar.set_postfix({name: f"{means[name]:.4g}" for name in ("loss", task.monitor[0]) if name in means})
            bar.update()
    checkpoints.close()
    writer.close()
    return evaluation


def _evaluate(eval_step, params, iterator, config, key) -> dict:
    """Means over `config.eval_batches` held-out batches, always the same ones, with the same draws."""
    totals = [
        jax.device_get(eval_step(params, next(iterator), jax.random.fold_in(key, index)))
        for index in range(config.eval_batches)
    ]
    return {name: float(np.mean([t[name] for t in totals])) for name in totals[0]}


def run_tokenizer(config, workdir: Path) -> PromptTokenizer:
    """The run's text tokenizer: `config.model.tokenizer` if given, else learnt once from the scenes' instructions."""
    directory = Path(config.model.tokenizer or workdir / "tokenizer")
    if not config.model.tokenizer and not directory.exists():
        scenes = SceneConfig(size=config.data.size, seed=config.data.seed, objects="all")
        train_tokenizer(instruction_corpus(20_000, scenes), directory, length=config.model.text.max_position_embeddings)
    return PromptTokenizer(directory)


def tokenize(config, output, examples: int) -> None:
    """Writes the first `examples` training pairs of an `mgt` config as token records into `output`."""
    output = Path(output)
    _resolve_paths(config)
    tokenizer = run_tokenizer(config, output)
    config.model.text.update(tokenizer.special_ids())
    task = MGTTask(config)
    facts = identity(config.model.vq, config.model.tokenizer or output / "tokenizer")
    facts |= {"data": {name: config.data[name] for name in ("size", "seed", "objects")}}
    scenes = scene_source(config, "train", examples)
    encoders = Encoders(on_local_devices(task.encode_image), lambda texts: {"text_ids": tokenizer(texts)})
    print_rate(write_tokens({f"{config.data.size}x{config.data.size}": scenes}, encoders, output, facts))


def is_run(folder) -> bool:
    """Whether a folder is the workdir of a run."""
    return (Path(folder) / "config.json").is_file() and (Path(folder) / CHECKPOINTS).is_dir()


def export(workdir, output, step: int | None = None, dtype="float32", raw: bool = False, verify: bool = False) -> None:
    """Writes a step of a run (by default the best) as a model directory.

    Args:
      raw: whether to write the parameters even if the run keeps their moving average.
      verify: whether to read the result back and compare every tensor.
    """
    workdir = Path(workdir).absolute()
    if not is_run(workdir):
        raise FileNotFoundError(f"a run is a folder with config.json and {CHECKPOINTS}; {workdir} is none")
    config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    task = make_task(config)
    average = config.optimizer.ema_decay > 0 and not raw
    params = restore_params(workdir / CHECKPOINTS, step, task.monitor, average)
    with new_directory(output) as target:
        task.export(params, target, jnp.dtype(dtype), verify)
        if config.task == "mgt":
            shutil.copytree(config.model.tokenizer or workdir / "tokenizer", target / "tokenizer")


def _resolve_paths(config) -> None:
    """Makes the folders that a config names absolute, so that its run can be exported from anywhere, and checks them.

    Token records come with the text tokenizer that was learnt for them, unless the config names one.
    """
    learnt = Path(config.data.tokens) / "tokenizer"
    if config.data.tokens and not config.model.get("tokenizer") and learnt.is_dir():
        config.model.tokenizer = str(learnt)
    for keys, name in (
        (config, "start_from"),
        (config.data, "tokens"),
        (config.model, "vq"),
        (config.model, "tokenizer"),
    ):
        if keys.get(name):
            keys[name] = str(Path(keys[name]).absolute())
            if not Path(keys[name]).is_dir():
                raise FileNotFoundError(f"the config's {name} must be a folder; there is none at {keys[name]}")


def _check_tokens(config) -> None:
    """Errors: ValueError when the token records were made with other tokenizers than the config names."""
    if not config.model.tokenizer:
        raise ValueError(f"{config.data.tokens} has no folder `tokenizer`: name its text tokenizer in model.tokenizer")
    manifest = read_manifest(config.data.tokens, TOKENS)
    for name, value in identity(config.model.vq, config.model.tokenizer).items():
        if manifest.get(name) != value:
            raise ValueError(
                f"the records in {config.data.tokens} were made with another {name} than the config names: "
                "encode the data again, or name the folders it was encoded with"
            )


def _warm_start(task, state, run, sharding):
    """Parameters (and their average) from another run's latest checkpoint; optimizer and step start anew."""
    params = restore_params(Path(run).absolute() / CHECKPOINTS, average=state.ema is not None)
    params = jax.device_put(params, sharding)
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return state.replace(params=params, ema=ema, extra=task.extra(params))
