"""What the steps of a decode do: which tokens are committed when, how sure the model is, and what other orders give.

    python benchmarks/decode_steps.py --tables steps commits           the default model, 210 pairs of the training split
    python benchmarks/decode_steps.py --model runs/export --tables orders --categories add replace motion --pairs 84
    python benchmarks/decode_steps.py --tables --picture steps.png     the first `add` example, step by step

default   one step, the default model's two, of which one remasks, three, of which two do, four, twelve, and the sampler entropy
remask    one step, and steps that remask after it or after four, at several guidance scales
steps     success by category for several step counts, and how many pairs each loses and wins against one step
commits   for each step: where it commits, and which share of that are copies of the source
contexts  what the model says of hidden changed ids, by which others are known (random, or those the decode commits first)
          and whether they hold the target's ids or the decode's own
rates     the same by mask rate with random true context; whether the probability of a change is calibrated; how well
          the expected latent predicts the true one
settings  guidance, temperatures and schedule at 1 and 4 steps
orders    orders of commitment at 4, 8 and 12 steps

Every decode of a table sees the same pairs and the same draws (those of the package: pair i draws from (seed, i)), so
figures are paired. The model runs one step at a time and orders are numpy functions, so an order costs no compilation.

Axes    n pairs, L image tokens, I steps, C codebook, E channels of a latent
"""

import argparse
import math
from pathlib import Path

import numpy as np
from decode_lab import Lab, changes_first, confidence, entropy_bound, halton, margin, shuffled
from PIL import Image, ImageDraw

from editmgt_jax import images
from editmgt_jax.data.scenes.source import CATEGORIES
from editmgt_jax.sampling import masking

FIGURES = (
    "success",
    "success_smoothed",
    "recognised",
    "psnr_inside",
    "changed_inside",
    "changed_outside",
    "edges",
    "gradient_share",
)
RATES = (1.0, 0.75, 0.5, 0.25, 0.1)
COPY_PENALTY = 3.0  # nats that `changes_first` takes off the confidence of a copy


# ---- tables


def _mean(values, where=...):
    values = values[where]
    return float(np.nanmean(values)) if values.size and not np.isnan(values).all() else math.nan


def _print(title, columns, rows):
    """A table; rows: (name, values)."""
    print(f"\n{title}\n{'':30}" + "".join(f"{column:>16}" for column in columns))
    for name, values in rows:
        print(f"{name:30}" + "".join(f"{value:16.3f}" for value in values), flush=True)


def _decodes(lab, title, variants, keep):
    """Figures of several decodes: {name: (steps, order, settings)}."""
    present = [category for category in CATEGORIES if (lab.pairs.categories == category).any()]
    figures = FIGURES if lab.lpips is None else (*FIGURES, "lpips_inside")
    print(f"\n{title}\n{'':30}" + "".join(f"{name:>16}" for name in ("passes", *figures, *present)))
    for name, (steps, order, settings) in variants.items():
        trace = lab.decode(steps, order, **settings)
        scores = lab.score(trace.tokens[-1])
        keep[name] = scores | {"tokens": trace.tokens, "passes": trace.passes}
        values = [trace.passes.mean(), *(_mean(scores[figure]) for figure in figures)]
        values += [_mean(scores["success"], lab.pairs.categories == category) for category in present]
        print(f"{name:30}" + "".join(f"{value:16.3f}" for value in values), flush=True)


def table_steps(lab, keep):
    _decodes(lab, "steps", {f"{n} steps": (n, None, {}) for n in (1, 2, 3, 4, 6, 12, 24)}, keep)
    _against(keep, "1 steps")


def _against(keep, one):
    """Which pairs the other decodes lose and win against one of them."""
    for figure in ("success", "success_smoothed", "recognised"):
        first, rows = keep[one][figure] > 0, []
        for name in [name for name in keep if name != one]:
            other = keep[name][figure] > 0
            lost, won = int((first & ~other).sum()), int((~first & other).sum())
            rows.append((name, (lost, won, sign_test(lost, won))))
        _print(f"{figure} against {one}", ("lost", "won", "p, sign test"), rows)


