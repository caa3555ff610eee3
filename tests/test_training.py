"""The trainer on tiny models: resuming, starting points, records, masks, the copy-friendly start."""

import dataclasses
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file, save_file
from small_runs import mgt_config, train, vq_config

from editmgt_jax.config import MGTConfig
from editmgt_jax.data.loader import batches
from editmgt_jax.data.records import Field, Schema, TokenBucket, TokenSet, read_manifest, write_shard
from editmgt_jax.data.scenes.source import SceneConfig, SceneSource
from editmgt_jax.errors import UserError
from editmgt_jax.models.mgt import MGT, init_mgt
from editmgt_jax.models.prompts import PromptTokenizer
from editmgt_jax.models.vq import pixels_to_ids
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.training import inputs
from editmgt_jax.training.config import Optimizer
from editmgt_jax.training.config_files import ConfigError, checked
from editmgt_jax.training.cross_entropy import cross_entropy
from editmgt_jax.training.export import export
from editmgt_jax.training.initialise import copy_friendly
from editmgt_jax.training.optimizer import decay_mask, learning_rate
from editmgt_jax.training.runs import best_params, run_params
from editmgt_jax.training.step import loss_weights
from editmgt_jax.training.token_job import tokenize_scenes
from editmgt_jax.weights.components import DIFFUSERS_NAME
from editmgt_jax.weights.loading import load_vq


@pytest.fixture(scope="module")
def vq_run(tmp_path_factory):
    """A tokenizer trained for 4 steps without a stop -> (workdir, exported `vqvae` folder)."""
    folder = tmp_path_factory.mktemp("vq")
    train(vq_config(4), folder / "run")
    export(folder / "run", folder / "export")
    return folder / "run", folder / "export" / "vqvae"


def _assert_same_parameters(one, other, **which):
    ours, theirs = (run_params(run, **{"average": False} | which) for run in (one, other))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_resumed_tokenizer_run_equals_an_uninterrupted_one(vq_run, tmp_path):
    train(vq_config(2), tmp_path)
    train(vq_config(4), tmp_path)
    _assert_same_parameters(vq_run[0], tmp_path, step=4)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 4


def _sharper_config(start, steps):
    config = vq_config(steps)
    config.start_from = str(start)
    config.model.trained = "decoder"
    config.loss.update(adversarial=0.5, adversarial_from=1)
    config.discriminator = dict(width=8, halvings=1, learning_rate=1e-3)
    config.optimizer.update(ema_decay=0.5, warmup_steps=0, weight_decay=0.1)
    return config


def test_a_sharper_decoder_keeps_all_ids_and_is_resumed_with_its_discriminator(vq_run, tmp_path):
    """From a model directory, exported from a run."""
    config = _sharper_config(vq_run[1].parent, 4)
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "4")  # as after a kill
    train(config, tmp_path / "parts")
    noted = [ocp.metadata(tmp_path / run / "checkpoints" / "4").custom_metadata for run in ("whole", "parts")]
    assert noted[0]["fingerprints"] == noted[1]["fingerprints"] and "extra" in noted[0]["fingerprints"]
    second = ocp.metadata(tmp_path / "parts" / "checkpoints" / "2").custom_metadata
    assert second["fingerprints"]["extra"] != noted[0]["fingerprints"]["extra"]

    vq, before = load_vq(vq_run[1])
    for average in (False, True):
        after = run_params(tmp_path / "whole", average=average, step=4)
        for name in ("encoder", "quant_conv", "codebook"):
            jax.tree.map(np.testing.assert_array_equal, after[name], before[name])
        assert np.any(after["decoder"]["conv_out"]["kernel"] != before["decoder"]["conv_out"]["kernel"])
        assert np.any(after["post_quant_conv"]["kernel"] != before["post_quant_conv"]["kernel"])
    export(tmp_path / "whole", tmp_path / "model")
    pixels = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    ids = [pixels_to_ids(load_vq(folder)[1], pixels, vq) for folder in (vq_run[1], tmp_path / "model" / "vqvae")]
    np.testing.assert_array_equal(*ids)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"latent_channels": 8}, UserError, "the architecture in model must be that of start_from"),
        ({}, FileNotFoundError, "a model directory with a folder vqvae"),
    ],
)
def test_a_start_that_does_not_fit_a_tokenizer(vq_run, tmp_path, change, error, message):
    config = vq_config(1)
    config.start_from = str(vq_run[1].parent if change else tmp_path)
    config.model.update(change)
    with pytest.raises(error, match=message):
        train(config, tmp_path / "run")


