"""The full-size editor and a small one on the accelerator at hand: how near a decode and a train step come to what it can do.

    python benchmarks/gpu.py --json gpu.json           everything, in the order of its importance
    python benchmarks/gpu.py --only check decode
    python benchmarks/gpu.py --tiny                     the same with small sizes: a rehearsal on a CPU

attainable  the rate of bfloat16 products of large square matrices of random numbers, measured in the same process
achieved    operations by shapes alone (`editmgt_jax.models.flops`) / time; a training step counts three forward passes
ratio       achieved / attainable
memory      what the compiled program asks for: arguments, results and temporaries, without buffers that it reuses
peak        the largest use of memory since the process began

Weights and inputs are random; products are in bfloat16, and matrices of the decode are stored so, those in training in
float32. Rows are printed when they are measured. A row that fails says why, and the next one is tried.
"""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")

import argparse
import dataclasses
import functools
import gc
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.flatten_util
import jax.numpy as jnp
from gpu_rows import GIB, Case, Report, attainable, compiled, device_memory, measured, seconds_of

from editmgt_jax.config import MGTConfig, micro_conditions
from editmgt_jax.models import attention
from editmgt_jax.models.text import TextEncoder
from editmgt_jax.sampling.edit import decode_edit
from editmgt_jax.sampling.request import make_request
from editmgt_jax.sampling.settings import Settings
from editmgt_jax.weights.presets import preset

SECTIONS = ("check", "decode", "train", "small", "agree", "forms")
STRENGTHS = (0.0, 0.1, 1.1, 3.0)
FUSED = "cudnn" if "cuda" in jax.devices()[0].client.platform_version else "auto"  # so that a CPU can rehearse
SMALL = MGTConfig(
    num_layers=2,
    num_single_layers=6,
    attention_head_dim=64,
    num_attention_heads=4,
    axes_dims_rope=(16, 24, 24),
    joint_attention_dim=128,
    pooled_projection_dim=128,
    vocab_size=4104,
    codebook_size=4096,
    connector_type="none",
    text_encoder_architecture="CLIP",
)
TINY = dataclasses.replace(
    SMALL, num_layers=1, num_single_layers=2, num_attention_heads=2, vocab_size=72, codebook_size=64
)


# ---- attention alone: is it taken, is it right


def check(report: Report, tiny: bool) -> None:
    """The fused backend beside float32, forward and backward, for the lengths and strengths that occur."""
    shapes = (((24 + 256, 256), 64), ((88, 64), 32), ((1280, 1024), 128), ((77 + 256, 256), 64))
    for lengths, width in shapes[1:2] if tiny else shapes:
        for strength in ((0.0,),) if tiny else (None, (0.0,), (1.1,), (0.0, 1.1)):
            name = f"S {sum(lengths)} K {width} gamma {strength}"
            report.row("check", name, functools.partial(_check_one, lengths, width, strength))


def _check_one(lengths, width, strength):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, cotangent = (jax.random.normal(key, (2, sum(lengths), 4, width), jnp.bfloat16) for key in keys)
    cotangent = cotangent.reshape(2, sum(lengths), -1)

    def both(backend, *inputs):
        bias = attention.strength_bias(None if strength is None else jnp.array(strength), lengths)
        out, backward = jax.vjp(lambda *x: attention.attend(*x, bias, lengths, backend), *inputs)
        return out, *backward(cotangent.astype(out.dtype))

    with jax.default_matmul_precision("highest"):
        exact = jax.jit(functools.partial(both, "xla"))(*(x.astype(jnp.float32) for x in (q, k, v)))
    names = ("out", "dq", "dk", "dv")
    row = {}
    for backend in ("xla", FUSED):
        ours = jax.jit(functools.partial(both, backend))(q, k, v)
        row |= {f"{backend}_{name}": _apart(one, two) for name, one, two in zip(names, ours, exact, strict=True)}
    if strength == (0.0,):  # the first group must not see the second
        first = slice(0, lengths[0])
        run = jax.jit(lambda k, v: attention.attend(
            q, k, v, attention.strength_bias(jnp.zeros(1), lengths), lengths, FUSED)[:, first])  # fmt: skip
        other = [x.at[:, lengths[0] :].add(3) for x in (k, v)]
        row["leak"] = float(jnp.abs((run(k, v) - run(*other)).astype(jnp.float32)).max())
    return row


