"""LoRA: as PEFT and the released trainer write it, merged, converted, refused by name."""

import json

import jax
import numpy as np
import pytest
import tiny
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from editmgt_jax.config import LoRAConfig, PEFTConfig, peft
from editmgt_jax.errors import UserError
from editmgt_jax.weights import directories
from editmgt_jax.weights.components import abstract_params
from editmgt_jax.weights.conversion import to_released
from editmgt_jax.weights.files import WeightsError
from editmgt_jax.weights.lora import abstract_lora, merge, read, save_lora


def test_lora_names_and_merge_are_peft_s(lora, tmp_path):
    config, mgt, params, tree = lora
    save_lora(tmp_path, config, mgt.config, tree)
    factors = load_file(tmp_path / "adapter_model.safetensors")
    assert "base_model.model.single_transformer_blocks.1.attn.to_q.lora_A.weight" in factors
    assert not [key for key in factors if "add_q" in key or "norm" in key]

    plain, merged = to_released(params, mgt.config), to_released(merge(params, tree, config), mgt.config)
    for key in plain:
        module = f"base_model.model.{key.removesuffix('.weight')}"
        expected = plain[key]
        if f"{module}.lora_A.weight" in factors:
            expected = expected + 2.0 * factors[f"{module}.lora_B.weight"] @ factors[f"{module}.lora_A.weight"]
        np.testing.assert_allclose(merged[key], expected, atol=1e-5)


def test_lora_there_and_back(lora, tmp_path):
    config, mgt, _, tree = lora
    tiny.write_model(tmp_path / "model")
    (tmp_path / "peft").mkdir()
    save_lora(tmp_path / "peft", config, mgt.config, tree)
    directories.convert_lora(tmp_path / "peft", tmp_path / "orbax", tmp_path / "model", verify=True)
    directories.convert_lora(tmp_path / "orbax", tmp_path / "again", tmp_path / "model", verify=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "peft" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    directories.merge_lora(tmp_path / "model", tmp_path / "merged", tmp_path / "orbax", verify=True)
    assert directories.inspect(tmp_path / "merged")["loads"]


def test_lora_errors(lora):
    _, mgt, params, tree = lora
    for name in ("conv1", "to_qq"):
        with pytest.raises(ValueError, match=f"target_modules.*{name}"):
            abstract_lora(LoRAConfig(target_modules=(name,)), mgt.config, abstract_params(mgt))
    with pytest.raises(ValueError, match="only a LoRA of scope 'all' can be merged"):
        merge(params, tree, LoRAConfig(scope="reference"))


PEFT = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["to_q", "to_k"], "bias": "none"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"lora_bias": True}, "lora_bias"),
        ({"use_dora": True}, "use_dora"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"kind_of_the_future": {"a": 1}}, "kind_of_the_future"),
        ({"peft_type": "LOHA"}, "peft_type must be LORA; got 'LOHA'"),
        ({"r": None}, "r of a LoRA must be"),
        ({"r": 0}, "r of a LoRA must be positive"),
        ({"lora_alpha": "6"}, "lora_alpha of a LoRA must be a number"),
        ({"target_modules": "(to_q"}, "target_modules of a LoRA must be a regular expression"),
        ({"target_modules": []}, "target_modules of a LoRA must name modules"),
        ({"rank_pattern": {"to_q": "2"}}, "to_q of a LoRA must be an integer"),
    ],
)
def test_adapters_that_cannot_be_computed_are_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        PEFTConfig.from_dict(PEFT | change)


@pytest.mark.parametrize(
    "change",
    [{"target_modules": r"(([a-z_]+)+\.?)+!"}, {"rank_pattern": {r"((\w|\.)*)*!": 2}}],
)  # fmt: skip
def test_an_expression_that_goes_on_and_on_is_refused(change, monkeypatch):
    monkeypatch.setattr(peft, "_TRIAL", peft._TRIAL.replace(f"({peft._SECONDS}, {peft._SECONDS})", "(1, 1)"))
    config = PEFTConfig.from_dict(PEFT | change)
    with pytest.raises(UserError, match="must match names of modules within 5 s; not so .*!"):
        config.check_quick(SINGLE)


def test_a_lora_states_rank_alpha_and_targets():
    with pytest.raises(UserError, match="must state r, lora_alpha"):
        PEFTConfig.from_dict({})


def test_reading_an_adapter_of_another_kind_is_an_error_of_weights(lora, tmp_path):
    _, mgt, params, _ = lora
    (tmp_path / "adapter_config.json").write_text(json.dumps(PEFT | {"use_dora": True}))
    with pytest.raises(WeightsError, match="adapter_config.json: use_dora of a LoRA is not supported"):
        read(tmp_path, mgt.config, jax.eval_shape(lambda: params))


