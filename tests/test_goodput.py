"""The ledger of a run's time, with a clock that the tests turn."""

import json

import pytest

from editmgt_jax.training.goodput import KINDS, LEDGER, Ledger


class Clock:
    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


def spend(ledger, clock, **kinds):
    for kind, seconds in kinds.items():
        with ledger.during(kind.replace("_", " ")):
            clock.now += seconds


def test_all_time_goes_to_one_kind():
    clock = Clock()
    ledger = Ledger(None, clock)
    clock.now += 3
    spend(ledger, clock, compile=5, step=7)
    with ledger.during("eval"):
        clock.now += 1
        spend(ledger, clock, data_wait=2)
        clock.now += 1
    assert ledger.describe().startswith("19 s: init 15.8%, compile 26.3%, data wait 10.5%, step 36.8%")
    assert sum(ledger.seconds.values()) == 19 and ledger.seconds["eval"] == 2 and set(ledger.seconds) == set(KINDS)


def test_what_a_death_destroyed_is_lost(tmp_path):
    clock = Clock()
    first = Ledger(tmp_path, clock)
    spend(first, clock, init=2, step=10)
    first.saved(100)
    spend(first, clock, step=4)
    first.saved(140)
    spend(first, clock, step=3, eval=1)
    first.write()
    clock.now += 20  # nothing lives
    second = Ledger(tmp_path, clock)
    clock.now += 2
    second.resume(100)  # 140 was damaged
    second.enter("step")
    assert second.seconds == {
        "init": 4, "compile": 0, "data wait": 0, "step": 10, "checkpoint": 0, "eval": 0, "lost": 4 + 3 + 1 + 20
    }  # fmt: skip
    clock.now += 6
    second.saved(150)
    assert sorted(map(int, json.loads((tmp_path / LEDGER).read_text())["marks"])) == [100, 150]
    third = Ledger(tmp_path, clock)
    third.resume(150)
    assert sum(third.seconds.values()) == pytest.approx(clock.now - 1000)


def test_without_a_mark_everything_was_lost_and_a_cut_off_ledger_is_none(tmp_path):
    clock = Clock()
    first = Ledger(tmp_path, clock)
    spend(first, clock, step=5)
    first.write()
    second = Ledger(tmp_path, clock)
    second.resume(10)
    assert second.seconds["lost"] == 5 and second.seconds["step"] == 0
    (tmp_path / LEDGER).write_text('{"seconds"')
    third = Ledger(tmp_path, clock)
    third.resume(10)
    assert sum(third.seconds.values()) == 0