def _apart(ours, exact) -> float:
    ours, exact = ours.astype(jnp.float32), exact.astype(jnp.float32)
    return float(f"{float(jnp.linalg.norm(ours - exact) / jnp.linalg.norm(exact)):.2g}")


# ---- decode


def decode(report: Report, case: Case, batches, backends, steps: int, repeats: int, rate: float) -> None:
    params = case.params(half=True)
    for batch in batches:
        for backend in backends:
            name = f"batch {batch} {backend}"
            measure = functools.partial(_decode_one, case, params, batch, backend, steps, repeats, rate)
            report.row("decode", name, measure)


def _decode_one(case, params, batch, backend, steps, repeats, rate):
    mgt, text = case.mgt(backend), case.states(batch, 2)
    scheduler = dataclasses.replace(preset("editmgt-1024")["scheduler"], mask_token_id=case.config.mask_token_id)
    request, static = make_request(
        Settings.resolve(scheduler, case.config.num_blocks, steps=steps),
        scheduler,
        16,
        text,
        jax.tree.map(jnp.zeros_like, text),
        reference=case.ids(batch, 1),
        keys=3,
    )
    run = functools.partial(decode_edit.__wrapped__, mgt=mgt, static=static)
    program, facts = compiled(run, {"params": params}, request)
    elapsed = seconds_of(lambda: program({"params": params}, request).tokens, repeats)
    passes = 3 if static.image_guided else 2 if static.guided else 1
    return facts | measured(elapsed, passes * steps * batch * case.forward_flops(), batch, rate)


# ---- training


def train(report: Report, section: str, case: Case, rows, repeats: int, rate: float) -> None:
    """`rows`: (batch, backend, remat) of each row."""
    from editmgt_jax.training.config_files import load_config
    from editmgt_jax.training.optimizer import make_optimizer
    from editmgt_jax.training.state import new_state

    config = load_config(Path(__file__).parents[1] / "configs" / "stage2_finetune.py")
    optimizer = make_optimizer(config.optimizer)
    make = jax.jit(lambda: new_state({"mgt": case.params(half=False)}, optimizer, config.optimizer.ema_decay > 0))
    kept = {}  # the state, which every row's steps replace

    def measure(batch, backend, remat):
        if "state" not in kept:
            kept["state"] = jax.block_until_ready(make())
        try:
            return _train_one(kept, case, config, optimizer, batch, backend, remat, repeats, rate)
        except MemoryError:
            raise
        except Exception:
            kept.clear()  # its buffers may be gone
            raise

    for batch, backend, remat in rows:
        report.row(section, f"batch {batch} {backend} remat {remat}", functools.partial(measure, batch, backend, remat))


def _train_one(kept, case, config, optimizer, batch, backend, remat, repeats, rate):
    from editmgt_jax.training.step import train_step

    task = _stored_text_task(config, case, batch, case.mgt(backend, remat=remat))
    data = {
        "source_ids": case.ids(batch, 2).astype(jnp.uint16),
        "target_ids": case.ids(batch, 3).astype(jnp.uint16),
    } | case.states(batch, 1).fields()
    frozen = {"text": {"empty": case.states(1, 4)}}

    def step(state, frozen, batch, key):
        return train_step(task, optimizer, task.config, state, frozen, batch, jax.random.fold_in(key, state.step))

    key = jax.random.key(5)
    program, facts = compiled(step, kept["state"], frozen, data, key, donate_argnums=0)

    def run():
        kept["state"], metrics = program(kept["state"], frozen, data, key)
        return metrics["loss"]

    elapsed = seconds_of(run, repeats)
    total, count = run()
    loss = round(float(total / count), 3)
    return facts | measured(elapsed, task.flops(data), batch, rate) | {"loss": loss}