def table_remask(lab, keep):
    variants = {"1 step": (1, None, {})}
    for scale in (1.0, 1.5, 2.0, 2.5):
        variants[f"1 + 2 at {scale:g}"] = 3, None, {"remask_steps": 2, "remask_guidance": scale}
    for scale in (2.0, 2.5, 3.0):
        variants[f"1 + 1 at {scale:g}"] = 2, None, {"remask_steps": 1, "remask_guidance": scale}
    variants["1 + 4 at 2"] = 5, None, {"remask_steps": 4, "remask_guidance": 2.0}
    variants |= {"3 steps": (3, None, {}), "4 + 2 at 2": (6, None, {"remask_steps": 2, "remask_guidance": 2.0})}
    _decodes(lab, "remask: steps + those that remask, at a guidance scale", variants, keep)
    _against(keep, "1 step")


def table_default(lab, keep):
    variants = {"1 step": (1, None, {})}
    for more in (1, 2):
        variants[f"1 + {more} at 2"] = 1 + more, None, {"remask_steps": more, "remask_guidance": 2.0}
    variants |= {f"{steps} steps": (steps, None, {}) for steps in (4, 12)}
    variants["entropy, 240 nats"] = 12, entropy_bound(240.0), {}
    _decodes(lab, "default: steps + those that remask, at a guidance scale", variants, keep)
    for one in ("1 step", "1 + 1 at 2"):
        _against(keep, one)


def sign_test(lost: int, won: int) -> float:
    """Two-sided exact p that as uneven a split comes by chance."""
    n, least = lost + won, min(lost, won)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)


def table_commits(lab, keep, steps=12):
    trace = lab.decode(steps)
    before = np.concatenate([np.full_like(trace.tokens[:1], lab.mask_id), trace.tokens[:-1]])
    wanted = lab.changed & lab.inside
    for group in ("all", "add"):
        chosen = np.ones(len(lab), bool) if group == "all" else lab.pairs.categories == group
        lines = []
        for step, (old, new, seen) in enumerate(zip(before, trace.tokens, trace.seen, strict=True)):
            hidden = old == lab.mask_id
            committed = hidden & (new != lab.mask_id) & chosen[:, None]
            copy, hidden = new == lab.source, hidden & chosen[:, None]
            candidate = seen.candidate == lab.source
            lines.append(
                (
                    f"step {step + 1}",
                    (
                        committed.sum() / max(chosen.sum(), 1),
                        _mean(lab.inside.astype(float), committed),
                        _mean(copy.astype(float), committed & wanted),
                        _mean(copy.astype(float), committed & ~lab.inside),
                        _mean(seen.log_p, hidden & lab.inside & candidate),
                        _mean(seen.log_p, hidden & lab.inside & ~candidate),
                    ),
                )
            )
        columns = ("committed", "inside", "wanted, copied", "outside, copied", "log p, copies", "log p, changes")
        _print(f"commits of {steps} steps, {group}", columns, lines)
    keep["commits"] = {"tokens": trace.tokens}


_SAID = ("tokens", "NLL of target", "top-1", "entropy", "p of source", "source likeliest", "latent R2")


def _said(lab, seen, where):
    """What is said of the positions `where`: the values of _SAID."""
    latents = np.asarray(lab.codebook)
    true = latents[lab.target[where]]
    error = np.square(seen.latent[where] - true).sum(-1).mean()
    every = latents[lab.target[lab.changed & lab.inside]]
    spread = np.square(every - every.mean(0)).sum(-1).mean()
    return (
        where.sum(),
        -seen.log_p_target[where].mean(),
        (seen.best == lab.target)[where].mean(),
        seen.entropy[where].mean(),
        np.exp(seen.log_p_source[where]).mean(),
        (seen.best == lab.source)[where].mean(),
        1 - error / spread,
    )


