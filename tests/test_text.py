"""The text encoders of a model: one object, and one entry of the component table for each."""

import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from small_runs import frozen_config

from editmgt_jax.config.json_config import JSONConfig
from editmgt_jax.models.prompts import train_tokenizer
from editmgt_jax.models.text import EncodedText, TextRole, TextStates
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.training import inputs, trainer
from editmgt_jax.training.config_files import checked
from editmgt_jax.training.samples import Samples
from editmgt_jax.training.sharding import Layout, make_mesh
from editmgt_jax.weights import components
from editmgt_jax.weights.components import Component, text_components
from editmgt_jax.weights.conversion import save_component
from editmgt_jax.weights.loading import load_model, tokenizer_folders
from editmgt_jax.weights.rules import Rule


@dataclasses.dataclass(frozen=True)
class WordsConfig(JSONConfig):
    vocab_size: int
    hidden_size: int

    CLASS_NAME = "Words"


class Words(nn.Module):
    """A text encoder that is an embedding."""

    config: WordsConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids):
        return nn.Embed(self.config.vocab_size, self.config.hidden_size, dtype=self.dtype, name="words")(ids)


ENTRY = Component(
    config=WordsConfig,
    module=Words,
    init=lambda model, key: model.init(key, jnp.zeros((1, 2), jnp.int32))["params"],
    rules=[Rule("words", "words", "embedding")],
    file_name="model.safetensors",
    folders=("word_encoder",),
    text=TextRole("Words", "word_ids", "word_encoder", "word_tokenizer", lambda config: 9, spare_ids=True),
)


@pytest.fixture
def with_words(tiny_model, tmp_path, monkeypatch):
    """A model whose transformer attends to the states of `Words`: what a new text encoder needs is its entry."""
    monkeypatch.setitem(components.COMPONENTS, WordsConfig, ENTRY)
    directory = tmp_path / "model"
    shutil.copytree(tiny_model, directory)
    config = json.loads((directory / "editmgt" / "config.json").read_text())
    config["text_encoder_architecture"] = "CLIP_Words"
    (directory / "editmgt" / "config.json").write_text(json.dumps(config))
    size = train_tokenizer(tiny.SENTENCES * 2, directory / "word_encoder", merges=40, length=9, padding_side="left")
    words = WordsConfig(size, tiny.MGT_CONFIG.joint_attention_dim)
    params = tiny.random_params(lambda key: ENTRY.init(Words(words), key))
    (directory / "words").mkdir()
    save_component(directory / "words", words, params)
    for path in (directory / "words").iterdir():
        path.rename(directory / "word_encoder" / path.name)
    return directory


def test_a_new_text_encoder_is_a_row_of_the_table(with_words, tiny_model):
    pipe = EditPipeline.from_pretrained(with_words)
    text, alone = pipe.encode("make the car red"), EditPipeline.from_pretrained(tiny_model).encode("make the car red")
    ids = pipe.model.text.tokenizers(["make the car red"])
    assert list(ids) == ["text_ids", "word_ids"] and text.states.shape == (9, 24)
    np.testing.assert_array_equal(
        text.states, pipe.model.text.params["word_ids"]["words"]["embedding"][ids["word_ids"][0]]
    )
    np.testing.assert_array_equal(text.pooled, alone.pooled)
    assert (
        np.flatnonzero(pipe.query_weights(text, "car")).min() > 3
    )  # among the tokens of the encoder that is attended to
    assert pipe(np.zeros((32, 32, 3), np.uint8), text, query="car").token_ids.shape == (1, 8, 8)
    assert tokenizer_folders(with_words)["word_tokenizer"] == with_words / "word_encoder"
    task = trainer.make_task(checked(_config(with_words)))
    assert list(task.encode_prompts([""])) == list(ids) and "word_encoder" in components.companion_folders()


def _config(model):
    config = frozen_config(model)
    config.model.mgt.update(json.loads((model / "editmgt" / "config.json").read_text()))
    config.model.mgt.update(text_encoder_architecture="CLIP_Words")
    return config