def _stored_text_task(config, case, batch, mgt):
    """Task `mgt` on ids and stored text states, so that no encoder is read."""
    from editmgt_jax.training.conditioning import FrozenText
    from editmgt_jax.training.tasks.mgt import MGTTask

    class StoredText(FrozenText):
        def __init__(self):
            self.encoder = TextEncoder({})

    class StoredTask(MGTTask):
        def __init__(self):
            self.config = dataclasses.replace(config, batch_size=batch, accumulate=1)
            self.mgt, self.mgt_config, self.lora = mgt, mgt.config, None
            self.vq_config, self.text = preset("editmgt-1024")["vqvae"], StoredText()

    return StoredTask()


# ---- agreement of whole models


def agree(report: Report, full: Case, small: Case, strengths) -> None:
    params = full.params(half=True)
    for strength in strengths[:1] if len(strengths) == 1 else (1.1, 1.0):
        report.row("agree", f"full size, gamma {strength}", lambda s=strength: _full_logits(full, params, s))
    del params
    params = small.params(half=False)
    for strength in strengths:
        report.row("agree", f"small, gamma {strength}", lambda s=strength: _small_logits(small, params, s))
    report.row("agree", "small, gradient", lambda: _small_gradient(small, params))


def _forward(case, mgt, strength, batch=1):
    """params -> logits; a Python strength of 1 builds no bias."""
    hidden = jnp.where(case.ids(batch, 5) % 2 == 0, case.config.mask_token_id, case.ids(batch, 6))

    def run(params):
        def inside(module):
            states, pooled = case.states(batch, 7)
            micro = jnp.broadcast_to(jnp.array(micro_conditions(1024, 1024)), (batch, 5))
            return module(hidden, 3.0, module.condition(states, pooled, micro, case.ids(batch, 8), strength))[0]

        return mgt.apply({"params": params}, method=inside)

    return run


def _full_logits(case, params, strength):
    xla, fused = (jax.jit(_forward(case, case.mgt(backend), strength))(params) for backend in ("xla", FUSED))
    return {f"{FUSED}_to_xla": _apart(fused, xla), "same_argmax": _same(fused, xla)}


def _same(ours, exact) -> float:
    return round(float((ours.argmax(-1) == exact.argmax(-1)).mean()), 4)


def _small_logits(case, params, strength):
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(_forward(case, case.mgt("xla", jnp.float32), strength, 4))(params)
    row = {}
    for backend in ("xla", FUSED):
        ours = jax.jit(_forward(case, case.mgt(backend), strength, 4))(params)
        row |= {backend: _apart(ours, exact), f"{backend}_same_argmax": _same(ours, exact)}
    return row


def _small_gradient(case, params):
    def gradient(mgt):
        forward = _forward(case, mgt, 1.0, 4)

        def loss(params):
            return -jax.nn.log_softmax(forward(params))[..., 7].mean()

        return jax.flatten_util.ravel_pytree(jax.jit(jax.grad(loss))(params))[0]

    with jax.default_matmul_precision("highest"):
        exact = gradient(case.mgt("xla", jnp.float32))
    return {backend: _apart(gradient(case.mgt(backend)), exact) for backend in ("xla", FUSED)}


# ---- parts of a pass, to see where its time goes


def forms(report: Report, case: Case, batch: int, repeats: int, rate: float) -> None:
    config, length = case.config, case.text + 2 * case.grid[0] * case.grid[1] // case.config.stride**2
    live = length - case.grid[0] * case.grid[1] // config.stride**2
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (batch, length, config.num_attention_heads, config.attention_head_dim)
    q, k, v = (jax.random.normal(key, shape, jnp.bfloat16) for key in keys)
    operations = 4 * batch * length**2 * config.width

    def one(backend, strength, backward):
        def run(q, k, v):
            bias = attention.strength_bias(None if strength is None else jnp.array([strength]), (live, length - live))
            return attention.attend(q, k, v, bias, (live, length - live), backend)

        def grads(q, k, v):
            return jax.grad(lambda *x: run(*x).astype(jnp.float32).sum(), (0, 1, 2))(q, k, v)

        program, facts = compiled(grads if backward else run, q, k, v)
        elapsed = seconds_of(lambda: program(q, k, v), 3 * repeats)
        return facts | measured(elapsed, operations * (3.5 if backward else 1), batch, rate)

    for backend in (FUSED, "xla"):
        for strength, backward in ((1.1, False), (None, False), (None, True)):
            name = f"attention {backend} gamma {strength or 'none'}{' and gradient' if backward else ''}"
            report.row("forms", name, functools.partial(one, backend, strength, backward))

    def head():
        x = jax.random.normal(keys[0], (batch * case.grid[0] * case.grid[1], config.width))
        kernel = jax.random.normal(keys[1], (config.width, config.codebook_size))
        program, facts = compiled(lambda x, kernel: jnp.matmul(x, kernel, precision="highest"), x, kernel)
        elapsed = seconds_of(lambda: program(x, kernel), 3 * repeats)
        return facts | measured(elapsed, 2 * x.size * config.codebook_size, batch, rate)

    report.row("forms", "head, float32 at highest", head)