def test_a_resumed_editor_run_equals_an_uninterrupted_one(vq_run, tmp_path):
    train(mgt_config(vq_run[1], 4), tmp_path / "whole")
    train(mgt_config(vq_run[1], 2), tmp_path / "parts")
    train(mgt_config(vq_run[1], 4), tmp_path / "parts")
    for average in (False, True):
        _assert_same_parameters(tmp_path / "whole", tmp_path / "parts", step=4, average=average)


def test_a_trained_editor_is_exported_and_edits(vq_run, tmp_path, monkeypatch):
    """Its averaged parameters, its tokenizer and its operating point, from any folder."""
    monkeypatch.chdir(vq_run[1].parent)
    config = mgt_config("vqvae", 2)
    config.model.scheduler.update(default_steps=3, default_layers=(0,), default_hold_threshold=0.0)
    train(config, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    export(tmp_path / "run", tmp_path / "model", dtype=np.float16, verify=True, licence="mit")
    card, index = (tmp_path / "model" / name for name in ("README.md", "model_index.json"))
    for said in (
        'license: "mit"',
        "# model",
        "scenes of 32 px",
        "| samples a step | 8 |",
        "--output MODEL",
        "| loss | ",
    ):
        assert said in card.read_text()
    assert json.loads(index.read_text())["editmgt"] == ["editmgt_jax", "Transformer2DModel"]
    pipe = EditPipeline.from_pretrained(tmp_path / "model")
    average = run_params(tmp_path / "run", average=True)["mgt"]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), average, pipe.model.mgt_params)
    result = pipe(np.zeros((32, 32, 3), np.uint8), "remove the cat")
    assert result.settings.steps == 3 and result.settings.layers == (0,)
    assert result.token_ids.shape == (1, 8, 8) and result.token_ids.max() < 16
    assert not list(tmp_path.glob("*.tmp"))


def test_a_warm_start_takes_the_parameters_and_a_new_optimizer(vq_run, tmp_path):
    config = vq_config(0)
    config.start_from = str(vq_run[0])
    train(config, tmp_path)
    before, after = best_params(vq_run[0]), run_params(tmp_path, average=False)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    config.start_from = str(tmp_path / "typo")
    with pytest.raises(FileNotFoundError, match="start_from must be a folder"):
        train(config, tmp_path / "other")
    train(config, tmp_path)  # goes on, and needs it no more
    assert not (tmp_path / "typo").exists() and not (tmp_path / "other").exists()


def test_a_checkpoint_of_another_model_is_an_error(vq_run, tmp_path):
    shutil.copytree(vq_run[0], tmp_path / "run")
    config = vq_config(6)
    config.model.num_vq_embeddings = 32
    with pytest.raises(ConfigError, match="another config: model.num_vq_embeddings was 16, is 32. Go on with"):
        train(config, tmp_path / "run")


def test_records_of_two_jobs_are_not_mixed(vq_run, tmp_path, monkeypatch):
    monkeypatch.setattr("editmgt_jax.data.tokenize.SHARD", 32)
    config = mgt_config(vq_run[1], 2)
    tokenize_scenes(checked(config), tmp_path / "tokens", 64)
    first, second = sorted((tmp_path / "tokens").glob("*.array_record"))
    whole = second.read_bytes()
    second.unlink()
    tokenize_scenes(checked(config), tmp_path / "tokens", 64)  # goes on
    assert second.read_bytes() == whole
    config.data.seed = 1
    with pytest.raises(ValueError, match="belongs to a job with other data"):
        tokenize_scenes(checked(config), tmp_path / "tokens", 64)
    shutil.copytree(vq_run[1], tmp_path / "vqvae")
    weights = load_file(tmp_path / "vqvae" / DIFFUSERS_NAME)
    save_file({name: value + 1 for name, value in weights.items()}, tmp_path / "vqvae" / DIFFUSERS_NAME)
    other = mgt_config(tmp_path / "vqvae", 2)
    other.data.tokens = str(tmp_path / "tokens")
    with pytest.raises(ValueError, match="made with another image_tokenizer"):
        train(other, tmp_path / "run")


