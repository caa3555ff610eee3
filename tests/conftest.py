"""Every test sees eight CPU devices, whatever the machine has."""

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

import xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = xla_flags.added(os.environ.get("XLA_FLAGS", ""), xla_force_host_platform_device_count=8)

# Programs that several tests, and the processes that they start, compile alike are compiled once.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="editmgt-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# The commands that tests run leave the user's cache of programs alone.
if "EDITMGT_CACHE" not in os.environ:
    os.environ["EDITMGT_CACHE"] = tempfile.mkdtemp(prefix="editmgt-tests-")
    atexit.register(shutil.rmtree, os.environ["EDITMGT_CACHE"], ignore_errors=True)

import jax  # noqa: E402  (the flags come first)
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# Annotated types and axes of arrays are checked at every call.
install_import_hook(["editmgt_jax.models", "editmgt_jax.sampling"], "type_check.check")

import tiny  # noqa: E402

from editmgt_jax import executables  # noqa: E402
from editmgt_jax.pipeline import EditPipeline  # noqa: E402
from editmgt_jax.weights import presets  # noqa: E402
from editmgt_jax.weights.random_model import make_random  # noqa: E402

pytest_plugins = ["pods"]  # fixtures of tests of launch/


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Compiled programs are let go before they take all the maps of memory that Linux grants a process: 65 530, and then it crashes."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def own_executables():
    """A command that a test runs in this process names a folder of executables: for that test alone."""
    before = executables._folder
    yield
    executables.keep_in(before)


@pytest.fixture
def exact_types():
    """Arrays of other dtypes or numbers of axes do not mix: nothing is promoted that the code does not convert."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A model directory with random weights."""
    return tiny.write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def with_llm(tmp_path_factory):
    """A random editor with both text encoders, at a small size, and its presets known as "tiny" and "tiny-base"."""
    with pytest.MonkeyPatch.context() as patch:
        for name, configs in tiny.small_presets().items():
            patch.setitem(presets.PRESETS, name, configs)
        directory = tmp_path_factory.mktemp("llm") / "model"
        make_random("tiny", directory)
        yield directory


@pytest.fixture(scope="session")
def pipe(tiny_model):
    return EditPipeline.from_pretrained(tiny_model)


@pytest.fixture
def lora():
    """A random LoRA of the tiny model. -> (config, module, parameters, tree)"""
    return tiny.random_lora()
