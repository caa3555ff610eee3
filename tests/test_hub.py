"""Models on a stand-in for the Hugging Face hub, and in a cache with the real layout."""

import hashlib
import json

import huggingface_hub.constants
import jax
import numpy as np
import pytest
from hub_stub import Hub

from editmgt_jax.errors import UserError
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.weights import hub
from editmgt_jax.weights.cards import Facts, card
from editmgt_jax.weights.loading import load_model


@pytest.fixture
def stub(monkeypatch):
    with Hub(token="hf_secret") as stub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", stub.url)
        template = stub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield stub


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_saved_model_is_the_same_with_an_index_and_a_card(pipe, tiny_model, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    before, after = files_of(tiny_model), files_of(tmp_path / "saved")
    assert after.keys() - before.keys() == {"model_index.json", "README.md"}
    assert before.items() <= after.items()
    index = json.loads(after["model_index.json"])
    assert index["editmgt"] == ["editmgt_jax", "Transformer2DModel"] and index["vqvae"] == ["diffusers", "VQModel"]
    assert index["text_encoder"][0] == index["tokenizer"][0] == "transformers"
    with pytest.raises(FileExistsError):
        pipe.save_pretrained(tmp_path / "saved")


def test_a_published_model_is_fetched_bit_for_bit(pipe, tiny_model, tmp_path, stub):
    address = pipe.push_to_hub("user/tiny", token="hf_secret", private=True)
    assert address.startswith(f"{stub.url}/user/tiny/commit/")
    published = stub.models["user/tiny"]["main"]
    assert files_of(tiny_model).items() <= published.items() and b"user/tiny" in published["README.md"]
    fetching = {"cache_dir": tmp_path, "token": "hf_secret"}
    assert files_of(hub.fetch("user/tiny", **fetching)).items() == published.items()
    stub.seen.clear()
    offline = EditPipeline.from_pretrained("user/tiny", cache_dir=tmp_path, local_files_only=True)
    assert stub.seen == []
    jax.tree.map(np.testing.assert_array_equal, offline.model.mgt_params, pipe.model.mgt_params)
    jax.tree.map(np.testing.assert_array_equal, offline.model.vq_params, pipe.model.vq_params)


def test_revisions(pipe, tmp_path, stub):
    model = pipe.model.directory
    hub.push(model, "user/tiny", token="hf_secret")
    hub.push(model, "user/tiny", token="hf_secret", revision="v2")
    stub.models["user/tiny"]["v2"]["scheduler/extra.json"] = b"{}"
    fetching = {"cache_dir": tmp_path, "token": "hf_secret"}
    main, other = hub.fetch("user/tiny", **fetching), hub.fetch("user/tiny", revision="v2", **fetching)
    assert not (main / "scheduler" / "extra.json").exists() and (other / "scheduler" / "extra.json").exists()
    assert hub.fetch("user/tiny", revision=other.name, cache_dir=tmp_path, local_files_only=True) == other


def test_what_the_hub_refuses_is_one_line(pipe, tmp_path, stub):
    for options in ({"token": "wrong"}, {"token": "hf_secret"}, {"local_files_only": True}):
        with pytest.raises(FileNotFoundError, match="cannot be fetched from the Hugging Face hub") as error:
            load_model("user/absent", cache_dir=tmp_path, **options)
        assert "\n" not in str(error.value) and "hf_secret" not in str(error.value)
    with pytest.raises(UserError, match="cannot be published") as error:
        pipe.push_to_hub("user/tiny", token="wrong")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="such as user/model; got 'tiny'"):
        pipe.push_to_hub("tiny", token="hf_secret")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"device": "cuda"}, r"a model is read with dtype, .*; got \['device'\]"),
        ({"revision": 5}, "revision must be str; got 5"),
        ({"lora": 5}, "a LoRA must be the path of a folder; got 5"),
        ({"strict": "yes"}, "strict must be true or false"),
        ({"program": "decode.bin"}, "program must be an ExportedDecode"),
        ({"batch_size": 10**20}, "batch_size must be an integer of at least 1 and at most 10000"),
    ],
)
def test_options_of_reading_are_checked_where_nothing_is_fetched_too(tiny_model, options, message):
    with pytest.raises(UserError, match=message):
        EditPipeline.from_pretrained(tiny_model, **options)


def test_a_cache_that_the_hub_s_own_library_wrote(tiny_model, tmp_path):
    """blobs by their hash, snapshots of links to them, refs to commits."""
    repository, commit = tmp_path / "models--user--tiny", "0123456789abcdef0123456789abcdef01234567"
    for name, data in files_of(tiny_model).items():
        blob = repository / "blobs" / hashlib.sha256(data).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link = repository / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    offline = {"cache_dir": tmp_path, "local_files_only": True}
    for revision in (None, "main", commit):
        assert hub.fetch("user/tiny", revision=revision, **offline) == repository / "snapshots" / commit
    assert files_of(hub.fetch("user/tiny", **offline)) == files_of(tiny_model)
    with pytest.raises(FileNotFoundError, match="cannot be fetched"):
        load_model("user/tiny", revision="v9", **offline)


def test_a_card_says_what_is_known(tiny_model, tmp_path):
    facts = Facts(
        licence="apache-2.0", data=["tokens, weight 1"], training={"steps": 7}, metrics={"loss": 0.123456},
        commands=["editmgt train"],
    )  # fmt: skip
    text = card(tiny_model, "user/tiny", facts)
    for part in (
        'license: "apache-2.0"',
        "| tokens, weight 1 |",
        "| steps | 7 |",
        "| loss | 0.1235 |",
        "editmgt train",
    ):
        assert part in text
    assert 'pipeline_tag: "image-to-image"' in text and "--model user/tiny" in text
    (tmp_path / "vqvae").mkdir()
    bare = card(tmp_path, "vq", Facts())
    assert "An image tokenizer" in bare and "Not stated." in bare and "license" not in bare and "## Use" not in bare