def test_an_architecture_without_an_entry_is_an_error():
    assert [entry.text.ids for entry in text_components("CLIP_Gemma2")] == ["text_ids", "llm_ids"]
    for name in ("T5", "Gemma2_CLIP", "CLIP_T5", ""):
        with pytest.raises(ValueError, match="text_encoder_architecture must be the first of"):
            text_components(name)


def test_states_are_the_language_model_s_and_the_pooled_vector_clip_s(with_llm):
    text = load_model(with_llm).text
    ids = text.tokenizers(["make the car red", ""])
    clip, llm = (text.towers[field] for field in ("text_ids", "llm_ids"))
    states = llm.model.apply({"params": llm.params}, ids["llm_ids"])
    _, pooled = clip.model.apply({"params": clip.params}, ids["text_ids"])
    for said in (text.encode_ids(ids), text.apply(text.params, ids)):
        np.testing.assert_allclose(said.states, states, atol=1e-5)
        np.testing.assert_allclose(said.pooled, pooled, atol=1e-5)
    np.testing.assert_array_equal(text.empty_ids["llm_ids"], ids["llm_ids"][1:])
    fields = text.encode_ids(ids).fields()
    assert fields["text_states"].dtype == "bfloat16" and text.length(fields) == text.length(ids) == 256


def test_an_edit_with_states_of_another_dtype(pipe):
    """As token records store them."""
    text, reference = pipe.encode("make the car red"), np.zeros((1, 8, 8), np.int32)
    half = EncodedText(text.text, text.states.astype(jnp.bfloat16), text.pooled)
    exact = pipe.edit_tokens(reference, [text])
    close = pipe.edit_tokens(reference, [half], negative=pipe.encode(""))
    assert np.abs(exact.attention - close.attention).mean() < 0.1 * np.asarray(exact.attention).mean()


def test_sample_pictures_of_training_are_the_product_s(tmp_path):
    """On the ids and texts of a batch: the same tokens, and the same relevance."""
    model = tiny.write_model(tmp_path / "model", text_length=96)
    config, pipe = frozen_config(model), EditPipeline.from_pretrained(model)
    config.model.mgt.update(tiny.MGT_CONFIG.to_dict())
    config = inputs.resolve_text(checked(config), tmp_path)
    task = trainer.make_task(config)
    layout = Layout(make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "context": 1}, jax.devices()[:1]), task.rules)
    scenes = inputs.make_batches(config, "heldout", task.encode_prompts, range(3))
    samples, frozen = Samples(tmp_path, task, layout, scenes, 3), task.frozen(layout.put_leaf, {"images", "text"})
    params = {"mgt": pipe.model.mgt_params}
    with layout.active():
        pixels, relevance = samples._edit(params, frozen, samples._vq_params, samples._batch)
    said = pipe.model.text.encode_ids(samples._batch)
    texts = [EncodedText("", *one) for one in zip(*said, strict=True)]
    source = pipe.encode_image(np.asarray(samples._batch["source"]) / np.float32(255))
    edit = pipe.edit_tokens(source, texts, negative="")
    np.testing.assert_allclose(relevance, edit.relevance, atol=1e-4)
    np.testing.assert_allclose(pixels, pipe.decode_image(edit.tokens), atol=1e-4)


def test_dropped_samples_have_the_empty_prompt(with_llm):
    from editmgt_jax.training.conditioning import FrozenText

    model = load_model(with_llm)
    side = FrozenText(with_llm, model.mgt.config, "float32")
    frozen = side.frozen(lambda _, value: jnp.asarray(value), {"text", "empty text"})
    ids, dropped = model.text.tokenizers(["make the car red"] * 2), jnp.array([False, True])
    wanted = TextStates(*(jnp.stack([one[0], other[0]]) for one, other in zip(
        model.text.encode_ids(ids), model.text.encode_ids(model.text.empty_ids), strict=True)))  # fmt: skip
    stored = model.text.encode_ids(ids)
    for batch in (ids, {"text_states": stored.states, "pooled": stored.pooled}):
        said = side.states(None, side.inputs(frozen, batch, dropped))
        np.testing.assert_allclose(said.states, wanted.states, atol=1e-5)
        np.testing.assert_allclose(said.pooled, wanted.pooled, atol=1e-5)
