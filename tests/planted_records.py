"""Records without a model: attention of noise, in which some blocks show the truth."""

import numpy as np

from editmgt_jax.ablation.records import Manifest, Records

NUM_BLOCKS, GRID, TOKEN_GRID = 6, (4, 4), (8, 8)


def manifest(**changes):
    values = {
        "model": "default",
        "fingerprint": "0" * 16,
        "examples": 20,
        "seeds": (0, 1),
        "moments": ("rate 1.0", "rate 0.5"),
        "signals": ("text_to_image", "image_to_text"),
        "heads": ("mean",),
        "groups": ("all", "query"),
        "num_blocks": NUM_BLOCKS,
        "grid": GRID,
        "token_grid": TOKEN_GRID,
        "size": 32,
        "layers": (4,),
        "signal": "image_to_text",
        "chunk": 8,
        "dtype": "float16",
        "truth": "mask",
    }
    return Manifest(**values | changes)


def truths(count, dice, token_grid=TOKEN_GRID):
    """One square of a quarter of the side or more. -> bool [count H W]"""
    found = np.zeros((count, *token_grid), bool)
    for one in found:
        side = dice.integers(token_grid[0] // 4, token_grid[0] // 2 + 1)
        top, left = dice.integers(0, np.array(token_grid) - side + 1)
        one[top : top + side, left : left + side] = True
    return found


def write(folder, strength, noise=1.0, seed=0, **changes):
    """Records whose block j shows the truth with `strength` [J] in noise of a deviation of `noise`. -> Records"""
    held, dice = manifest(**changes), np.random.default_rng(seed)
    truth = truths(held.examples, dice, held.token_grid)
    h, w = held.grid
    shown = truth.reshape(held.examples, h, truth.shape[1] // h, w, -1).mean(axis=(2, 4)).reshape(held.examples, -1)
    records = Records(folder, held, create=True)
    shape = held.shape
    attention = (
        5
        + noise * dice.standard_normal(shape)
        + np.asarray(strength)[:, None] * shown.reshape(held.examples, *(1,) * 6, -1)
    )
    for chunk in range(held.num_chunks):
        rows = held.examples_of(chunk)
        texts = [{"instruction": f"edit {row}", "category": "add", "query": "edit"} for row in rows]
        records.write(chunk, attention[rows.start : rows.stop], truth[rows.start : rows.stop], texts)
    held.write(folder)
    return records
