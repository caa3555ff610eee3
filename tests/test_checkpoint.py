"""Checkpoints: on any mesh, whole or not there, and damage is seen."""

import contextlib
import json
import os
import resource
import shutil
import signal
import types
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from editmgt_jax import locks
from editmgt_jax.data.loader import batches
from editmgt_jax.errors import UserError
from editmgt_jax.training import checkpoint, checkpoint_reading
from editmgt_jax.training.checkpoint import SIZES, Checkpoints, fingerprint
from editmgt_jax.training.checkpoint_reading import restore_params
from editmgt_jax.training.config import Optimizer
from editmgt_jax.training.optimizer import make_optimizer
from editmgt_jax.training.sharding import Layout, make_mesh, with_shardings
from editmgt_jax.training.state import new_state
from editmgt_jax.weights import trees
from editmgt_jax.weights.trees import CheckpointError

# Of the host: what jax draws differs in the last place from mesh to mesh, from 0.12 on.
KERNEL = np.random.default_rng(0).standard_normal((64, 32), np.float32)
RULES = ((r"kernel", (None, "fsdp")), (r"bias", ("fsdp",)))


class Numbers:
    def __len__(self):
        return 64

    def __getitem__(self, index):
        return {"x": np.array(index)}


def state_of(value):
    kernel = KERNEL.copy()
    kernel[0, 0] = value
    params = {
        "kernel": jnp.asarray(kernel),
        "bias": jnp.full(32, value, jnp.bfloat16),
    }
    return new_state(params, make_optimizer(Optimizer()), ema=True)


def put_state(devices, value=0.0):
    """-> (state on a mesh of so many devices, its shapes)"""
    sizes = {"data": 1, "fsdp": devices, "tensor": 1, "context": 1}
    layout = Layout(make_mesh(sizes, jax.devices()[:devices]), RULES)
    abstract = jax.eval_shape(lambda: state_of(0.0))
    shardings = layout.of(abstract)
    return jax.jit(lambda: state_of(value), out_shardings=shardings)(), with_shardings(abstract, shardings)


def open_run(folder, **more):
    return Checkpoints(folder / "checkpoints", {"a": 1}, ("accuracy", "max"), **more)


def write(folder, steps=(2, 4), devices=8, **more):
    """A run with checkpoints of the given steps, whose parameters tell them apart."""
    run, data = open_run(folder, **more), batches(Numbers(), 4)
    for step in steps:
        next(data)
        run.save(step, put_state(devices, float(step))[0], data, {"accuracy": -step})
        run.wait()
    run.close()


def restored(folder, devices=8):
    """-> (first value of the parameters, number of the next batch), or None"""
    data, run = batches(Numbers(), 4), open_run(folder)
    state = run.restore(put_state(devices)[1], data)
    run.close()
    if state is None:
        return None
    expected = put_state(devices, float(state.params["kernel"][0, 0]))[0]
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert state.params["kernel"].sharding.num_devices == devices
    return float(state.params["kernel"][0, 0]), data.get_state()["step"]


@pytest.mark.parametrize("devices", [8, 4, 1])
def test_a_checkpoint_is_restored_bit_for_bit_on_any_mesh(tmp_path, devices):
    assert restored(tmp_path, devices) is None
    write(tmp_path)
    assert restored(tmp_path, devices) == (4.0, 2)


def largest_file(step):
    """One with parts of arrays."""
    return max(step.rglob("d/*"), key=lambda path: path.stat().st_size)


def truncate(step):
    path = largest_file(step)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(step):
    path = largest_file(step)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def delete(step):
    largest_file(step).unlink()


@pytest.mark.parametrize("sizes_known", [True, False])
@pytest.mark.parametrize("damage", [truncate, flip, delete])
def test_a_damaged_last_checkpoint_is_put_aside(tmp_path, damage, sizes_known, capfd):
    write(tmp_path)
    damage(tmp_path / "checkpoints" / "4")
    if not sizes_known:
        (tmp_path / SIZES).unlink()
    assert restored(tmp_path) == (2.0, 1)
    assert "checkpoint 4 is damaged, put aside" in capfd.readouterr().err
    for times in (1, 2):
        assert len(list((tmp_path / "checkpoints").glob("4.damaged.*"))) == times
        write(tmp_path, steps=(4,))  # its folder is free again
        assert restored(tmp_path) == (4.0, 1)
        damage(tmp_path / "checkpoints" / "4")
        assert restored(tmp_path) == (2.0, 1)


