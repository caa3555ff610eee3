"""Whole model directories: random ones, what is in them, to Orbax and back; and every way they can be broken."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from safetensors.numpy import load_file, save_file

from editmgt_jax import cli
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.training.inputs import identity, identity_of_files
from editmgt_jax.weights import directories
from editmgt_jax.weights import files as weights
from editmgt_jax.weights.components import DIFFUSERS_NAME
from editmgt_jax.weights.files import WeightFiles
from editmgt_jax.weights.loading import tokenizer_folders
from editmgt_jax.weights.lora import save_lora
from editmgt_jax.weights.random_model import make_random
from editmgt_jax.weights.trees import load_tree, save_tree


def hashes(directory):
    """{folder/key: bytes} of every tensor of a model directory."""
    return {
        f"{path.name}/{key}": (WeightFiles(path).tensors[key].dtype, WeightFiles(path).read(key).tobytes())
        for path in sorted(directory.iterdir())
        if list(path.glob("*.safetensors"))
        for key in WeightFiles(path).tensors
    }


# ---- presets


def test_presets_have_the_released_numbers_of_parameters():
    counts = {f: c["parameters"] for f, c in directories.inspect_preset("editmgt-1024")["components"].items()}
    assert counts["editmgt"] == 1_009_306_624 and counts["vqvae"] == 146_244_675
    assert set(directories.inspect_preset("monetico-512")["components"]) == {"transformer", "vqvae", "text_encoder"}
    with pytest.raises(ValueError, match="editmgt-1024, .*; got 'sdxl'"):
        directories.inspect_preset("sdxl")


def test_inspect_prints_json_of_a_preset(capsys):
    assert cli.main(["inspect", "--preset", "meissonic-1024", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["components"]["transformer"]["class"] == "Transformer2DModel"


# ---- an editor with both text encoders


def test_an_editor_with_a_language_model_edits(with_llm):
    pipe = EditPipeline.from_pretrained(with_llm)
    text = pipe.encode("make the car red")
    assert text.states.shape == (256, 20) and text.pooled.shape == (12,)
    weights = pipe.query_weights(text, "car")
    assert np.flatnonzero(weights).min() > 200  # it pads on the left
    long = pipe.encode("make the car red and " * 15)  # more than CLIP's 77 tokens, which lose their end
    assert np.isfinite(long.states).all()
    result = pipe(np.zeros((32, 32, 3), np.uint8), text, query="car")
    assert result.token_ids.shape == (1, 8, 8)


def test_text_towers_can_have_their_own_dtype(with_llm):
    pipe = EditPipeline.from_pretrained(with_llm, dtype={"llm_encoder": "bfloat16"})
    layers = pipe.model.text.params["llm_ids"]["layers"]
    assert layers["q_proj"]["kernel"].dtype == "bfloat16" and layers["norm1"]["scale"].dtype == "float32"
    assert pipe.model.mgt_params["double_blocks"]["to_q"]["kernel"].dtype == "float32"
    with pytest.raises(ValueError, match="may be chosen for.*vqvae"):
        EditPipeline.from_pretrained(with_llm, dtype={"vqvae": "bfloat16"})


def test_inspect_says_what_is_there_and_what_is_wrong(with_llm, tmp_path, capsys):
    report = directories.inspect(with_llm)
    assert report["loads"] and report["components"]["llm_encoder"]["unused"] > 0
    shutil.copytree(with_llm, tmp_path / "model")
    name = DIFFUSERS_NAME
    tensors = load_file(tmp_path / "model/editmgt" / name)
    del tensors["embed.conv.weight"]
    save_file(tensors, tmp_path / "model/editmgt" / name)
    with pytest.raises(SystemExit):
        cli.main(["inspect", str(tmp_path / "model")])
    assert "would not load" in (out := capsys.readouterr().out) and "embed.conv.weight" in out


# ---- Orbax and back


@pytest.mark.parametrize("shard", [False, True], ids=["one file", "shards"])
def test_there_and_back_is_bit_for_bit(with_llm, tmp_path, monkeypatch, shard):
    if shard:
        monkeypatch.setattr(weights, "SHARD_BYTES", 4000)
    directories.to_orbax(with_llm, tmp_path / "orbax", verify=True)
    directories.to_released(tmp_path / "orbax", tmp_path / "back", verify=True)
    assert hashes(tmp_path / "back") == hashes(with_llm)
    files = {p.relative_to(with_llm) for p in with_llm.rglob("*") if p.is_file()}
    back = {p.relative_to(tmp_path / "back") for p in (tmp_path / "back").rglob("*") if p.is_file()}
    assert files <= back if not shard else len(list((tmp_path / "back/editmgt").glob("*.safetensors"))) > 1
    assert directories.inspect(tmp_path / "back")["loads"]


def test_the_identity_of_records_is_not_of_files(with_llm, tmp_path):
    """Records go on with weights and tokenizers that were stored again, and not with others."""
    from transformers import AutoTokenizer

    again = shutil.copytree(with_llm, tmp_path / "again")
    before = identity(with_llm / "vqvae", tokenizer_folders(with_llm))
    path = again / "vqvae" / DIFFUSERS_NAME
    tensors = load_file(path)
    save_file(tensors, path, {"format": "pt", "stored": "again"})
    for folder in tokenizer_folders(with_llm).values():
        AutoTokenizer.from_pretrained(folder).save_pretrained(again / folder.name)
    assert identity(again / "vqvae", tokenizer_folders(again)) == before
    assert identity_of_files(again / "vqvae", tokenizer_folders(again)) != before
    next(iter(tensors.values())).flat[0] += 1
    save_file(tensors, path)
    for folder in tokenizer_folders(again).values():
        for name in ("vocab.json", "merges.txt"):
            (folder / name).unlink(missing_ok=True)
        stored = json.loads((folder / "tokenizer.json").read_text())
        stored["model"]["merges"].pop()
        (folder / "tokenizer.json").write_text(json.dumps(stored))
    other = identity(again / "vqvae", tokenizer_folders(again))
    assert len(before) == 3 and all(before[name] != other[name] for name in before)


def test_a_failed_conversion_leaves_nothing(with_llm, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(directories, "copy_files", fail)
    with pytest.raises(OSError, match="no space"):
        directories.to_orbax(with_llm, tmp_path / "orbax")
    assert not list(tmp_path.iterdir())


def test_a_killed_conversion_leaves_nothing_that_looks_complete(with_llm, tmp_path):
    code = (
        "import os, signal, sys\n"
        "from editmgt_jax.weights import directories\n"
        "directories.copy_files = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "directories.to_orbax(*sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(with_llm), str(tmp_path / "orbax")], timeout=300)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("orbax.") and left.name.endswith(".tmp")
    with pytest.raises((FileNotFoundError, ValueError)):
        directories.to_released(left, tmp_path / "back")
    directories.to_orbax(with_llm, tmp_path / "orbax")
    with pytest.raises(FileExistsError, match="name another one"):
        directories.to_orbax(with_llm, tmp_path / "orbax")


def test_links_and_other_files_come_along(with_llm, tmp_path):
    (tmp_path / "model").mkdir()
    for part in with_llm.iterdir():
        (tmp_path / "model" / part.name).symlink_to(part)
    (tmp_path / "model" / "checker").mkdir()
    save_file({"x": np.zeros(3)}, tmp_path / "model" / "checker" / "model.safetensors")
    directories.to_orbax(tmp_path / "model", tmp_path / "orbax")
    directories.to_released(tmp_path / "orbax", tmp_path / "back")
    assert directories.inspect(tmp_path / "back")["loads"]
    assert (tmp_path / "back" / "checker" / "model.safetensors").is_file()
    (tmp_path / "orbax2.tmp").mkdir()
    (tmp_path / "orbax2.tmp" / "thesis.txt").write_text("mine")
    directories.to_orbax(tmp_path / "model", tmp_path / "orbax2")
    assert (tmp_path / "orbax2.tmp" / "thesis.txt").is_file()


def test_the_output_must_lie_outside_of_what_is_read(with_llm):
    before = sorted(with_llm.rglob("*"))
    with pytest.raises(ValueError, match="must lie outside"):
        directories.to_orbax(with_llm, with_llm / "orbax")
    assert sorted(with_llm.rglob("*")) == before


def test_checkpoints_that_are_not_what_was_written(with_llm, tmp_path):
    def converted(name):
        directories.to_orbax(with_llm, tmp_path / name)
        return tmp_path / name

    other = converted("other_config")
    path = other / "editmgt" / "config.json"
    path.write_text(path.read_text().replace('"num_layers": 2', '"num_layers": 3'))
    with pytest.raises(ValueError, match="must have the paths and shapes of"):
        directories.to_released(other, tmp_path / "back")
    changed = converted("changed")
    tree = load_tree(changed / "vqvae" / "orbax")
    tree["params"]["codebook"] = tree["params"]["codebook"] + np.float32(1e-6)
    shutil.rmtree(changed / "vqvae" / "orbax")
    save_tree(changed / "vqvae" / "orbax", tree)
    with pytest.raises(ValueError, match="is damaged.*: .*quantize.embedding.weight"):
        directories.to_released(changed, tmp_path / "back")
    shutil.rmtree(other / "editmgt")
    with pytest.raises(FileNotFoundError, match="has a folder editmgt"):
        directories.to_released(other, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("form", ["orbax", "merge"])
def test_verify_compares_what_was_written(with_llm, tmp_path, monkeypatch, form, lora):
    """A writer that changes a number is caught by --verify alone."""
    if form == "orbax":
        monkeypatch.setattr(directories, "save_tree", lambda where, tree: save_tree(where, _spoilt(tree)))
        with pytest.raises(ValueError, match="did not survive|damaged"):
            directories.to_orbax(with_llm, tmp_path / "out", verify=True)
        return
    config, mgt, _, tree = lora
    tiny.write_model(tmp_path / "model")
    (tmp_path / "lora").mkdir()
    save_lora(tmp_path / "lora", config, mgt.config, tree)
    write = weights._write_file
    monkeypatch.setattr(weights, "_write_file", lambda path, *more: (write(path, *more), _flip(path)))
    with pytest.raises(ValueError, match="did not survive"):
        directories.merge_lora(tmp_path / "model", tmp_path / "out", tmp_path / "lora", verify=True)
    assert not (tmp_path / "out").exists()


def _spoilt(tree):
    flat, shape = jax.tree.flatten(tree)
    return jax.tree.unflatten(shape, [flat[0] + 1, *flat[1:]])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_what_gemma_does_not_use_is_checked_too(with_llm, tmp_path):
    shutil.copytree(with_llm, tmp_path / "model")
    path = tmp_path / "model/llm_encoder/model.safetensors"
    good = load_file(path)
    for change, message in (
        ({"model.layers.2.rubbish": np.zeros(2, np.float32)}, "unknown: model.layers.2.rubbish"),
        ({"model.norm.weight": np.zeros(7, np.float32)}, r"misshapen: model.norm.weight is \[7\]"),
        ({"model.layers.2.mlp.up_proj.weight": None}, "missing: model.layers.2.mlp.up_proj.weight"),
    ):
        save_file({key: value for key, value in (good | change).items() if value is not None}, path)
        assert re.search(message, directories.inspect(tmp_path / "model")["problem"])
    spoilt = good | {"model.norm.weight": np.full_like(good["model.norm.weight"], np.nan)}
    save_file(spoilt, path)
    with pytest.raises(ValueError, match="model.norm.weight holds NaN"):
        directories.to_orbax(tmp_path / "model", tmp_path / "orbax", strict=True)


def test_a_model_directory_runs_no_code_of_its_own(with_llm, tmp_path):
    shutil.copytree(with_llm, tmp_path / "model")
    folder = tmp_path / "model" / "tokenizer"
    (folder / "own.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\nclass Own: ...\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert not directories.inspect(tmp_path / "model")["loads"]
    assert not (tmp_path / "pwned").exists()


def test_every_conversion_from_the_command_line(with_llm, tmp_path, monkeypatch, lora):
    """The tiny model of each kind through each sub-command, verified, and the pictures that it makes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("editmgt_jax.cli.shared.use_disk_cache", lambda: None)
    config, mgt, _, tree = lora
    tiny.write_model(Path("small"))
    Path("lora").mkdir()
    save_lora("lora", config, mgt.config, tree)

    def run(line):
        assert cli.main(line.split()) == 0, line

    run("make-random --preset tiny-base --out base --dtype bf16")
    run(f"convert orbax {with_llm} orbax --verify --strict")
    run("convert released orbax back --verify --strict")
    assert hashes(Path("back")) == hashes(with_llm)
    run(f"convert editor base editor --llm-encoder {with_llm / 'llm_encoder'} --verify --strict")
    run("convert lora lora lora_orbax --model small --verify")
    run("convert merge small merged --lora lora_orbax --verify --strict")
    run("inspect editor --json")
    Image.new("RGB", (32, 32), "red").save("in.png")
    Image.new("L", (32, 32), "white").save("mask.png")
    run("generate --model base --prompt tree --size 32 32 --steps 2 --output generated.png")
    run("inpaint --model base --image in.png --mask mask.png --prompt tree --steps 2 --output inpainted.png")
    run("outpaint --model base --image in.png --pad 0 0 16 0 --prompt tree --steps 2 --output outpainted.png")
    sizes = [Image.open(f"{name}.png").size for name in ("generated", "inpainted", "outpainted")]
    assert sizes == [(32, 32), (32, 32), (48, 32)]


