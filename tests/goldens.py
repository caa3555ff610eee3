"""Every comparison with stored results of the released implementation: python tests/goldens.py DIRECTORY

The directory is laid out like tests/data. Prints a table (case, error, bound, pass) and exits 1 if a row fails. Checks find
sizes, cases and grids in the files. A check whose files are absent altogether is said to be so, and does not fail; a
missing array, or a directory in which there is nothing to compare at all, does.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from goldens_models import MODEL_CHECKS
from goldens_results import Result, compare, count_differing

from editmgt_jax.sampling.decode import FREE, MIN_PROBABILITY, choose, commit, stay_hidden
from editmgt_jax.sampling.localize import filter_relevance, hold_mask, rescale, upsample
from editmgt_jax.sampling.masking import decode_schedule, hidden_count
from editmgt_jax.sampling.samplers import NOTHING_KNOWN, Proposal, confidence

Check = Callable[[Path], Iterable[Result]]


def check_schedule(directory: Path) -> Iterator[Result]:
    """How many tokens stay hidden after each step, `KIND_L*_S*`."""
    with np.load(directory / "schedule.npz") as golden:
        for name in golden.files:
            kind, length, steps = name.rsplit("_", 2)
            ratio = decode_schedule(int(steps.removeprefix("S")), kind).hidden_ratio
            count = hidden_count(int(length.removeprefix("L")), ratio)
            yield count_differing(f"schedule {name}", count, golden[name])


def check_decode_steps(directory: Path) -> Iterator[Result]:
    """Decodes with given draws, each step after our own last one."""
    with np.load(directory / "decode_steps.npz") as golden:
        for case in sorted(name.removesuffix("/tokens") for name in golden.files if name.endswith("/tokens")):
            arrays = _of_case(golden, case)
            temperatures = arrays["temperatures"]
            schedule = decode_schedule(
                len(temperatures),
                "linear" if "linear" in case else "cosine",
                (float(temperatures[0]), float(temperatures[-1])),
            )
            yield compare(f"decode {case} temperatures", schedule.temperature, temperatures, 0)
            tokens = _replay(arrays, schedule._replace(temperature=temperatures))
            expected = arrays["tokens"][1:]
            yield count_differing(f"decode {case} tokens", tokens, expected.reshape(tokens.shape))


def _of_case(golden, case):
    """The arrays that the cases share, and over them the case's own."""
    shared = {name: golden[name] for name in golden.files if "/" not in name}
    prefix = f"{case}/"
    return shared | {name.removeprefix(prefix): golden[name] for name in golden.files if name.startswith(prefix)}


def _replay(arrays, schedule):
    """The tokens [I B L] after each step of a case."""
    tokens = arrays["tokens"]
    steps, batch = tokens.shape[0] - 1, tokens.shape[1]
    draws = {
        name: arrays[name].reshape(steps, batch, -1)
        for name in ("sampled_ids", "gumbel", "sampled_prob", "reference_prob")
    }
    keep = hold_mask(arrays["scores"].reshape(batch, -1), arrays["threshold"])
    pinned = jnp.where(keep, arrays["reference_ids"].reshape(batch, -1), FREE)
    start_ratio = jnp.broadcast_to(arrays["starting_mask_ratio"], (batch,))
    mask_id = int(arrays["mask_token_id"])

    def one_step(tokens, inputs):
        step, draw = inputs
        probability = jnp.where(pinned == FREE, draw["sampled_prob"], draw["reference_prob"])
        candidate = choose(draw["sampled_ids"], pinned)
        tokens = commit_surest(tokens, candidate, probability, draw["gumbel"], step, start_ratio, mask_id)
        return tokens, tokens

    return jax.lax.scan(one_step, jnp.asarray(tokens[0].reshape(batch, -1)), (schedule, draws))[1]


def commit_surest(tokens, candidate, probability, gumbel, step, start_ratio, mask_id):
    """The released end of a step: the surest candidates [B L] are committed, as many as the schedule says. -> int32 [B L]"""
    hidden, log_p = tokens == mask_id, jnp.log(jnp.maximum(probability, MIN_PROBABILITY))
    proposal = Proposal(None, candidate, log_p, step.temperature * gumbel, hidden, None)
    return commit(
        tokens, candidate, confidence(proposal, NOTHING_KNOWN), stay_hidden(hidden, step, start_ratio), mask_id
    )


def check_localization(directory: Path) -> Iterator[Result]:
    """Raw -> rescaled -> filtered on each grid, and bicubic interpolation between two."""
    bound = 1e-5
    with np.load(directory / "localization.npz") as golden:
        for name in golden.files:
            kind, *middle = name.removesuffix("_no_peaks").split("_")
            if kind == "rescaled":
                grid = middle[0]
                yield compare(f"localize {name}", rescale(golden[f"raw_{grid}"]), golden[name], bound)
            elif kind in ("raw", "bilateral", "morphology"):  # inputs, and filters that are not ours
                continue
            elif kind in ("gaussian", "adaptive"):
                _, strength, grid = middle
                relevance = _on_grid(golden[f"rescaled_{grid}"], grid)
                ours = filter_relevance(relevance, kind, float(strength), not name.endswith("_no_peaks"))
                yield compare(f"localize {name}", ours.reshape(golden[name].shape), golden[name], bound)
            elif kind == "bicubic":
                grid, _, token_grid = middle
                relevance = _on_grid(golden[f"adaptive_strength_1.0_{grid}"], grid)
                expected = _on_grid(golden[name], token_grid)
                yield compare(f"localize {name}", upsample(relevance, expected.shape[1:]), expected, bound)
            else:
                raise ValueError(f"localization.npz holds {name}, which no check reads")


def _on_grid(relevance, label):
    """[B h w] from flat relevance whose name says the grid: '32' is square, '24x40' is height by width."""
    if relevance.ndim == 3:
        return relevance
    height, width = (int(side) for side in (label if "x" in label else f"{label}x{label}").split("x"))
    return relevance.reshape(-1, height, width)


# Each check, and the files that it reads.
CHECKS: dict[Check, str] = {
    check_schedule: "schedule.npz",
    check_decode_steps: "decode_steps.npz",
    check_localization: "localization.npz",
} | MODEL_CHECKS


def run_check(check: Check, directory: Path) -> Iterator[Result]:
    """The rows of one check: none without its files; what keeps it from finishing, or from comparing, is a failed one."""
    name, rows = check.__name__.removeprefix("check_"), 0
    if not any(directory.glob(CHECKS[check])):
        return
    try:
        for result in check(directory):
            rows += 1
            yield result
    except Exception as error:  # noqa: BLE001  (it becomes a failed row, and the other checks still run)
        yield Result(f"{name}: {type(error).__name__}: {error}", np.inf, 0)
    else:
        if not rows:
            yield Result(f"{name}: nothing to compare", np.inf, 0)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__)
        return 2
    results = []
    print(f"{'case':60} {'error':>10} {'bound':>10}  pass")
    for check, files in CHECKS.items():
        if not any(Path(arguments[0]).glob(files)):
            print(f"(no {files})")
        for result in run_check(check, Path(arguments[0])):
            print(
                f"{result.case:60} {result.error:10.3g} {result.bound:10.3g}  {'yes' if result.passed else 'NO'}",
                flush=True,
            )
            results.append(result)
    failed = sum(not result.passed for result in results)
    print(f"{len(results)} comparisons, {failed} failed")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
