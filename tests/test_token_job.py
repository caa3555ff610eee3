"""From prepared pairs to tokens with a model's own encoders, and what data-stats says of both."""

import io
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("apache_beam")

from editmgt_jax import cli  # noqa: E402
from editmgt_jax.data.prepare.examine import PrepareConfig  # noqa: E402
from editmgt_jax.data.prepare.job import prepare  # noqa: E402
from editmgt_jax.data.records import PairSource, TokenSet  # noqa: E402
from editmgt_jax.training.token_job import tokenize_pairs  # noqa: E402
from editmgt_jax.weights.loading import load_model  # noqa: E402


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared") / "pairs"
    prepare("scenes:21", output, PrepareConfig(resolution=32, image_format="png"))
    return output


def test_records_are_what_the_model_s_encoders_say(prepared, with_llm, tmp_path):
    report = tokenize_pairs(prepared, str(with_llm), tmp_path / "tokens", batch_size=8, text_states=True)
    pairs, (bucket,) = PairSource(prepared), TokenSet(tmp_path / "tokens").buckets.values()
    assert len(bucket) == len(pairs) and report["images"] == 2 * len(pairs)
    model = load_model(with_llm)
    for index in (0, len(pairs) - 1):
        pair, record = pairs[index], bucket[index]
        for side in ("source", "target"):
            pixels = np.asarray(Image.open(io.BytesIO(pair[side])), np.float32)[None] / 255
            ids = model.vq.apply({"params": model.vq_params}, pixels, method="encode")[0]
            np.testing.assert_array_equal(record[f"{side}_ids"], ids)
        text = model.text.encode(pair["instruction"])
        np.testing.assert_array_equal(
            record["llm_ids"], model.text.towers["llm_ids"].tokenizer([pair["instruction"]])[0]
        )
        np.testing.assert_array_equal(
            record["text_ids"], model.text.towers["text_ids"].tokenizer([pair["instruction"]])[0]
        )
        np.testing.assert_allclose(record["text_states"].astype(np.float32), text.states, rtol=1e-2, atol=1e-2)
        np.testing.assert_allclose(record["pooled"], text.pooled, atol=2e-5)
        np.testing.assert_array_equal(record["micro"], [32, 32, 0, 0, 6])


def test_from_the_command_line(prepared, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("editmgt_jax.cli.shared.use_disk_cache", lambda: None)
    assert cli.main(["tokenize", "--records", str(prepared), "--model", str(tiny_model), "--output", "tokens"]) == 0
    printed = capsys.readouterr().err
    assert "the device waited" in printed and "pairs left out: their instructions are too long" in printed
    for folder, kind in ((prepared, "pairs"), ("tokens", "tokens")):
        grid = ["--grid", f"{kind}.png", "--model", str(tiny_model)]
        assert cli.main(["data-stats", str(folder), "--json", *grid]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["kind"] == kind and report["examples"] + report.get("left_out", 0) == 21
        assert sum(report["categories"].values()) == sum(report["buckets"].values()) == report["examples"]
        assert np.asarray(Image.open(f"{kind}.png")).std() > 10
    assert cli.main(["data-stats", str(tmp_path)]) == 2
    assert "needs its manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--records pairs --config c.py", "one of them"),
        ("", "one of them"),
        ("--config c.py", "needs --examples"),
        ("--records gone", "needs its manifest.json"),
        ("--records {prepared} --output {prepared}/tokens", "the output must lie outside of what is read"),
        ("--records {prepared} --batch-size 3", "must be a positive multiple of the 8 devices"),
    ],
)
def test_wrong_arguments(prepared, arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("editmgt_jax.cli.shared.use_disk_cache", lambda: None)
    line = f"tokenize --output tokens {arguments}".format(prepared=prepared)
    assert cli.main(line.split()) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "tokens").exists()


def test_a_model_of_other_pictures(prepared, with_llm, tmp_path):
    manifest = json.loads((prepared / "manifest.json").read_text())
    other = tmp_path / "pairs"
    other.mkdir()
    (other / "manifest.json").write_text(json.dumps(manifest | {"buckets": {"36x32": 21}}))
    with pytest.raises(ValueError, match="multiples of 8 pixels; got bucket 36x32"):
        tokenize_pairs(other, str(with_llm), tmp_path / "tokens", batch_size=8)