def _train_rows(batches, backends):
    """(batch, backend, remat) of each row, what is wanted most first."""
    rows = [(max(batches), FUSED, "full"), (min(batches), FUSED, "none")]
    rows += [(batch, backend, "full") for backend in (FUSED, "xla") for batch in batches]
    rows += [(batch, FUSED, remat) for remat in ("dots", "none") for batch in batches]
    rows += [(batch, "xla", "none") for batch in batches]
    return [row for row in dict.fromkeys(rows) if row[1] in backends]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small sizes")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument(
        "--backends", nargs="+", choices=sorted(attention.BACKENDS), help="(default: the fused one and xla)"
    )
    parser.add_argument("--batches", type=int, nargs="+", help="of the training step (default 4 8)")
    parser.add_argument("--decode-batches", type=int, nargs="+", help="(default 1 8)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=float, default=420, help="seconds after which no row is begun")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()

    report, tiny = Report(args.json, args.budget), args.tiny
    if tiny:
        jax.config.update("jax_disable_most_optimizations", True)  # most of a rehearsal is compiling
    args.backends = args.backends or ([FUSED] if tiny else [FUSED, "xla"])
    full = Case(TINY, (16, 16), 12) if tiny else Case(preset("editmgt-1024")["editmgt"], (64, 64), 256)
    small = Case(TINY, (8, 8), 6) if tiny else Case(SMALL, (32, 32), 24)
    steps = 3 if tiny else 36
    batches = args.batches or ([2] if tiny else [4, 8])
    rate, bandwidth = attainable(*((512, 2**22) if tiny else (8192, 2**31)))
    device = jax.devices()[0]
    report.header(
        {
            "device": device.device_kind,
            "jax": jax.__version__,
            "platform": device.client.platform_version.replace("\n", " "),
            "memory_gib": round((device_memory("bytes_limit") or 0) / GIB, 1),
            "attainable_tflops": round(rate / 1e12, 2),
            "copy_gb_per_s": round(bandwidth / 1e9, 1),
        }
    )

    decode_batches = args.decode_batches or ([2] if tiny else [1, 8])
    if tiny:
        train_rows, small_rows = [(batch, backend, "full") for batch in batches for backend in args.backends[:1]], []
    else:
        train_rows = _train_rows(batches, args.backends)
        small_rows = [(batch, backend, "none") for backend in args.backends for batch in (256, 512)]
    run = {
        "check": lambda: check(report, tiny),
        "decode": lambda: decode(report, full, decode_batches, args.backends, steps, args.repeats, rate),
        "train": lambda: train(report, "train", full, train_rows, args.repeats, rate),
        "small": lambda: train(report, "small", small, small_rows, args.repeats, rate),
        "agree": lambda: agree(report, full, small, STRENGTHS[:1] if tiny else STRENGTHS),
        "forms": lambda: forms(report, full, 2, args.repeats, rate),
    }
    for section in SECTIONS:
        if section in args.only:
            start = time.monotonic()
            try:
                run[section]()
            except Exception as error:  # noqa: BLE001 -- what a section needs may be missing here
                text = f"{type(error).__name__}: {error}"
                report.row(section, "whole section", lambda text=text: {"error": text[:400]})
            print(f"{section} took {time.monotonic() - start:.1f} s", flush=True)
            gc.collect()


if __name__ == "__main__":
    main()
