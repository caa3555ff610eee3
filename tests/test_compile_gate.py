"""The train step costs no more on TPUs than the stored figures say, by their compiler."""

import copy
import importlib.util

import compile_gate
import pytest

FIGURES = {
    "flops": 1000, "temporaries": 200, "cycles": 500, "collective bytes": 60,
    "cycles by operation": {"copy: a": 300, "fusion, product: b": 200},
    "collective bytes by operation": {"all-gather: a": 40, "all-reduce: b": 20},
}  # fmt: skip


def test_up_to_three_in_a_hundred_is_no_growth():
    found = FIGURES | {"flops": 1030, "temporaries": 206, "cycles": 515, "collective bytes": 61}
    assert not compile_gate.grown(FIGURES, found)
    assert not compile_gate.grown(FIGURES, FIGURES | {"cycles": 100})


def test_what_grew_is_named():
    found = copy.deepcopy(FIGURES) | {"collective bytes": 100}
    found["collective bytes by operation"] |= {"all-reduce: b": 25, "collective-permute: c": 35}
    (line,) = compile_gate.grown(FIGURES, found)
    assert "collective bytes grew by 66.7%" in line
    assert line.endswith("collective-permute: c (+35), all-reduce: b (+5)")
    found = copy.deepcopy(FIGURES) | {"temporaries": 220, "cycles": 600}
    found["cycles by operation"]["copy: a"] = 400
    lines = compile_gate.grown(FIGURES, found)
    assert [line.partition(" ")[0] for line in lines] == ["temporaries", "cycles"]
    assert all("copy: a (+100)" in line for line in lines)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (pip install 'jax[tpu]')")
def test_the_train_step_has_not_grown():
    stored = compile_gate.read()
    if stored is None:
        pytest.skip(f"no figures of {compile_gate.versions()}: python tests/compile_gate.py --write stores them")
    assert not (lines := compile_gate.grown(stored, compile_gate.measure())), "\n".join(lines)