def table_contexts(lab, keep, steps=12):
    traces = {"surest": lab.decode(steps), "random": lab.decode(steps, shuffled)}
    wanted = lab.changed & lab.inside
    nothing = lab.look(np.full_like(lab.source, lab.mask_id), 1.0)
    for step in (steps // 2 - 1, 2 * steps // 3 - 1, steps - 3):
        tokens = {name: trace.tokens[step] for name, trace in traces.items()}
        known = {name: ids != lab.mask_id for name, ids in tokens.items()}
        where = wanted & ~known["surest"] & ~known["random"]
        rows = [("nothing known", _said(lab, nothing, where))]
        for name, own in tokens.items():
            for values, ids in (("true", lab.target), ("own", own)):
                seen = lab.look(np.where(known[name], ids, lab.mask_id), 1.0)
                rows.append((f"{name}, {values} ids", _said(lab, seen, where)))
        outside = np.where(known["surest"] & ~lab.inside, lab.target, lab.mask_id)
        rows.append(("outside the mask, true ids", _said(lab, lab.look(outside, 1.0), where)))
        share = known["surest"].mean()
        _print(f"contexts: {share:.2f} known, guidance 1, changed ids hidden in both decodes", _SAID, rows)
    keep["contexts"] = {name: trace.tokens for name, trace in traces.items()}


def table_rates(lab, keep):
    rank = np.argsort(np.argsort(np.random.default_rng(0).random(lab.source.shape), axis=1), axis=1)
    wanted = lab.changed & lab.inside
    said, calibration = [], []
    for rate in RATES:
        hidden = rank < round(rate * lab.length)
        tokens = np.where(hidden, lab.mask_id, lab.target)
        for guidance in (1.0, 2.5, 4.0) if rate == 1 else (1.0, 2.5):
            seen = lab.look(tokens, guidance)
            for name, where in (
                ("changed", wanted),
                ("kept inside", lab.inside & ~lab.changed),
                ("outside", ~lab.inside),
            ):
                said.append((f"{rate:g} guidance {guidance:g} {name}", _said(lab, seen, hidden & where)))
            change, truth = -np.expm1(seen.log_p_source[hidden]), lab.changed[hidden]
            bins = np.minimum((5 * change).astype(int), 4)
            pairs = [(change[bins == i].mean(), truth[bins == i].mean()) for i in range(5)]
            values = (change.mean(), truth.mean(), *(value for pair in pairs for value in pair))
            calibration.append((f"{rate:g} guidance {guidance:g}", values))
    _print("mask rates, true context", _SAID, said)
    columns = ("said", "true", *(f"{side} {i}/5" for i in range(5) for side in ("said", "true")))
    _print("probability of a change, calibration", columns, calibration)
    drawn = np.cos(np.pi / 2 * (np.arange(100_000) + 0.5) / 100_000)  # `masking.sample_mask_rate`
    rows = [
        (f"at least {rate:g}", ((drawn >= rate).mean(), drawn[drawn >= rate].sum() / drawn.sum()))
        for rate in (0.998, 0.99, 0.9, 0.75, 0.5, 0.25)
    ]
    _print("mask rates of training", ("samples", "hidden ids"), rows)
    for steps in (4, 8, 12):
        print(
            f"rates that {steps} steps visit: 1 "
            + " ".join(f"{r:.3f}" for r in masking.decode_schedule(steps).hidden_ratio[:-1])
        )


def table_settings(lab, keep):
    variants = {}
    for steps in (1, 4):
        grid = [{}] + [{"guidance": scale} for scale in (1.5, 4.0)]
        grid += [{"sampling_temperature": value} for value in (0.01, 0.7, 1.0)]
        if steps > 1:
            grid += [{"temperature": (value, 0.0)} for value in (0.0, 2.0)] + [{"schedule": "linear"}]
        for chosen in grid:
            name = " ".join(
                f"{key.replace('sampling_temperature', 'sampling')} {value}" for key, value in chosen.items()
            )
            variants[f"{steps}: {name or 'own settings'}"] = (steps, None, chosen)
    _decodes(lab, "settings", variants, keep)


def table_orders(lab, keep):
    orders = {
        "confidence": confidence,
        "margin": margin,
        "changes first": changes_first(COPY_PENALTY),
        "random": shuffled,
        "halton": halton,
    }
    variants = {"1 step": (1, None, {})}
    variants |= {f"{steps}: {name}": (steps, order, {}) for steps in (4, 8, 12) for name, order in orders.items()}
    variants |= {f"entropy, {bound:g} nats": (12, entropy_bound(bound), {}) for bound in (20.0, 60.0)}
    variants["8: source id less 0.69"] = (8, None, {"copy_bias": 0.69})
    _decodes(lab, "orders", variants, keep)


TABLES = {
    "default": table_default,
    "remask": table_remask,
    "steps": table_steps,
    "commits": table_commits,
    "contexts": table_contexts,
    "rates": table_rates,
    "settings": table_settings,
    "orders": table_orders,
}


# ---- picture


def draw_steps(lab, index: int, steps: int = 8, side: int = 128) -> Image.Image:
    """Pair `index` after each step: a row for each order, and source, target and one step's result in front of them."""
    cell, line, gap = side, 16, 4
    rows = {"one step": (1, None), "confidence": (steps, None)}
    rows |= {"changes first": (steps, changes_first(COPY_PENALTY)), "halton": (steps, halton)}
    sheet = Image.new("RGB", ((steps + 2) * (cell + gap), len(rows) * (cell + line + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    given = [lab.encoded.source[index], lab.encoded.target[index]]
    for number, (name, (count, order)) in enumerate(rows.items()):
        tokens = lab.decode(count, order).tokens[:, index].reshape(-1, *lab.grid)
        painted = np.asarray(lab.pipe.decode_image(tokens))
        frames = given + [images.hide(pixels, ids == lab.mask_id) for pixels, ids in zip(painted, tokens, strict=True)]
        top = number * (cell + line + gap)
        words = (
            f"{lab.pairs.instructions[index]}   source, target, {name}" if number == 0 else f"source, target, {name}"
        )
        pen.text((2, top + 2), words, fill="black")
        for column, pixels in enumerate(frames):
            sheet.paste(images.to_image(pixels, (cell, cell)), (column * (cell + gap), top + line))
    return sheet


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model directory (default: that of the package)")
    parser.add_argument("--split", choices=("train", "heldout"), default="train")
    parser.add_argument("--objects", default="rich", help="core, all or rich (default): that of the model's training")
    parser.add_argument("--pairs", type=int, default=210)
    parser.add_argument("--seed", type=int, default=2, help="of the scenes; training draws from 0 (default 2)")
    parser.add_argument("--categories", nargs="+", choices=CATEGORIES, default=CATEGORIES)
    parser.add_argument("--tables", nargs="*", choices=TABLES, default=list(TABLES))
    parser.add_argument("--lpips", help="weights that `editmgt convert lpips` wrote: adds lpips_inside")
    parser.add_argument("--save", help="folder for the ids and figures of every pair, an .npz for each table")
    parser.add_argument("--picture", help="where to draw the first `add` pair step by step")
    options = parser.parse_args()
    lab = Lab(
        options.model,
        options.split,
        options.pairs,
        options.objects,
        options.seed,
        tuple(options.categories),
        lpips=options.lpips,
    )
    for name in options.tables:
        keep = {}
        TABLES[name](lab, keep)
        if options.save:
            Path(options.save).mkdir(parents=True, exist_ok=True)
            arrays = {f"{row}/{figure}": value for row, figures in keep.items() for figure, value in figures.items()}
            np.savez_compressed(Path(options.save) / f"{name}.npz", categories=lab.pairs.categories, **arrays)
    if options.picture:
        images.save(draw_steps(lab, int(np.flatnonzero(lab.pairs.categories == "add")[0])), options.picture)


if __name__ == "__main__":
    main()
