"""Whole model directories: random ones, what is in them, to Orbax and back, LoRA; and every way they can be broken."""

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
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from editmgt_jax import cli
from editmgt_jax.config import LoRAConfig, PEFTConfig
from editmgt_jax.errors import UserError
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.training.inputs import identity, identity_of_files
from editmgt_jax.weights import directories
from editmgt_jax.weights import files as weights
from editmgt_jax.weights.components import DIFFUSERS_NAME, abstract_params, make_module
from editmgt_jax.weights.conversion import to_released
from editmgt_jax.weights.files import WeightFiles, WeightsError
from editmgt_jax.weights.loading import tokenizer_folders
from editmgt_jax.weights.lora import abstract_lora, merge, read, save_lora
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
    with pytest.raises(FileNotFoundError, match="cannot be fetched from the Hugging Face hub: no route to host$"):
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


# ---- LoRA


@pytest.fixture
def lora():
    """A random LoRA of the tiny model. -> (config, module, parameters, tree)"""
    config, mgt = LoRAConfig(r=3, lora_alpha=6.0), make_module(tiny.MGT_CONFIG)
    params = tiny.random_params(lambda key: mgt.init(key, method=_touch)["params"])
    dice = np.random.default_rng(0)
    shapes = abstract_lora(config, mgt.config, abstract_params(mgt))
    tree = jax.tree.map(lambda leaf: dice.standard_normal(leaf.shape, np.float32), shapes)
    return config, mgt, params, tree


def _touch(module):
    import jax.numpy as jnp

    condition = module.condition(jnp.zeros((1, 1, 24)), jnp.zeros((1, 20)), jnp.zeros((1, 5)))
    return module(jnp.zeros((1, 4, 4), jnp.int32), 0.0, condition)


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


def test_a_lora_states_rank_alpha_and_targets():
    with pytest.raises(UserError, match="must state r, lora_alpha"):
        PEFTConfig.from_dict({})


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
