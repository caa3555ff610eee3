"""Settings of each sample against decodes of one sample; interventions against models without a block and masked softmax."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from editmgt_jax.ablation import decode
from editmgt_jax.ablation.config import AblationConfig, Decode, Examples, Record, Statistics
from editmgt_jax.ablation.report import sweeps
from editmgt_jax.ablation.score import read_table
from editmgt_jax.declarations import SettingsError
from editmgt_jax.errors import UserError
from editmgt_jax.models.attention import NO_WEIGHT, attend, strength_bias
from editmgt_jax.models.attention.signals import muted_bias
from editmgt_jax.models.blocks import Interventions, Probe

STEPS = 3
SWEPT = {
    "released": (
        {"hold": "released"},
        [
            {"hold_threshold": 0.0, "guidance_scale": 2.0, "temperature": (2.0, 0.0), "sampling_temperature": 1.0},
            {"hold_threshold": 0.5, "guidance_scale": 4.0, "temperature": (0.0, 0.0), "sampling_temperature": 0.5},
            {"hold_threshold": 0.9, "guidance_scale": 7.5, "temperature": 1.0, "reference_strength": 0.3},
        ],
    ),
    "from_step": (
        {"hold": "from_step", "hold_threshold": 0.6, "sampler": "changes_first", "image_guidance_scale": 1.0},
        [
            {"hold_step": 0, "copy_penalty": 0.0},
            {"hold_step": 2, "copy_penalty": 6.0, "guidance_scale": 5.0},
            {"hold_step": 1, "reference_strength": 0.0, "image_guidance_scale": 3.0},
        ],
    ),
    "remasking": (
        {"hold": "released", "remask_steps": 2},
        [
            {"guidance_scale": 2.0, "remask_guidance_scale": 5.0},
            {"guidance_scale": 4.0},
            {"guidance_scale": 3.0, "remask_guidance_scale": 1.0},
        ],
    ),
}


def texts(pipe):
    return [pipe.encode(one) for one in ("make the car red", "remove the tree", "add a small blue bird")]


@pytest.fixture(scope="module")
def source():
    return np.random.default_rng(0).integers(0, 32, (3, 8, 8)).astype(np.int32)


@pytest.mark.parametrize("kind", SWEPT)
def test_settings_side_by_side_decode_as_each_alone(pipe, source, kind):
    same, several = SWEPT[kind]
    settings = [pipe.settings(steps=STEPS, **(same | one)) for one in several]
    keys = jax.random.split(jax.random.key(1), 3)
    together = pipe.edit_tokens(source, texts(pipe), keys=keys, settings_of=settings)
    for i, one in enumerate(several):
        alone = pipe.edit_tokens(source, texts(pipe), keys=keys, steps=STEPS, **(same | one))
        np.testing.assert_array_equal(together.tokens[i], alone.tokens[i])
        np.testing.assert_array_equal(together.keep[i], alone.keep[i])
        np.testing.assert_allclose(together.relevance[i], alone.relevance[i], atol=1e-5)
    assert not (together.tokens[0] == together.tokens[1]).all()


def test_static_settings_cannot_lie_side_by_side(pipe, source):
    settings = [pipe.settings(steps=2), pipe.settings(steps=2, layers=(0,)), pipe.settings(steps=2)]
    with pytest.raises(SettingsError, match="side by side must share .* one has layers"):
        pipe.edit_tokens(source, texts(pipe), settings_of=settings)


# ---- interventions


def one_pass(pipe, source, interventions=None, change=lambda params: params):
    model = pipe.model
    params = change(model.mgt_params)
    text = texts(pipe)
    states, pooled = (jnp.stack([getattr(one, name) for one in text]) for name in ("states", "pooled"))
    condition = model.mgt.apply(
        {"params": params}, states, pooled, jnp.ones((3, 5)), jnp.asarray(source), method="condition"
    )
    probe = Probe(interventions=interventions)
    return model.mgt.apply({"params": params}, jnp.asarray(source), 0.5, condition, probe=probe)[0]


def off(pipe, block=None, kind=None):
    blocks = pipe.model.mgt.config.num_blocks
    bypass, muted = np.zeros((blocks, 3), bool), np.zeros((blocks, 3, 3), bool)
    if block is not None:
        bypass[block] = True
    if kind is not None:
        muted[:, :, kind] = True
    return Interventions(jnp.asarray(bypass), jnp.asarray(muted))


def without(group, index):
    """Parameters in which the outputs of one block are 0."""

    def change(params):
        def zero(path, leaf):
            names = [key.key for key in path]
            ends = ("to_out", "text_to_out", "mlp_out", "text_mlp_out", "proj_out")
            return leaf.at[index].set(0) if names[0] == group and set(names) & set(ends) else leaf

        return jax.tree_util.tree_map_with_path(zero, jax.tree.map(jnp.asarray, params))

    return change


@pytest.mark.parametrize(
    "block, group, index", [(0, "double_blocks", 0), (1, "single_blocks", 0), (2, "single_blocks", 1)]
)
def test_a_bypassed_block_adds_nothing(pipe, source, block, group, index):
    plain = one_pass(pipe, source)
    np.testing.assert_allclose(one_pass(pipe, source, off(pipe)), plain, atol=1e-4)
    found = one_pass(pipe, source, off(pipe, block))
    np.testing.assert_allclose(found, one_pass(pipe, source, change=without(group, index)), atol=1e-4)
    assert np.abs(found - plain).max() > 1e-2


def test_muting_changes_what_is_predicted(pipe, source):
    plain = one_pass(pipe, source)
    differ = [one_pass(pipe, source, off(pipe, kind=kind)) for kind in range(3)]
    assert all(np.abs(one - plain).max() > 1e-3 for one in differ)
    assert np.abs(differ[0] - differ[1]).max() > 1e-3 and np.abs(differ[1] - differ[2]).max() > 1e-3


@pytest.mark.parametrize("gamma", [None, 1.5])
def test_muted_attention_equals_a_masked_softmax(gamma):
    lengths, dice = (2, 3, 4), np.random.default_rng(0)
    q, k, v = (jnp.asarray(dice.standard_normal((4, 9, 2, 5)), jnp.float32) for _ in range(3))
    muted = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], bool)
    bias = None if gamma is None else strength_bias(jnp.array([gamma]), (5, 4))
    found = attend(q, k, v, muted_bias(bias, jnp.asarray(muted), lengths, NO_WEIGHT), lengths, "xla")
    parts = {"text": slice(0, 2), "image": slice(2, 5), "reference": slice(5, 9)}
    pairs = [None, ("text", "image"), ("image", "text"), ("image", "reference")]
    for b in range(4):
        allowed = np.ones((9, 9))
        allowed[:5, 5:] = allowed[5:, :5] = 1.0 if gamma is None else gamma
        if pairs[b]:
            allowed[parts[pairs[b][0]], parts[pairs[b][1]]] = 0
        for head in range(2):
            weights = np.exp(np.asarray(q[b, :, head]) @ np.asarray(k[b, :, head]).T / np.sqrt(5)) * allowed
            expected = weights / weights.sum(axis=1, keepdims=True) @ np.asarray(v[b, :, head])
            np.testing.assert_allclose(found[b, :, head * 5 : head * 5 + 5], expected, atol=1e-5)


# ---- the job


@pytest.fixture(scope="module")
def swept(tmp_path_factory, tmp_path_factory_model):
    pytest.importorskip("pyarrow")
    config = AblationConfig(
        task="ablate",
        model=str(tmp_path_factory_model),
        examples=Examples(count=4, objects="core"),
        record=Record(settings=(("steps", 2),)),
        decode=Decode(grid=(("hold_threshold", (0.0, 1.2)),), interventions=("bypass", "image_to_reference"), count=3,
                      seeds=(0, 1), batch_size=5),
        statistics=Statistics(resamples=200),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("sweep")
    decode.decode(config, folder)
    return config, folder


@pytest.fixture(scope="module")
def tmp_path_factory_model(tmp_path_factory):
    from tiny import write_model

    return write_model(tmp_path_factory.mktemp("model"), text_length=96)


def test_every_variant_is_decoded(swept):
    config, folder = swept
    variants = read_table(folder / decode.FOLDER / decode.VARIANTS)
    assert variants["intervention"] == ["none"] * 3 + ["bypass"] * 3 + ["image_to_reference"] * 3
    assert [json.loads(one) for one in variants["settings"][:3]] == [
        {},
        {"hold_threshold": 0.0},
        {"hold_threshold": 1.2},
    ]
    found = sweeps.Decodes(folder, config)
    counts = np.unique(found.columns["variant"], return_counts=True)
    assert counts[0].tolist() == list(range(9)) and set(counts[1]) == {3 * 2}
    np.testing.assert_array_equal(found.values(0, "changed_outside"), found.values(1, "changed_outside"))
    assert (found.values(2, "changed_outside") == 0).all() and (found.values(2, "kept") == 1).all()


def test_decodes_go_on_with_the_same_bytes(swept):
    config, folder = swept
    before = {path.name: path.read_bytes() for path in (folder / decode.FOLDER).iterdir()}
    (folder / decode.FOLDER / "part-00000.parquet").unlink()
    decode.decode(config, folder)
    assert {path.name: path.read_bytes() for path in (folder / decode.FOLDER).iterdir()} == before


def test_the_sections_of_a_report(swept, tmp_path):
    config, folder = swept
    shutil.copytree(folder / decode.FOLDER, tmp_path / decode.FOLDER)
    next((tmp_path / decode.FOLDER).glob("part-*1.parquet")).unlink()
    with pytest.raises(UserError, match="of 54 decodes are in .* go on with"):
        sweeps.sections(config, tmp_path)
    titles = [section.title for section in sweeps.sections(config, folder)]
    assert titles == ["Success against leakage", "Causal against read-out"]


def test_more_decodes_than_examples_are_refused(swept, tmp_path):
    config, _ = swept
    with pytest.raises(UserError, match="at most examples.count, 4; got 5"):
        decode.decode(dataclasses.replace(config, decode=Decode(count=5)), tmp_path)
