"""Decodes as files: the same tokens as those that are compiled here, and one line where a file does not fit."""

import json

import numpy as np
import pytest
from PIL import Image

from editmgt_jax import cli
from editmgt_jax.errors import UserError
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.sampling.exported import ExportedDecode

PICTURE = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
SETTINGS = {"steps": 2, "record": True}


@pytest.fixture(scope="module")
def file(pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "decode"
    pipe.export_decode(path, (32, 32), **SETTINGS)
    return path


def test_a_decode_that_remasks(pipe, tiny_model, tmp_path):
    settings = {"steps": 3, "remask_steps": 2}
    pipe.export_decode(tmp_path / "decode", (32, 32), **settings)
    other = EditPipeline.from_pretrained(tiny_model, program=ExportedDecode(tmp_path / "decode"))
    settings |= {"remask_guidance_scale": 1.5}
    ours, theirs = (one(PICTURE, "make the car red", **settings) for one in (other, pipe))
    np.testing.assert_array_equal(ours.token_ids, theirs.token_ids)


def changed(file, tmp_path, **fields):
    """The file with other fields in its header."""
    magic, line, program = file.read_bytes().split(b"\n", 2)
    path = tmp_path / "changed"
    path.write_bytes(b"\n".join([magic, json.dumps(json.loads(line) | fields).encode(), program]))
    return path


def test_a_place_or_a_batch_that_cannot_be_is_told_before_work(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("editmgt_jax.pipeline.tokens.make_request", None)  # which would be work
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        pipe.export_decode(tmp_path)
    with pytest.raises(UserError, match="batch must be an integer of at least 1 and at most 1024"):
        pipe.export_decode(tmp_path / "a", batch=10**9)


def test_it_gives_the_same_tokens(pipe, tiny_model, file):
    other = EditPipeline.from_pretrained(tiny_model, program=ExportedDecode(file))
    for more in ({"seed": 3}, {"seed": 4, "hold_threshold": 0.3, "reference_strength": 0.5, "guidance_scale": 4.0}):
        ours, theirs = (one(PICTURE, "make the car red", **SETTINGS, **more) for one in (other, pipe))
        np.testing.assert_array_equal(ours.token_ids, theirs.token_ids)
        np.testing.assert_array_equal(ours.step_tokens, theirs.step_tokens)
        np.testing.assert_allclose(ours.relevance, theirs.relevance, atol=2e-6)


def test_on_the_command_line(pipe, tiny_model, file, tmp_path, monkeypatch):
    monkeypatch.setattr("editmgt_jax.cli.shared.use_disk_cache", lambda: None)
    monkeypatch.chdir(tmp_path)
    PICTURE.save("in.png")
    model = ["--model", str(tiny_model), "--steps", "2"]
    assert cli.main(["export-decode", *model, "--size", "32", "32", "--output", "decode"]) == 0
    header = ExportedDecode("decode").header
    assert (header.batch, header.grid, header.steps, header.platforms) == (1, [8, 8], 2, ["cpu"])
    edit = ["edit", "--image", "in.png", "--instruction", "make the car red", *model, "--output", "out.png"]
    assert cli.main([*edit, "--save-steps", "steps.gif", "--program", str(file)]) == 0
    expected = pipe(PICTURE, "make the car red", **SETTINGS).images[0]
    np.testing.assert_array_equal(np.asarray(Image.open("out.png")), np.asarray(expected))
    assert cli.main([*edit, "--program", str(file)]) == 2  # one that records its steps


@pytest.mark.parametrize(
    "more, message",
    [
        ({"steps": 3}, "decodes 1 picture.s. of 8 x 8 tokens in 2 steps; got 1 picture.s. of 8 x 8 tokens in 3 steps"),
        ({"remask_steps": 1}, "tokens in 2 steps; got 1 picture.s. of 8 x 8 tokens in 2 steps, some of which remask"),
        ({"guidance_scale": 1.0}, "for the settings guided True; got guided False"),
        ({"layers": (0, 1)}, r"for the settings layers \[2\]; got layers \[0, 1\]"),
    ],
)
def test_other_settings(tiny_model, file, more, message):
    pipe = EditPipeline.from_pretrained(tiny_model, program=ExportedDecode(file))
    with pytest.raises(UserError, match=message):
        pipe(PICTURE, "make the car red", **SETTINGS | more)


def test_another_size(tiny_model, file):
    pipe = EditPipeline.from_pretrained(tiny_model, program=ExportedDecode(file))
    with pytest.raises(UserError, match="of 8 x 8 tokens in 2 steps; got .* of 12 x 6 tokens"):
        pipe(PICTURE.resize((64, 32)), "make the car red", **SETTINGS)


def test_another_model(tiny_model, file):
    pipe = EditPipeline.from_pretrained(tiny_model, dtype="bfloat16", program=ExportedDecode(file))
    with pytest.raises(UserError, match="of a model with dtype float32; got dtype bfloat16"):
        pipe(PICTURE, "make the car red", **SETTINGS)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"calling_convention": 3}, "calling convention 3; jax .* runs .*: export it again"),
        ({"jax": "99.1.0"}, "exported by jax 99.1.0, and this is jax"),
        ({"platforms": ["tpu"]}, "for tpu, and this is a cpu"),
        ({"unknown": 1}, "of another version of editmgt"),
    ],
)
def test_a_file_that_this_installation_cannot_run(file, tmp_path, fields, message):
    with pytest.raises(UserError, match=message) as raised:
        ExportedDecode(changed(file, tmp_path, **fields))
    assert "\n" not in str(raised.value)


def test_an_expired_file_is_a_note(file, tmp_path):
    with pytest.warns(UserWarning, match="ended on 2020-01-01"):
        ExportedDecode(changed(file, tmp_path, expires="2020-01-01"))


def test_damage(file, tmp_path):
    path = tmp_path / "damaged"
    path.write_bytes(file.read_bytes()[:2500])
    with pytest.raises(UserError, match="damaged|cannot be read"):
        ExportedDecode(path)
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match="must be a file of `editmgt export-decode`"):
        ExportedDecode(path)


def test_for_a_tpu_with_its_kernels(tiny_model, tmp_path):
    """Exported where there is none, in half precision: with the attention that `auto` chooses there."""
    EditPipeline.from_pretrained(tiny_model, dtype="bfloat16").export_decode(
        tmp_path / "decode", (32, 32), platforms=["tpu"], **SETTINGS
    )
    assert b"tpu_custom_call" in (tmp_path / "decode").read_bytes()


def test_an_unknown_platform_leaves_no_file(pipe, tmp_path):
    with pytest.raises(UserError, match="platforms are cpu, cuda, rocm, tpu; got abacus"):
        pipe.export_decode(tmp_path / "decode", (32, 32), steps=2, platforms=["abacus"])
    assert not list(tmp_path.iterdir())
