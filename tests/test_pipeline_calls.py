"""What a call compiles, and what it refuses."""

import uuid

import jax
import numpy as np
import pytest
from PIL import Image
from test_pipeline import INSTRUCTION, picture

from editmgt_jax.errors import UserError
from editmgt_jax.images import ImageError
from editmgt_jax.models.prompts import PromptError
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.sampling import programs
from editmgt_jax.sampling.edit import decode_edit, traces
from editmgt_jax.sampling.settings import SettingsError

# ---- compilation


def new_program(monkeypatch, name):
    """The decode, as a program of another name that this process has not compiled."""

    def decode(variables, request, mgt, static):
        return decode_edit.__wrapped__(variables, request, mgt, static)

    decode.__name__ = name
    monkeypatch.setattr(programs, "decode_edit", jax.jit(decode, static_argnames=("mgt", "static")))


def test_a_program_of_the_disk_s_cache_is_not_said_to_be_compiled(pipe, capsys, monkeypatch):
    name, stages = f"decode_{uuid.uuid4().hex}", []
    new_program(monkeypatch, name)
    pipe(picture(), INSTRUCTION, steps=1)
    assert capsys.readouterr().err.count("compiling for 8 x 8 tokens took") == 1
    new_program(monkeypatch, name)
    pipe(picture(), INSTRUCTION, steps=1, progress=stages.append)
    assert stages[2:4] == ["compile", "decode"] and "compiled" not in capsys.readouterr().err


def test_traced_settings_never_recompile(pipe, capsys, monkeypatch):
    new_program(monkeypatch, f"decode_{uuid.uuid4().hex}")
    fresh = EditPipeline(pipe.model)
    pipe.model.text.encode.cache_clear()  # a text that is remembered needs no program, which another would then
    mask = np.zeros((32, 32), bool)
    mask[:16] = True
    base = dict(steps=5, hold_threshold=0.3, mask=mask)  # a number of steps that no other test uses
    stages = []
    fresh(picture(), INSTRUCTION, progress=stages.append, **base)
    assert stages == ["text", "tokenize", "compile", "decode", "paint"]
    assert capsys.readouterr().err.count("compiling for 8 x 8 tokens took") == 1
    before = traces.copy()
    for change in (
        dict(reference_strength=0.7),
        dict(hold_threshold=0.9),
        dict(guidance_scale=3.5),
        dict(sampling_temperature=0.5),
        dict(temperature=(1.0, 0.5)),
        dict(temperature=1.5),
        dict(seed=11),
        dict(mask=~mask),
        dict(query="car"),
        dict(negative_prompt="blurry"),
        dict(composite=False),
    ):
        fresh(picture(), INSTRUCTION, **base | change)
    fresh(picture(seed=3), "remove the tree", **base)
    assert traces == before
    assert capsys.readouterr().err == ""
    fresh(picture(), INSTRUCTION, **base | dict(filter="none"))
    assert traces - before == {"decode": 1}


def test_of_many_sizes_jit_lets_programs_go(pipe, monkeypatch):
    """Without a folder of executables it is jit's cache that keeps them: all go when one more comes, which is kept."""
    new_program(monkeypatch, f"decode_{uuid.uuid4().hex}")
    monkeypatch.setattr(programs, "KEPT", 2)
    monkeypatch.setattr(programs, "_new", 0)
    for steps, is_new in ((1, True), (2, True), (2, False), (3, True), (3, False), (1, True)):
        stages = []
        pipe(picture(), INSTRUCTION, steps=steps, progress=stages.append)
        assert ("compile" in stages) == is_new, steps


# ---- wrong input


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(num_images=0), "num_images must be an integer of at least 1"),
        (dict(seed=-1), "seed must be an integer of at least 0 and at most 4294967295; got -1"),
        (dict(seed=2**32), "seed"),
        (dict(layers=(3,)), "from 0 to 2"),
    ],
)
def test_settings_outside_their_range(pipe, bad, message):
    with pytest.raises(SettingsError, match=message):
        pipe(picture(), INSTRUCTION, **bad)


def test_more_pictures_than_memory_holds_are_refused_before_work(pipe, monkeypatch):
    stages = []
    free = 10 * (4 * 32 * 32 + 12 * 32 * 32) - 1  # bytes of ten pictures, but one
    monkeypatch.setattr("editmgt_jax.pipeline.tokens.host_memory", lambda: free)
    message = "num_images must be such that all pictures fit into memory; 10 of up to 32 x 32 pixels need about 0 GiB"
    with pytest.raises(SettingsError, match=message):
        pipe(picture(), INSTRUCTION, num_images=10, progress=stages.append)
    with pytest.raises(SettingsError, match="; 10 of up to 32 x 32"):
        pipe([picture()] * 5, INSTRUCTION, num_images=2, progress=stages.append)
    with pytest.raises(SettingsError, match="; 10 of up to 32 x 32"):
        pipe.generate(INSTRUCTION, (32, 32), num_images=10, progress=stages.append)
    assert "tokenize" not in stages
    monkeypatch.setattr("editmgt_jax.pipeline.tokens.host_memory", lambda: None)
    assert len(pipe(picture(), INSTRUCTION, num_images=2, steps=1).images) == 2


@pytest.mark.parametrize("instruction", ["", "  \n", "\0\u200b\ufeff", None, ["make the car red", ""]])
def test_empty_instruction(pipe, instruction):
    with pytest.raises(PromptError, match="must say what to change"):
        pipe(picture(), instruction)


def test_arrays_that_are_no_pictures_and_no_ids(pipe):
    floats = np.zeros((1, 16, 16, 3), np.float32)
    for wrong in ("in.png", floats[0], floats[:, :15], floats[..., :1], np.zeros((1, 16, 16, 3), np.uint8)):
        with pytest.raises(UserError, match=r"pixels must be floats \[B Y X 3\]"):
            pipe.encode_image(wrong)
    ids = pipe.encode_image(floats)
    np.testing.assert_array_equal(ids, pipe.encode_image(floats.astype(np.float64)))
    for wrong in ([[[0]]], np.asarray(ids)[0], np.zeros(ids.shape)):
        with pytest.raises(UserError, match=r"ids must be integers \[B H W\]"):
            pipe.decode_image(wrong)
    for wrong in (-1, pipe.mask_token_id + 1):
        with pytest.raises(UserError, match=f"ids must be in 0..{pipe.mask_token_id}; got {wrong} to {wrong}"):
            pipe.decode_image(np.full(ids.shape, wrong))
    with pytest.raises(UserError, match="paint_steps takes a result"):
        pipe.paint_steps(5)


def test_long_instruction_and_foreign_query(pipe):
    with pytest.raises(PromptError, match="at most 12 tokens"):
        pipe(picture(), "make the car red and " * 10)
    with pytest.raises(PromptError, match="'owl' is not among"):
        pipe(picture(), INSTRUCTION, query="owl")


def test_bad_pictures(pipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.png"):
        pipe(tmp_path / "gone.png", INSTRUCTION)
    with pytest.raises(ImageError, match="5000 x 1"):
        pipe(Image.new("RGB", (5000, 1)), INSTRUCTION)
    with pytest.raises(ImageError, match="size of its image"):
        pipe(picture(), INSTRUCTION, mask=np.ones((8, 8), bool))
