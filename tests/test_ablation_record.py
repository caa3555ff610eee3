"""Recorded attention against that of decodes and of a slow computation; resumption; what is wrong is said in one line."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import write_model

from editmgt_jax.ablation import record, scoring, sets
from editmgt_jax.ablation.choices import View
from editmgt_jax.ablation.config import SIGNALS, AblationConfig, Examples, Record
from editmgt_jax.ablation.records import RecordError, Records
from editmgt_jax.models.attention import signals as attention_signals
from editmgt_jax.models.attention import strength_bias
from editmgt_jax.pipeline import EditPipeline

STEPS = 4


def make_config(model, dtype="float32", **changes):
    values = {
        "rates": (1.0, 0.5),
        "steps": (0, STEPS - 1),
        "seeds": (0, 3),
        "settings": (("steps", STEPS), ("guidance_scale", 2.0), ("reference_strength", 1.3)),
        "chunk": 4,
        "dtype": dtype,
    }
    examples = Examples(count=6, objects="core")
    return AblationConfig(task="ablate", model=str(model), examples=examples, record=Record(**values | changes))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), text_length=96)


@pytest.fixture(scope="module")
def recorded(model, tmp_path_factory):
    return Records.open(record.record(make_config(model), tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def recorder(model):
    return record.Recorder(make_config(model), EditPipeline.from_pretrained(model))


def decoded(recorder, seed, **settings):
    """The decode of all examples, with other settings."""
    some = [recorder.source[row] for row in range(6)]
    source = np.asarray(recorder.pipe.encode_image(np.stack([one.source for one in some])))
    text = [recorder.pipe.encode(one.instruction) for one in some]
    chosen = dict(recorder.config.record.settings) | settings
    return recorder.pipe.edit_tokens(source, text, keys=record.decode_keys(seed, range(6)), **chosen)


@pytest.mark.parametrize("position, seed", [(0, 0), (1, 3)])
@pytest.mark.parametrize("step", [0, STEPS - 1])
def test_a_recorded_step_is_the_decodes_attention(recorder, recorded, position, seed, step):
    expected = decoded(recorder, seed, layers=(0, 1, 2), attention_step=step).attention
    found = recorded.maps(position, f"step {step}", "text_to_image", "mean", "all")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.std() > 1e-4


@pytest.mark.parametrize("hold, hold_step", [("released", 0), ("from_step", 0), ("from_step", 1)])
def test_a_recorded_step_that_remasks_is_the_decodes_attention(model, tmp_path, hold, hold_step):
    settings = {"steps": STEPS, "remask_steps": 2, "layers": (0, 1, 2), "hold": hold, "hold_threshold": 0.5}
    settings |= {"hold_step": hold_step} if hold_step else {}
    config = make_config(model, settings=tuple(settings.items()), rates=(), steps=(STEPS - 1,), seeds=(0,))
    records = Records.open(record.record(config, tmp_path))
    recorder = record.Recorder(config, EditPipeline.from_pretrained(model))
    expected = decoded(recorder, 0, attention_step=STEPS - 1)
    assert 0 < np.mean(expected.keep) < 1
    found = records.maps(0, f"step {STEPS - 1}", "text_to_image", "mean", "all")
    np.testing.assert_allclose(found, expected.attention, atol=1e-5)


@pytest.mark.parametrize("signal", SIGNALS)
def test_an_edit_reads_the_signal_of_its_settings(recorder, recorded, signal):
    found = decoded(recorder, 0, layers=(0, 2), attention_step=0, signal=signal)
    expected = recorded.maps(0, "step 0", signal, "mean", "all")[:, [0, 2]]
    np.testing.assert_allclose(found.attention, expected, atol=1e-6)
    np.testing.assert_array_equal(found.tokens, decoded(recorder, 0, layers=(0, 2)).tokens)  # nothing is held
    assert expected.std() > 1e-4


@pytest.mark.parametrize("layers", [(1,), (0, 2)])
def test_a_score_sees_the_map_that_a_decode_with_those_layers_sees(recorder, recorded, layers):
    expected = decoded(recorder, 0, layers=layers).relevance  # of the last step
    m = recorded.manifest
    view = View("text_to_image", "all", f"step {STEPS - 1}", "mean", "adaptive", "bicubic")
    attention = scoring.Scorer(recorded, view).attention(range(6), 0)
    weights = np.array([sets.of_blocks(layers, 3).weights], np.float32)
    found = scoring.relevance_maps(attention, weights, m.grid, m.token_grid, "adaptive", "bicubic")
    span = attention[:, list(layers)].mean(axis=1)
    gain = 1 / (span.max(axis=1) - span.min(axis=1)).min()  # by which a map is scaled to 0 to 1
    np.testing.assert_allclose(found, expected, atol=1e-6 * max(1.0, gain))


def test_float16_storage_rounds_and_no_more(model, recorded, tmp_path):
    stored = Records.open(record.record(make_config(model, "float16"), tmp_path))
    for signal in SIGNALS:
        exact = recorded.maps(1, "rate 0.5", signal, "mean", "query")
        found = stored.maps(1, "rate 0.5", signal, "mean", "query")
        np.testing.assert_array_equal(found, exact.astype(np.float16).astype(np.float32))


def test_heads_kept_apart_have_the_same_mean(model, recorded, tmp_path):
    signals = tuple(signal for signal in SIGNALS if signal != "output_cosine")  # of which each head has its own
    each = Records.open(record.record(make_config(model, heads="each", signals=signals, seeds=(0,)), tmp_path))
    assert each.manifest.heads == ("0", "1")
    for signal in signals:
        found = each.maps(0, "rate 1.0", signal, "mean", "words")
        np.testing.assert_allclose(found, recorded.maps(0, "rate 1.0", signal, "mean", "words"), atol=1e-6)
        assert np.abs(each.maps(0, "rate 1.0", signal, "0", "words") - found).max() > 1e-4


def test_groups_are_means_over_their_tokens(recorder, recorded):
    encoder, source = recorder.model.text, recorder.source
    for row in range(6):
        one = source[row]
        weights = record.group_weights(encoder, one.instruction, one.query, ("all", "words", "query", "special"))
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
        everything, words, query, special = weights > 0
        assert (words ^ special).all() and everything.all() and (query <= words).all() and 0 < query.sum() < words.sum()
    maps = {
        group: recorded.maps(0, "rate 1.0", "image_to_text", "mean", group) for group in ("all", "words", "special")
    }
    share = np.array([(record.group_weights(encoder, source[row].instruction, None, ("words",)) > 0).mean()
                      for row in range(6)])[:, None, None]  # fmt: skip
    np.testing.assert_allclose(maps["all"], share * maps["words"] + (1 - share) * maps["special"], atol=1e-6)


@pytest.mark.parametrize("gamma", [None, 0.0, 1.7])
def test_signals_equal_a_slow_computation(gamma):
    """One loop over samples, heads and queries in float64. Tolerance 1e-6."""
    lengths, heads, width = (3, 4, 5), 2, 6
    length, dice = sum(lengths), np.random.default_rng(0)
    q, k = dice.standard_normal((2, 2, length, heads, width)).astype(np.float32)
    out = dice.standard_normal((2, length, heads * width)).astype(np.float32)
    weights = jnp.asarray(dice.random((2, 2, 3)), jnp.float32)
    bias = None if gamma is None else strength_bias(jnp.array([gamma]), (7, 5))
    found = attention_signals.measure_signals(*map(jnp.asarray, (q, k, out)), bias, weights, lengths, SIGNALS, True)
    assert found.shape == (2, len(SIGNALS), heads, 2, 4)
    for b in range(2):
        for a in range(heads):
            logits = (q[b, :, a].astype(float) @ k[b, :, a].T) / np.sqrt(width)
            near = np.exp(logits[:7, :7]) / np.exp(logits[:7, :7]).sum(axis=1, keepdims=True)
            gain = np.where(np.arange(12) < 7, 1.0, 1.0 if gamma is None else gamma)
            far = np.exp(logits[:7]) * gain / (np.exp(logits[:7]) * gain).sum(axis=1, keepdims=True)
            unit = out[b, :, a * width : (a + 1) * width]
            unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
            slow = [near[:3, 3:7], far[:3, 3:7], near[3:7, :3].T, far[3:7, :3].T, unit[:3] @ unit[3:7].T]
            np.testing.assert_allclose(found[b, :, a], [np.asarray(weights[b], float) @ one for one in slow], atol=1e-6)


def test_the_hidden_cells_of_a_rate():
    for rate, count in ((1.0, 64), (0.5, 32), (0.001, 1)):
        assert record.hidden_cells((8, 8), rate, (0, 1, 2)).sum() == count
    assert (record.hidden_cells((8, 8), 0.5, (0, 1, 2)) != record.hidden_cells((8, 8), 0.5, (1, 1, 2))).any()


def test_recording_goes_on_with_the_same_bytes(model, recorded, tmp_path):
    config, folder = make_config(model), tmp_path / "records"
    record.record(config, tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "chunks" / "000001.json").unlink()
    with pytest.raises(RecordError, match="not complete, 1 of 2 chunks"):
        Records.open(folder)
    record.record(config, tmp_path)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert before[folder / "attention" / "c" / "0" / "0" / "0" / "0" / "0" / "0" / "0" / "0"] == (
        recorded.folder / "attention" / "c" / "0" / "0" / "0" / "0" / "0" / "0" / "0" / "0").read_bytes()  # fmt: skip


def test_records_of_another_model_or_config_are_refused(model, tmp_path):
    config = make_config(model, seeds=(0,), rates=(1.0,), steps=())
    record.record(config, tmp_path)
    pipe = EditPipeline.from_pretrained(model)
    other = dataclasses.replace(pipe.model, mgt_params=jax.tree.map(lambda x: x + 1, pipe.model.mgt_params))
    for problem, manifest in (
        ("fingerprint", record.Recorder(config, EditPipeline(other)).manifest),
        ("moments", record.Recorder(make_config(model, seeds=(0,), rates=(0.5,), steps=()), pipe).manifest),
    ):
        with pytest.raises(RecordError, match=f"begun with another {problem}"):
            record._begin(tmp_path / "records", manifest)


def test_a_step_that_the_decode_does_not_have_is_refused(model):
    with pytest.raises(RecordError, match="below the 4 steps"):
        record.Recorder(make_config(model, steps=(4,)), EditPipeline.from_pretrained(model))


def test_the_size_is_said_before():
    """1024 pixels, 42 blocks, one quadrant, one step: 86 KB an example."""
    from planted_records import manifest

    full = manifest(seeds=(0,), moments=("step 0",), signals=("text_to_image",), groups=("all",), num_blocks=42,
                    grid=(32, 32), token_grid=(64, 64))  # fmt: skip
    assert full.bytes_per_example == 86016 and "86 kB an example" in record.size_line(full)
