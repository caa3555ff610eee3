"""Every test sees eight CPU devices, whatever the machine has."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=8".strip()

import pytest  # noqa: E402  (the flags come first)
import tiny  # noqa: E402

from editmgt_jax import directories, presets  # noqa: E402
from editmgt_jax.pipeline import EditPipeline  # noqa: E402


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
        directories.make_random("tiny", directory)
        yield directory


@pytest.fixture(scope="session")
def pipe(tiny_model):
    return EditPipeline.from_pretrained(tiny_model)