SINGLE = [f"single_transformer_blocks.{i}.attn.to_{name}" for i in (0, 1) for name in "qk"]
DOUBLE = [f"transformer_blocks.{i}.attn.to_{name}" for i in range(tiny.MGT_CONFIG.num_layers) for name in "qk"]


@pytest.mark.parametrize(
    "change, ranks, scales",
    [
        ({}, dict.fromkeys(SINGLE + DOUBLE, 3), {}),
        ({"use_rslora": True}, dict.fromkeys(SINGLE + DOUBLE, 3), dict.fromkeys(SINGLE + DOUBLE, 6 / 3**0.5)),
        ({"target_modules": SINGLE[:1] + ["transformer_blocks.0.attn.to_k"]}, {SINGLE[0]: 3, "transformer_blocks.0.attn.to_k": 3}, {}),
        ({"target_modules": r"single.*\.to_(q|k)"}, dict.fromkeys(SINGLE, 3), {}),
        ({"exclude_modules": ["0.attn.to_q"]}, dict.fromkeys([m for m in SINGLE + DOUBLE if ".0.attn.to_q" not in m], 3), {}),
        ({"layers_to_transform": [1], "layers_pattern": "single_transformer_blocks"}, dict.fromkeys(SINGLE[2:], 3), {}),
        ({"rank_pattern": {"to_q": 2}}, {m: 2 if m.endswith("q") else 3 for m in SINGLE + DOUBLE}, {m: 3.0 for m in SINGLE + DOUBLE if m.endswith("q")}),
        ({"alpha_pattern": {"single.*to_q": 12}}, dict.fromkeys(SINGLE + DOUBLE, 3), {m: 4.0 for m in SINGLE if m.endswith("q")}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) and len(value) < 3 else "",
)  # fmt: skip
def test_peft_s_options_are_merged_module_by_module(lora, tmp_path, change, ranks, scales):
    """Against the definition: weight + scale * B @ A, for the modules, ranks and scales (2 if not said) that PEFT would use."""
    _, mgt, params, _ = lora
    plain, dice, factors = to_released(params, mgt.config), np.random.default_rng(0), {}
    for module, rank in ranks.items():
        outputs, inputs = plain[f"{module}.weight"].shape
        factors[f"base_model.model.{module}.lora_A.weight"] = dice.standard_normal((rank, inputs), np.float32)
        factors[f"base_model.model.{module}.lora_B.weight"] = dice.standard_normal((outputs, rank), np.float32)
    save_file(factors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(PEFT | change))
    config, tree = read(tmp_path, mgt.config, abstract_params(mgt))
    merged = to_released(merge(params, tree, config), mgt.config)
    for key in plain:
        module, expected = f"base_model.model.{key.removesuffix('.weight')}", plain[key]
        if f"{module}.lora_A.weight" in factors:
            product = factors[f"{module}.lora_B.weight"] @ factors[f"{module}.lora_A.weight"]
            expected = expected + scales.get(key.removesuffix(".weight"), 2.0) * product
        np.testing.assert_allclose(merged[key], expected, atol=1e-5, rtol=1e-5)
    save_lora(tmp_path / "again", config, mgt.config, tree)
    config, again = read(tmp_path / "again", mgt.config, abstract_params(mgt))
    jax.tree.map(np.testing.assert_array_equal, tree, again)
    some = next(iter(factors))
    save_file({key: value for key, value in factors.items() if key != some}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match="missing: .*lora_A"):
        read(tmp_path, mgt.config, abstract_params(mgt))


def test_the_released_trainer_s_folder_adapts_the_reference(lora, tmp_path):
    config, mgt, _, tree = lora
    save_lora(tmp_path, config, mgt.config, tree)
    factors = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    renamed = {key.replace("base_model.model.", "unet._orig_mod."): value for key, value in factors.items()}
    save_file(renamed, tmp_path / "pytorch_lora_weights.safetensors")
    (tmp_path / "adapter_config.json").rename(tmp_path / "lora_config.json")
    found, again = read(tmp_path, mgt.config, abstract_params(mgt))
    assert found.scope == "reference" and found.scale == config.scale
    jax.tree.map(np.testing.assert_array_equal, tree, again)


def test_diffusers_finds_alpha_in_the_weight_file(lora, tmp_path):
    config, mgt, _, tree = lora
    save_lora(tmp_path, config, mgt.config, tree)
    with safe_open(tmp_path / "adapter_model.safetensors", "np") as file:
        noted = json.loads(file.metadata()["lora_adapter_metadata"])
    assert noted["base_model.model.lora_alpha"] == 6.0 and noted["base_model.model.r"] == 3
