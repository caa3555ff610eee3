"""LoRA: trained alone, applied to the tokens of its scope, exported, merged."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tokens
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file
from small_runs import frozen_config, train

from editmgt_jax.config import LoRAConfig
from editmgt_jax.models.mgt import MGT
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.training import trainer
from editmgt_jax.training.config_files import checked
from editmgt_jax.training.export import export
from editmgt_jax.training.runs import run_config, run_params
from editmgt_jax.weights.components import DIFFUSERS_NAME, abstract_params
from editmgt_jax.weights.loading import load_mgt, load_model
from editmgt_jax.weights.lora import init_lora, merge, read, save_lora
from editmgt_jax.weights.trees import CheckpointError


@pytest.fixture(scope="module")
def base(tiny_model):
    return load_mgt(tiny_model / "editmgt")


def random_lora(config, spread=0.3):
    lora = init_lora(config, tiny.MGT_CONFIG, abstract_params(MGT(tiny.MGT_CONFIG)), jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 100))
    return jax.tree.map(lambda x: spread * jax.random.normal(next(keys), x.shape), lora)


def logits(mgt, variables, reference=True):
    dice = np.random.default_rng(0)
    ids = jnp.array(dice.integers(0, 32, (2, 8, 8)))
    text = [jnp.array(dice.standard_normal(shape), jnp.float32) for shape in ((2, 5, 24), (2, 20), (2, 5))]

    def forward(module):
        condition = module.condition(*text, ids if reference else None)
        return module(jnp.where(ids % 3 == 0, tiny.MGT_CONFIG.mask_token_id, ids), 0.5, condition)[0]

    return jax.jit(lambda variables: mgt.apply(variables, method=forward))(variables)


TARGETS = ("to_q", "to_k", "to_v", "add_q_proj", "proj_out", "norm1.linear")


def test_merged_is_unmerged(base):
    mgt, params = base
    config = LoRAConfig(r=3, lora_alpha=6.0, target_modules=TARGETS)
    lora = random_lora(config)
    unmerged = logits(mgt.clone(lora=config), {"params": params, "lora": lora})
    np.testing.assert_allclose(unmerged, logits(mgt, {"params": merge(params, lora, config)}), atol=1e-5, rtol=1e-5)
    assert np.abs(unmerged - logits(mgt, {"params": params})).max() > 0.1


def test_a_new_lora_changes_nothing(base):
    mgt, params = base
    config = LoRAConfig(r=3)
    lora = init_lora(config, mgt.config, abstract_params(mgt), jax.random.key(0))
    np.testing.assert_array_equal(
        logits(mgt.clone(lora=config), {"params": params, "lora": lora}), logits(mgt, {"params": params})
    )


def test_scope_reference_sees_reference_tokens_only(base):
    mgt, params = base
    config = LoRAConfig(r=3, target_modules=("to_q", "to_k", "to_v", "norm1.linear"), scope="reference")
    variables, plain = {"params": params, "lora": random_lora(config)}, {"params": params}
    adapted = mgt.clone(lora=config)
    np.testing.assert_array_equal(logits(adapted, variables, reference=False), logits(mgt, plain, reference=False))
    assert np.abs(logits(adapted, variables) - logits(mgt, plain)).max() > 1e-3


def test_targets_that_cannot_be_adapted():
    shapes = abstract_params(MGT(tiny.MGT_CONFIG))
    for config, message in (
        (LoRAConfig(target_modules=("context_embedder",)), "adapts modules of the blocks; context_embedder is none"),
        (LoRAConfig(target_modules=("add_q_proj",), scope="reference"), "text_to_q is the text's"),
        (LoRAConfig(target_modules=("to_z",)), "'to_z'] are not"),
        (LoRAConfig(target_modules=("single_transformer_blocks.0.attn.to_q",)), "all layers of a module, or none"),
    ):
        with pytest.raises(ValueError, match=message.replace("[", r"\[").replace("]", r"\]")):
            init_lora(config, tiny.MGT_CONFIG, shapes, jax.random.key(0))


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """A LoRA run of two steps -> (workdir, export, the frozen arrays that its steps were given)"""
    folder = tmp_path_factory.mktemp("lora")
    tokens.write_random(folder / "tokens", tiny_model)
    config = frozen_config(tiny_model, steps=2)
    config.start_from = str(tiny_model)
    config.model.mgt.update(tiny.MGT_CONFIG.to_dict())
    config.data.update(tokens=str(folder / "tokens"), heldout=str(folder / "tokens"))
    config.lora.update(rank=3, alpha=6.0, scope="reference")
    config.optimizer.learning_rate = 0.05
    runs, set_up = [], trainer._set_up
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_set_up", lambda *given: runs.append(set_up(*given)) or runs[-1])
        train(config, folder / "run")
    export(folder / "run", folder / "export", raw=True, verify=True)
    return folder / "run", folder / "export", runs[0][0].frozen


def test_only_the_lora_is_trained_and_saved(trained, base):
    params = run_params(trained[0], average=False)
    assert set(params) == {"lora"} and np.abs(params["lora"]["double_blocks"]["to_q"]["lora_b"]).max() > 0
    jax.tree.map(np.testing.assert_array_equal, base[1], trained[2]["mgt"])


def test_the_export_has_peft_s_names_and_comes_back(trained):
    _, folder, _ = trained
    names = set(load_file(folder / "adapter_model.safetensors"))
    assert "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight" in names
    assert "base_model.model.single_transformer_blocks.1.attn.to_v.lora_B.weight" in names
    config, back = read(folder, tiny.MGT_CONFIG, abstract_params(MGT(tiny.MGT_CONFIG)))
    assert (config.r, config.lora_alpha, config.scope) == (3, 6.0, "reference")
    assert json.loads((folder / "lora_config.json").read_text())["peft_type"] == "LORA"
    jax.tree.map(np.testing.assert_array_equal, back, run_params(trained[0], average=False)["lora"])


def test_a_merged_export_edits_as_the_lora_does(tiny_model, trained, tmp_path):
    with pytest.raises(ValueError, match="scope 'all' can be merged"):
        export(trained[0], tmp_path / "merged", merged=True)
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    (run / "config.json").write_text(
        (run / "config.json").read_text().replace('"scope": "reference"', '"scope": "all"')
    )
    export(run, tmp_path / "lora")
    export(run, tmp_path / "merged", merged=True, verify=True)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert "scope" not in config and config["r"] == 3  # PEFT knows no scope
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    unmerged = EditPipeline.from_pretrained(tiny_model, lora=tmp_path / "lora")
    results = [
        pipe(picture, "make it red", seed=1) for pipe in (unmerged, EditPipeline.from_pretrained(tmp_path / "merged"))
    ]
    np.testing.assert_array_equal(results[0].token_ids, results[1].token_ids)
    before, after = (load_file(folder / "editmgt" / DIFFUSERS_NAME) for folder in (tiny_model, tmp_path / "merged"))
    assert {name.rsplit(".", 2)[1] for name in before if (before[name] != after[name]).any()} == {
        "to_q",
        "to_k",
        "to_v",
    }


def test_a_lora_is_of_one_model(trained, tiny_model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    tensors = load_file(other / "editmgt" / DIFFUSERS_NAME)
    name = next(name for name in tensors if name.endswith("to_q.weight"))
    save_file(tensors | {name: tensors[name] + 1}, other / "editmgt" / DIFFUSERS_NAME)
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    text = (run / "config.json").read_text().replace(f'"start_from": "{tiny_model}"', f'"start_from": "{other}"')
    (run / "config.json").write_text(text)
    with pytest.raises(ValueError, match="is no longer the model that the LoRA was trained on"):
        export(run, tmp_path / "merged", merged=True)
    config = ConfigDict(run_config(run).to_dict() | {"steps": 3})
    with pytest.raises(CheckpointError, match="was begun with"):
        train(config, run)
    config.start_from = str(trained[0])
    with pytest.raises(ValueError, match="is the run of a LoRA: name a model directory with it merged"):
        train(config, tmp_path / "next")


def test_a_pipeline_edits_with_a_lora(tiny_model, tmp_path):
    config = LoRAConfig(r=3, lora_alpha=30.0)
    save_lora(tmp_path / "lora", config, tiny.MGT_CONFIG, random_lora(config, spread=2.0))
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    plain, adapted = (EditPipeline.from_pretrained(tiny_model, lora=lora) for lora in (None, tmp_path / "lora"))
    results = [pipe(picture, "make the car red", seed=1, hold_threshold=0.0) for pipe in (plain, adapted)]
    assert (results[0].token_ids != results[1].token_ids).any()
    with pytest.raises(FileNotFoundError, match="a LoRA is a folder with"):
        load_model(tiny_model, lora=tmp_path)


def test_a_lora_needs_a_model_and_frozen_text(tiny_model):
    config = frozen_config(tiny_model)
    config.lora.rank = 2
    with pytest.raises(ValueError, match="name its directory or run in start_from"):
        trainer.make_task(checked(config))