def test_training_on_records_is_training_on_the_scenes(vq_run, tmp_path):
    config = mgt_config(vq_run[1], 2)
    tokenize_scenes(checked(config), tmp_path / "tokens", 32)
    assert read_manifest(tmp_path / "tokens")["examples"] == 32
    (source,) = TokenSet(tmp_path / "tokens").buckets.values()
    tokenizer = PromptTokenizer(tmp_path / "tokens" / "tokenizer")
    scene = inputs.scene_source(checked(config), "train")[5]
    vq, vq_params = load_vq(vq_run[1])
    encoded = vq.apply({"params": vq_params}, scene["target"][None].astype(np.float32) / 255, method="encode")[0]
    np.testing.assert_array_equal(source[5]["target_ids"], encoded)
    np.testing.assert_array_equal(source[5]["text_ids"], tokenizer([scene["instruction"]])[0])
    config = mgt_config(vq_run[1], 2)
    config.data.tokens = str(tmp_path / "tokens")
    assert np.isfinite(train(config, tmp_path / "run")["loss"])


def test_export_never_overwrites(vq_run, tmp_path):
    with pytest.raises(FileExistsError, match="name another one"):
        export(vq_run[0], tmp_path)


def test_an_unknown_task_is_an_error(tmp_path):
    config = vq_config(1)
    config.task = "vae"
    with pytest.raises(ValueError, match="task must be one of"):
        train(config, tmp_path)


def test_the_copy_friendly_start_copies_the_source():
    config = MGTConfig(
        num_layers=2, num_single_layers=1, attention_head_dim=16, num_attention_heads=6, joint_attention_dim=8,
        pooled_projection_dim=8, axes_dims_rope=(4, 6, 6), vocab_size=40, codebook_size=32, connector_type="none",
        text_encoder_architecture="CLIP",
    )  # fmt: skip
    model = MGT(config)
    codebook = jax.random.normal(jax.random.key(0), (32, 6)) * jnp.array([[3.0, 1, 1, 0.5, 0.2, 1]])
    params = copy_friendly(jax.jit(partial(init_mgt, model))(jax.random.key(1)), config, codebook, jax.random.key(2))
    source = jax.random.randint(jax.random.key(3), (2, 8, 12), 0, 32)
    hidden = jnp.where(jax.random.uniform(jax.random.key(4), source.shape) < 0.8, config.mask_token_id, source)

    def forward(module):
        text = jnp.ones((2, 3, 8)), jnp.ones((2, 8)), jnp.ones((2, 5))
        return module(hidden, 0.5, module.condition(*text, source))[0]

    logits = jax.jit(lambda p: model.apply({"params": p}, method=forward))(params)
    assert (jnp.argmax(logits, -1) == source)[hidden == config.mask_token_id].mean() > 0.98


def test_the_loss_counts_masked_positions_only():
    logits = jnp.array([[[2.0, 0.0], [0.0, 5.0], [1.0, 1.0]], [[0.0, 3.0], [0.0, 0.0], [0.0, 0.0]]])
    targets, mask = jnp.array([[0, 0, 1], [1, 0, 0]]), jnp.array([[True, False, True], [True, False, False]])
    each = np.log([1 + np.exp(-2.0), 2.0, 1 + np.exp(-3.0)])

    def loss(*args):
        return (cross_entropy(logits, targets)[0] * loss_weights(mask, *args)).sum()

    np.testing.assert_allclose(loss(), each.mean(), rtol=1e-6)
    np.testing.assert_allclose(loss(None, "sample"), (each[:2].mean() + each[2]) / 2, rtol=1e-6)
    weights = jnp.array([[3.0, 9.0, 1.0], [2.0, 9.0, 9.0]])
    np.testing.assert_allclose(loss(weights), (3 * each[0] + each[1] + 2 * each[2]) / 6, rtol=1e-6)


def test_weight_decay_spares_what_the_released_trainer_spares():
    tree = {"token_norm": {"scale": 1.0}, "token_embedding": {"embedding": 1.0}, "to_q": {"kernel": 1.0, "bias": 1.0}}
    tree |= {"head_norm": {"scale": 1.0}, "text_norm": {"scale": 1.0}, "norm_q": {"scale": 1.0}}
    decayed = decay_mask(tree)
    assert decayed["to_q"] == {"kernel": True, "bias": False} and decayed["norm_q"]["scale"]
    assert not any(
        [
            *(decayed[f"{name}_norm"]["scale"] for name in ("token", "head", "text")),
            decayed["token_embedding"]["embedding"],
        ]
    )


