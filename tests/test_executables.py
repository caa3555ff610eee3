"""Executables on disk: what they give is what jit gives, and only a call of the same kind gets them."""

import concurrent.futures
import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from editmgt_jax import executables

traced = []


@functools.partial(jax.jit, static_argnames="power")
def program(x, power):
    traced.append(power)
    return {"sum": jnp.sum(jnp.sin(x["a"]) ** power), "key": jax.random.fold_in(x["key"], 1)}


@pytest.fixture
def folder(tmp_path):
    executables.keep_in(tmp_path / "executables")
    forget()
    yield tmp_path / "executables"
    executables.keep_in(None)
    forget()


def forget():
    """As in a new process."""
    executables._ready.clear()
    jax.clear_caches()
    traced.clear()


def inputs(length=7):
    return {"a": jnp.arange(length, dtype=jnp.float32), "key": jax.random.key(3)}


def plain(result):
    return {name: np.asarray(jax.random.key_data(x) if name == "key" else x).tolist() for name, x in result.items()}


def test_the_next_process_neither_traces_nor_compiles(folder):
    expected = plain(program(inputs(), power=2))
    forget()
    assert plain(executables.run(program, inputs(), power=2)) == expected and traced == [2]
    forget()
    for _ in range(2):
        assert plain(executables.run(program, inputs(), power=2)) == expected
    assert not traced and len(list(folder.iterdir())) == 1


def test_threads_compile_a_program_once(folder):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: plain(executables.run(program, inputs(), power=2)), range(4)))
    assert traced == [2] and found == [plain(program(inputs(), power=2))] * 4


def test_of_many_programs_those_last_used_are_kept(folder, monkeypatch):
    monkeypatch.setattr(executables, "KEPT", 2)
    built = [executables.build(program, inputs(length), power=2)[0] for length in (3, 4)]
    released = weakref.ref(built.pop())
    assert executables.find(program, inputs(3), power=2) is built[0] and released() is not None
    executables.build(program, inputs(5), power=2)  # one too many: that of length 4 goes
    gc.collect()
    assert len(executables._ready) == 2 and released() is None
    assert executables.find(program, inputs(3), power=2) is built[0]
    assert executables.find(program, inputs(4), power=2) is not None and len(executables._ready) == 2  # from the folder


@pytest.mark.parametrize("in_memory", [False, True])
def test_what_jax_has_in_its_own_cache_can_be_kept(in_memory, folder, tmp_path):
    """An executable that was read from that cache, even by an earlier call of this process, cannot be written again: it must be compiled."""
    options = {"dir": str(tmp_path / "jax")}
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", options["dir"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    executables.compilation_cache.reset_cache()
    try:
        heard = []
        for _ in range(2):
            forget()
            with executables.listening() as events:
                expected = plain(program(inputs(), power=3))
            heard.append(executables.CACHE_HIT in events)
        assert heard == [False, True] and list((tmp_path / "jax").iterdir())
        if not in_memory:
            forget()
        assert plain(executables.run(program, inputs(), power=3)) == expected and len(list(folder.iterdir())) == 1
        forget()
        assert plain(executables.run(program, inputs(), power=3)) == expected and not traced
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
        executables.compilation_cache.reset_cache()


def test_each_kind_of_call_has_its_own(folder):
    executables.run(program, inputs(), power=2)
    executables.run(program, inputs(8), power=2)
    executables.run(program, inputs() | {"a": jnp.arange(7)}, power=2)
    executables.run(program, inputs(), power=3)
    with jax.default_matmul_precision("highest"):
        executables.run(program, inputs(), power=2)
    assert len(list(folder.iterdir())) == 5 and len(traced) == 5


def test_other_code_has_its_own(folder, monkeypatch, tmp_path):
    executables.run(program, inputs(), power=2)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "changed.py").write_text("")
    monkeypatch.setattr(executables, "_PACKAGE", tmp_path)
    monkeypatch.setattr(executables, "_CODE", ("models",))
    executables._installation.cache_clear()
    executables.run(program, inputs(), power=2)
    executables._installation.cache_clear()
    assert len(list(folder.iterdir())) == 2


def test_a_damaged_file_costs_a_compilation(folder):
    expected = plain(executables.run(program, inputs(), power=2))
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    forget()
    assert plain(executables.run(program, inputs(), power=2)) == expected and traced == [2]


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    executables.keep_in(tmp_path / "file" / "executables")
    try:
        assert executables.build(program, inputs(), power=2)[1] is False
        assert plain(executables.run(program, inputs(), power=2)) == plain(program(inputs(), power=2))
    finally:
        executables.keep_in(None)
        forget()


def test_a_platform_that_cannot_write_executables_keeps_them(folder, monkeypatch):
    def refuse(_):
        raise ValueError("Compilation does not support serialization")

    monkeypatch.setattr(executables.serialize_executable, "serialize", refuse)
    executable, written = executables.build(program, inputs(), power=2)
    assert not written and plain(executable(inputs())) == plain(executables.run(program, inputs(), power=2))
    assert len(traced) == 1 and not folder.exists()


def test_the_default_device_may_be_the_name_of_a_platform(folder):
    with jax.default_device("cpu"):
        assert executables._device() == jax.devices("cpu")[0]


def test_arrays_on_several_devices_go_the_way_of_jit(folder):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread = inputs(16) | {"a": jax.device_put(jnp.arange(16.0), NamedSharding(mesh, PartitionSpec("data")))}
    assert not executables.is_kept((spread,))
    assert plain(executables.run(program, spread, power=2))["key"] == plain(program(inputs(16), power=2))["key"]
    assert not folder.exists()


def test_shapes_are_made_once(folder):
    made = []

    def make():
        made.append(1)
        return {"a": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}

    assert executables.shapes("a model", make) == executables.shapes("a model", make) == make()
    assert len(made) == 2 and len(list(folder.iterdir())) == 1
