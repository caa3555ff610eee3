"""Files of weights: written and read, in one piece or several, and every way they can be damaged."""

import json

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from editmgt_jax.weights import files as weights
from editmgt_jax.weights.components import DIFFUSERS_NAME
from editmgt_jax.weights.files import WeightFiles, WeightsError
from editmgt_jax.weights.loading import load_mgt


@pytest.fixture
def component(tmp_path):
    """A copy of a small transformer's folder, to damage."""
    tiny.write_model(tmp_path / "model")
    return tmp_path / "model/editmgt"


def rewrite(component, change):
    path = component / DIFFUSERS_NAME
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_weights_of_a_wrong_type_are_named(component):
    rewrite(component, lambda w: w.update({"embed.layer_norm.weight": np.ones(32, np.int32)}))
    with pytest.raises(WeightsError, match="mistyped: embed.layer_norm.weight is I32"):
        load_mgt(component)


def test_nan_is_a_warning_or_an_error(component):
    rewrite(component, lambda w: w["embed.layer_norm.weight"].__setitem__(3, np.nan))
    with pytest.warns(UserWarning, match="embed.layer_norm.weight holds NaN"):
        load_mgt(component)
    with pytest.raises(WeightsError, match="embed.layer_norm.weight holds NaN"):
        load_mgt(component, strict=True)


def test_an_index_that_names_absent_files(component):
    name = DIFFUSERS_NAME
    (component / f"{name}.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(WeightsError, match="names files that.*gone.safetensors"):
        load_mgt(component)
    (component / f"{name}.index.json").write_text("{")
    with pytest.raises(WeightsError, match="not a readable index"):
        load_mgt(component)


def test_sharded_files_are_what_one_file_is(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 300)
    tensors = {f"w{i}": np.full((5, i + 1), i, np.float32) for i in range(12)}
    pending = {k: weights.Pending(a.shape, a.dtype, lambda a=a: a) for k, a in tensors.items()}
    weights.write_weights(tmp_path, "model.safetensors", pending)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    files = WeightFiles(tmp_path)
    for key, value in tensors.items():
        np.testing.assert_array_equal(files.read(key), value)


def test_verification_names_what_differs(tmp_path):
    tensors = {key: np.arange(4, dtype=np.float32) for key in ("a", "b")}
    pending = {key: weights.Pending((4,), a.dtype, lambda a=a: a) for key, a in tensors.items()}
    weights.write_weights(tmp_path, "model.safetensors", pending, verify=True)
    file = tmp_path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # a bit of b
    file.write_bytes(data)
    with pytest.raises(WeightsError, match="these tensors differ: b$"):
        weights.check_same(WeightFiles(tmp_path), pending)
    with pytest.raises(WeightsError, match=": a; b$"):
        weights.check_same(WeightFiles(tmp_path), {"b": pending["b"]})