def test_a_checkpoint_is_not_damaged_where_memory_does_not_suffice(tmp_path, monkeypatch):
    write(tmp_path, steps=(2,))
    with monkeypatch.context() as patch:
        patch.setattr("editmgt_jax.training.checkpoint.ocp.load_checkpointables", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            restored(tmp_path)
    assert restored(tmp_path) == (2.0, 1)


def test_reads_that_orbax_leaves_behind_are_not_reported_and_other_faults_are():
    async def left_behind():
        raise AssertionError

    reported, ours = [], left_behind()
    hook = trees._of_others(reported.append)
    theirs = types.SimpleNamespace(cr_code=types.SimpleNamespace(co_filename="site-packages/orbax/serialization.py"))
    for faulty, error in ((theirs, Exception()), (None, RuntimeError("Event loop is closed"))):
        hook(types.SimpleNamespace(object=faulty, exc_value=error))
    assert not reported
    for faulty, error in ((ours, Exception()), (None, RuntimeError("out of threads")), (left_behind, ValueError())):
        hook(types.SimpleNamespace(object=faulty, exc_value=error))
    assert len(reported) == 3
    ours.close()


def test_an_array_that_changed_unnoticed_by_the_format_is_seen(tmp_path, monkeypatch):
    write(tmp_path)
    data, run = batches(Numbers(), 4), open_run(tmp_path)
    monkeypatch.setattr(checkpoint, "fingerprint", lambda tree: 1)
    with pytest.raises(CheckpointError, match="not those that were saved"):
        run.restore(put_state(8)[1], data)


def test_a_changed_position_in_the_data_is_seen(tmp_path, capfd):
    write(tmp_path)
    (path,) = (tmp_path / "checkpoints" / "4").rglob("_CHECKPOINT_METADATA")
    path.write_text(path.read_text().replace('"step": 2', '"step": 3'))
    assert restored(tmp_path) == (2.0, 1) and "is not what was saved" in capfd.readouterr().err


def test_a_file_system_that_stutters_is_asked_again(tmp_path, monkeypatch, capfd):
    write(tmp_path)
    read, answers = Checkpoints._read, [(None, None, "[Errno 5] Input/output error: d/1")]
    monkeypatch.setattr(Checkpoints, "_read", lambda *given: answers.pop() if answers else read(*given))
    monkeypatch.setattr(checkpoint, "_PAUSE", 0.0)
    assert restored(tmp_path) == (4.0, 2) and "damaged" not in capfd.readouterr().err


def test_parameters_are_those_of_the_best_step_and_damage_is_seen(tmp_path):
    write(tmp_path)  # the first has the higher accuracy
    params, *_ = restore_params(tmp_path / "checkpoints")
    assert params["kernel"][0, 0] == 2.0 and restore_params(tmp_path / "checkpoints", 4)[0]["bias"][0] == 4.0
    (tmp_path / "checkpoints" / "4" / "_CHECKPOINT_METADATA").write_text("{")
    assert restore_params(tmp_path / "checkpoints")[0]["kernel"][0, 0] == 2.0
    with pytest.raises(CheckpointError, match="checkpoint 4 in .* cannot be read"):
        restore_params(tmp_path / "checkpoints", 4)
    flip(tmp_path / "checkpoints" / "2")
    with pytest.raises(CheckpointError, match="checkpoint 2 in .* (cannot be read|is damaged)"):
        restore_params(tmp_path / "checkpoints")


def test_names_in_which_nothing_would_be_found_are_refused_before_anything_is_written(tmp_path):
    for name in ("run[1]", "a*b", "what?", "a\\b", "gs:"):
        with pytest.raises(UserError, match="take another name"):
            open_run(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_the_first_checkpoint_is_proved_readable(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "check_name", lambda _: None)
    run, data = open_run(tmp_path / "run[1]"), batches(Numbers(), 4)
    with pytest.raises(CheckpointError, match="cannot be read back .* Take another workdir") as refused:
        run.save(2, put_state(8)[0], data, {})
        run.wait()
    assert not refused.value.transient


def test_a_checkpoint_that_its_run_deletes_meanwhile_is_not_damaged(tmp_path, monkeypatch):
    write(tmp_path)
    read, gone = checkpoint_reading._read_params, [FileNotFoundError("4"), ValueError("half of it")]
    monkeypatch.setattr(checkpoint_reading, "_BETWEEN_READS", 0.0)

    def stutter(*given):
        if gone:
            raise gone.pop()
        return read(*given)

    monkeypatch.setattr(checkpoint_reading, "_read_params", stutter)
    open_folder = checkpoint_reading.ocp.training.Checkpointer

    def listed(*given):
        if len(gone) == 3:  # while the steps of a folder are looked at, too
            raise gone.pop()
        return open_folder(*given)

    gone.append(FileNotFoundError("2"))
    monkeypatch.setattr(checkpoint_reading.ocp.training, "Checkpointer", listed)
    with locks.held(tmp_path, "train"):
        assert restore_params(tmp_path / "checkpoints")[0]["kernel"][0, 0] == 2.0 and not gone
        gone.extend([OSError("no")] * 100)
        with pytest.raises(CheckpointError, match="the run is writing in .*Try again"):
            restore_params(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match="is damaged"):
        restore_params(tmp_path / "checkpoints")


def test_a_state_means_nothing_without_its_identity(tmp_path):
    write(tmp_path, identity={"rank": (1, 2)})
    for rank in ((1, 2), (1, 3)):
        run = open_run(tmp_path, identity={"rank": rank})
        if rank == (1, 2):
            assert run.restore(put_state(8)[1], batches(Numbers(), 4)) is not None
            continue
        with pytest.raises(CheckpointError, match=r"was begun with .*\[1, 2\].* got .*\[1, 3\]"):
            run.restore(put_state(8)[1], batches(Numbers(), 4))


def test_saves_leave_no_file_open(tmp_path):
    write(tmp_path, steps=(1, 2))
    before = len(os.listdir("/proc/self/fd"))
    write(tmp_path, steps=range(3, 9))
    assert len(os.listdir("/proc/self/fd")) < before + 6


def test_nothing_usable_is_an_error_and_not_a_new_start(tmp_path):
    write(tmp_path)
    for step in (2, 4):
        delete(tmp_path / "checkpoints" / str(step))
    with pytest.raises(CheckpointError, match="no checkpoint in .* can be used.*Checkpoint 4"):
        restored(tmp_path)


def test_a_cut_off_file_of_sizes_does_no_harm(tmp_path):
    write(tmp_path)
    (tmp_path / SIZES).write_text('{"4": {"a')
    assert restored(tmp_path) == (4.0, 2)


def test_what_is_kept(tmp_path):
    write(tmp_path, steps=(1, 2, 3, 4, 6, 7), keep=2, keep_every=4)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == [
        1,
        4,
        6,
        7,
    ]  # 1 is the best
    assert sorted(json.loads((tmp_path / SIZES).read_text()), key=int)[-2:] == ["6", "7"]


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    write(tmp_path)
    run, data = open_run(tmp_path), batches(Numbers(), 4)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(CheckpointError, match="has 0 MiB left: make room.*last whole checkpoint is 4"):
        run.save(6, put_state(8)[0], data, {})
    run.close()
    assert restored(tmp_path) == (4.0, 2)


@contextlib.contextmanager
def small_files():
    """Files may not grow beyond a size, as if the disk were full."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_write_that_fails_is_told_and_the_last_checkpoint_stays(tmp_path):
    write(tmp_path)
    run, data = open_run(tmp_path), batches(Numbers(), 4)
    with pytest.raises(CheckpointError, match="cannot be written.*File too large"), small_files():
        run.save(6, put_state(8)[0], data, {})
        run.wait()
    assert restored(tmp_path) == (4.0, 2)


def test_the_fingerprint_sees_every_bit_and_no_mesh():
    state, _ = put_state(8, 3.0)
    tree = jax.device_get(state.params)
    whole = int(fingerprint(state.params))
    assert whole == int(fingerprint(tree))
    for index in ((0, 0), (7, 31), (63, 5)):
        for bit in (0, 13, 31):
            changed = {name: value.copy() for name, value in tree.items()}
            changed["kernel"].view(np.uint32)[index] ^= np.uint32(1 << bit)
            assert int(fingerprint(changed)) != whole
    swapped = tree["kernel"].copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert int(fingerprint(tree | {"kernel": swapped})) != whole