def test_learning_rate_warms_up_and_decays():
    config = Optimizer(learning_rate=1.0, warmup_steps=10, total_steps=110, schedule="cosine")
    rate = learning_rate(config)
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(60), rate(110)], [0, 0.5, 1, 0.5, 0], atol=1e-6)
    rate = learning_rate(dataclasses.replace(config, schedule="wsd", decay_steps=40))
    np.testing.assert_allclose([rate(5), rate(10), rate(70), rate(90), rate(110)], [0.5, 1, 1, 0.5, 0], atol=1e-6)
    with pytest.raises(ValueError, match="wsd needs decay_steps"):
        dataclasses.replace(config, schedule="wsd", decay_steps=101)


def test_records_come_back_and_corruption_is_seen(tmp_path):
    schema = Schema((Field("ids", "uint16", (2, 3)), Field("text", "int32", (4,))))
    rows = [{"ids": np.arange(6).reshape(2, 3) + i, "text": np.arange(4) - i} for i in range(5)]
    write_shard(tmp_path / "a", schema, rows[:3])
    write_shard(tmp_path / "b", schema, rows[3:])
    with pytest.raises(FileNotFoundError, match="manifest.json"):
        TokenSet(tmp_path)
    shards = [{"file": "a", "records": 3}, {"file": "b", "records": 2}]
    source = TokenBucket(tmp_path, "32x32", {"fields": schema.to_json(), "shards": shards})
    assert len(source) == 5
    np.testing.assert_array_equal(source[4]["ids"], rows[4]["ids"])
    np.testing.assert_array_equal(source[2]["text"], rows[2]["text"])
    with pytest.raises(ValueError, match="corrupt"):
        schema.unpack(schema.pack(rows[0])[:-1])
    with pytest.raises(ValueError, match="must have shape"):
        schema.pack({"ids": np.zeros(3), "text": rows[0]["text"]})


def test_batches_can_be_resumed_and_shuffled():
    class Source:
        def __len__(self):
            return 12

        def __getitem__(self, index):
            return {"x": np.array(index), "instruction": "ignored"}

    def take(iterator, count):
        return [next(iterator)["x"].tolist() for _ in range(count)]

    iterator = batches(Source(), 4, shuffle_seed=3)
    first = take(iterator, 2)
    state = iterator.get_state()
    rest = take(iterator, 4)
    again = batches(Source(), 4, shuffle_seed=3)
    again.set_state(state)
    assert take(again, 4) == rest
    assert sorted(sum(first + rest[:1], [])) == list(range(12)) == sorted(sum(rest[1:4], []))
    assert first + rest[:1] != rest[1:4]


def test_scenes_that_worker_processes_draw_are_the_same():
    source = SceneSource(SceneConfig(size=32, length=16))

    def first(workers):
        drawn = batches(source, 4, encode_text=Lengths(), workers=workers)
        found = [next(drawn) for _ in range(2)]
        drawn.close()
        return found

    for one, other in zip(first(0), first(2), strict=True):
        assert one.keys() == other.keys() == {"source", "target", "mask", "lengths"}
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name])


def test_weights_of_categories_apply_to_scenes_of_training():
    config = vq_config(1)
    plain = inputs.make_batches(checked(config), "train").get_state()
    config.data.categories = {"add": 3.0, "style": 0.0}
    weighted = checked(config)
    categories = {inputs.scene_source(weighted, "train").config.category(index) for index in range(100)}
    assert "style" not in categories and len(categories) == 6
    assert "style" in {inputs.scene_source(weighted, "heldout").config.category(index) for index in range(7)}
    assert inputs.make_batches(weighted, "train").get_state() != plain  # a run does not go on with other weights
    config.data.categories = {"addition": 2.0}
    with pytest.raises(ConfigError, match="data.categories must be of add, remove.* for scenes; got addition"):
        inputs.scene_source(checked(config), "train")


class Lengths:
    """A text tokenizer that another process can be given."""

    def __call__(self, texts):
        return {"lengths": np.array([[len(text)] for text in texts], np.int32)}
