"""Weights to and from the released layout: exact both ways, and every way a file can be wrong."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from editmgt_jax.config import CLIPTextConfig, MGTConfig, VQConfig
from editmgt_jax.models.clip_text import CLIPText
from editmgt_jax.weights import components, conversion, rules
from editmgt_jax.weights.files import WeightsError
from editmgt_jax.weights.loading import load_mgt, load_vq

DATA = Path(__file__).parent / "data"
WEIGHTS = components.DIFFUSERS_NAME


@pytest.fixture
def copy(tmp_path):
    """A copy of a small released component, to damage."""
    target = tmp_path / "mgt"
    shutil.copytree(DATA / "mgt_512", target)
    return target


@pytest.mark.parametrize("folder, load", [("mgt_1024", load_mgt), ("mgt_512", load_mgt), ("vqvae", load_vq)])
def test_released_weights_come_back_bit_for_bit(folder, load):
    model, params = load(DATA / folder)
    ours, theirs = conversion.to_released(params, model.config), load_file(DATA / folder / WEIGHTS)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)


def test_clip_parameters_come_back_through_a_directory(tmp_path):
    config = CLIPTextConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        projection_dim=12,
        num_hidden_layers=3,
        num_attention_heads=2,
    )
    model = CLIPText(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 5), jnp.int32))["params"]
    conversion.save_component(tmp_path, config, params)
    again = conversion.load_params(tmp_path, CLIPTextConfig.from_json(tmp_path / "config.json"), params)
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_rotary_halves_keep_every_inner_product():
    class Heads:
        attention_head_dim = 6

    q, k = np.random.default_rng(0).normal(size=(2, 12))
    np.testing.assert_array_equal(rules._pairs(rules._halves(q, Heads), Heads), q)
    halved_q, halved_k = (rules._halves(x, Heads).reshape(2, 6) for x in (q, k))
    np.testing.assert_allclose((halved_q * halved_k).sum(1), (q * k).reshape(2, 6).sum(1))
    np.testing.assert_array_equal(halved_q[0], q[[0, 2, 4, 1, 3, 5]])


def _damage(folder, change):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda w: w.pop("embed.conv.weight"), ["missing: embed.conv.weight [64, 64, 1, 1]"]),
        (lambda w: w.update(extra=np.zeros(3, np.float32)), ["unknown: extra [3]"]),
        (
            lambda w: w.update({"embed.layer_norm.weight": np.zeros(9, np.float32)}),
            ["misshapen: embed.layer_norm.weight", "[9] in the file", "[64] by its config"],
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(copy, change, words):
    _damage(copy, change)
    with pytest.raises(WeightsError) as error:
        load_mgt(copy)
    assert all(word in str(error.value) for word in words)


def test_a_repeated_weight_is_named(copy):
    save_file({"embed.conv.weight": np.zeros((64, 64, 1, 1), np.float32)}, copy / "second.safetensors")
    with pytest.raises(WeightsError, match="embed.conv.weight is repeated"):
        load_mgt(copy)


def test_a_truncated_file_is_named(copy):
    data = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="not a readable safetensors"):
        load_mgt(copy)


@pytest.mark.parametrize("name", ["weights.bin", "weights.pt", "weights.ckpt"])
def test_pickles_are_refused_with_the_reason(copy, name):
    (copy / WEIGHTS).rename(copy / name)
    with pytest.raises(WeightsError, match="unpickling can run any code"):
        load_mgt(copy)


@pytest.mark.parametrize(
    "config, changes, words",
    [
        (MGTConfig, {"connector_type": "qformer"}, "qformer"),
        (MGTConfig, {"axes_dims_rope": [16, 56, 55]}, "axes_dims_rope"),
        (MGTConfig, {"vocab_size": 8192}, "vocab_size"),
        (MGTConfig, {"upsample": False}, "downsample and upsample"),
        (MGTConfig, {"guidance_embeds": True}, "guidance_embeds"),
        (VQConfig, {"norm_type": "spatial"}, "norm_type"),
        (VQConfig, {"norm_num_groups": 7}, "norm_num_groups"),
        (VQConfig, {"latent_channels": None}, "latent_channels"),
    ],
)
def test_configurations_that_are_not_supported_are_errors(config, changes, words):
    values = MGTConfig().to_dict() if config is MGTConfig else VQConfig.from_json(DATA / "vqvae/config.json").to_dict()
    values |= changes
    values = {key: value for key, value in values.items() if value is not None}
    with pytest.raises(ValueError, match=words):
        config.from_dict(values)