# ---- models and weights that are not as they are wanted


def test_position_numbers_of_old_clip_files_are_no_weights(tmp_path):
    tiny.write_model(tmp_path / "model")
    path = tmp_path / "model/text_encoder/model.safetensors"
    save_file(load_file(path) | {"text_model.embeddings.position_ids": np.arange(12)[None]}, path)
    directories.to_orbax(tmp_path / "model", tmp_path / "orbax", verify=True)
    directories.to_released(tmp_path / "orbax", tmp_path / "back", verify=True)
    assert hashes(tmp_path / "back") == hashes(tmp_path / "model")
    assert json.dumps(directories.inspect(tmp_path / "back")["components"]["text_encoder"]["unused"]) == "12"


@pytest.mark.parametrize("name", ["./gone", "../gone", "a--b/c", "gone/x.", "/no/such/folder", "gone"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        directories.inspect(name)


def test_a_name_that_is_neither_folder_nor_on_the_hub(monkeypatch):
    import huggingface_hub

    def fails(*_, **__):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(
        FileNotFoundError, match="cannot be fetched from the Hugging Face hub: no route to host and more$"
    ):
        EditPipeline.from_pretrained("someone/something")


# ---- base to editor


def test_a_base_becomes_an_editor(tmp_path, with_llm):
    make_random("tiny-base", tmp_path / "base")
    copied, new = directories.to_editor(tmp_path / "base", tmp_path / "editor", with_llm / "llm_encoder", verify=True)
    assert new == ["connector.projector.bias", "connector.projector.weight"]
    before, after = (WeightFiles(tmp_path / name) for name in ("base/transformer", "editor/editmgt"))
    assert set(copied) == set(before.tensors)
    for key in copied:
        np.testing.assert_array_equal(before.read(key), after.read(key))
    with pytest.raises(ValueError, match="must be a text-to-image base"):
        directories.to_editor(tmp_path / "editor", tmp_path / "again")
