import dataclasses
import shutil

import pytest
import tiny

from editmgt_jax.errors import UserError
from editmgt_jax.models.prompts import PromptError
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.weights.loading import load_model


def test_default_model_may_be_absent(monkeypatch, tmp_path):
    monkeypatch.setattr("editmgt_jax.weights.loading.DEFAULT_MODEL", tmp_path / "default")
    with pytest.raises(FileNotFoundError, match="no default model.*name a model directory"):
        EditPipeline.from_pretrained()


def test_not_a_model_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_model(tmp_path / "gone")
    (tmp_path / "notes").mkdir()
    with pytest.raises(FileNotFoundError, match=r"editmgt or transformer.*\['notes'\]"):
        load_model(tmp_path)


def test_transformer_folder_and_missing_parts(tiny_model, tmp_path):
    for part in tiny_model.iterdir():
        (tmp_path / ("transformer" if part.name == "editmgt" else part.name)).symlink_to(part)
    assert load_model(tmp_path).mgt.config == tiny.MGT_CONFIG
    (tmp_path / "tokenizer").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        load_model(tmp_path)


def test_a_pipeline_reads_a_variant(tiny_model, tmp_path):
    directory = shutil.copytree(tiny_model, tmp_path / "model")
    weights = directory / "vqvae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    weights.write_bytes(b"damaged")
    assert EditPipeline.from_pretrained(directory, variant="fp16").model.vq.config == tiny.VQ_CONFIG
    with pytest.raises(UserError, match="not a readable safetensors"):
        EditPipeline.from_pretrained(directory)
    with pytest.raises(UserError, match=r"must have the variant 'fp32' of some weights; it has \['fp16'\]"):
        EditPipeline.from_pretrained(directory, variant="fp32")


def test_tokenizer_that_is_damaged_or_another_model_s(tiny_model, tmp_path):
    for part in tiny_model.iterdir():
        if part.name != "tokenizer":
            (tmp_path / part.name).symlink_to(part)
    shutil.copytree(tiny_model / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "merges.txt").unlink()
    (tmp_path / "tokenizer" / "vocab.json").unlink()
    with pytest.raises(ValueError, match="the tokenizer's size must equal the text vocab_size"):
        load_model(tmp_path)
    shutil.copy(tiny_model / "tokenizer" / "merges.txt", tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "vocab.json").write_text('{"a": ')
    with pytest.raises(PromptError, match="must hold a tokenizer that transformers can read"):
        load_model(tmp_path)


def test_parts_of_different_models(tiny_model, tmp_path):
    for part in tiny_model.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "scheduler").unlink()
    (tmp_path / "scheduler").mkdir()
    other = dataclasses.replace(tiny.SCHEDULER_CONFIG, mask_token_id=38)
    other.to_json(tmp_path / "scheduler" / "scheduler_config.json")
    with pytest.raises(ValueError, match="mask_token_id must equal.*39; got 38"):
        load_model(tmp_path)
