"""diffusers' names of arguments: the same call, by one table."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from test_pipeline import INSTRUCTION, picture

import editmgt_jax
from editmgt_jax.declarations import SettingsError
from editmgt_jax.errors import UserError
from editmgt_jax.pipeline.diffusers_names import takes_diffusers_names
from editmgt_jax.sampling.results import Results

# As diffusers' own pages have it.
SCRIPT = """
from diffusers import StableDiffusionInstructPix2PixPipeline

pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(MODEL, torch_dtype="float32", use_safetensors=True)
pipe = pipe.to("cpu")
images = pipe(
    "make the car red",
    image=image,
    num_inference_steps=4,
    guidance_scale=3.5,
    image_guidance_scale=1.5,
    num_images_per_prompt=2,
    generator=7,
    output_type="pil",
).images
"""


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_script_runs_with_another_import_and_class(pipe, tiny_model):
    script = SCRIPT.replace("diffusers import", "editmgt_jax import")
    script = script.replace("StableDiffusionInstructPix2PixPipeline", "EditPipeline")
    names = {"MODEL": str(tiny_model), "image": picture()}
    exec(script, names)
    settings = {"steps": 4, "guidance_scale": 3.5, "image_guidance_scale": 1.5}
    same(names["images"], pipe(picture(), INSTRUCTION, num_images=2, seed=7, **settings).images)


def test_a_callback_sees_every_step(pipe):
    seen = []
    result = pipe(picture(), INSTRUCTION, steps=4, callback_on_step_end=lambda *given: seen.append(given))
    assert [(given[1], given[2]) for given in seen] == [(0, 3), (1, 2), (2, 1), (3, 0)]
    assert all(given[0] is pipe for given in seen)
    np.testing.assert_array_equal(seen[-1][3]["latents"], result.token_ids)
    with pytest.raises(SettingsError, match="cannot change the tokens"):
        pipe(picture(), INSTRUCTION, steps=4, callback_on_step_end=lambda *given: {"latents": given[3]["latents"] + 1})


def test_results_of_several_prompts_have_all_pictures_in_order():
    a, b, c = (picture(seed=seed) for seed in range(3))
    found = Results([SimpleNamespace(images=[a, b]), SimpleNamespace(images=[c])]).images
    assert [id(image) for image in found] == [id(a), id(b), id(c)]


class Called:
    """Methods with the arguments of the pipeline's, which return what they get."""

    @takes_diffusers_names
    def edit(self, image, instruction, *misplaced, mask=None, seed=0, **settings):
        return {"image": image, "instruction": instruction, "mask": mask, "seed": seed, "more": misplaced} | settings

    @takes_diffusers_names
    def generate(self, prompt, size=None, **settings):
        return {"prompt": prompt, "size": size} | settings

    @takes_diffusers_names
    def inpaint(self, image, prompt, mask, **settings):
        return {"prompt": prompt, "image": image, "mask": mask} | settings


def test_every_order_and_name_is_the_same_call():
    expected = Called().edit("PICTURE.png", INSTRUCTION, mask="M", seed=3)
    image, call = picture(), Called()
    assert call.edit(prompt=INSTRUCTION, image="PICTURE.png", mask_image="M", generator=3) == expected
    assert call.edit(INSTRUCTION, image="PICTURE.png", mask_image="M", generator=3) == expected
    assert call.edit(INSTRUCTION, image) == call.edit(image, INSTRUCTION) == call.edit(image, instruction=INSTRUCTION)
    assert call.edit([INSTRUCTION], [image]) == call.edit([image], [INSTRUCTION])
    assert call.edit("PICTURE.png", INSTRUCTION)["image"] == "PICTURE.png"
    named = {"num_inference_steps": 3, "num_images_per_prompt": 2, "negative_prompt": "x", "guidance_scale": 4}
    ours = {"steps": 3, "num_images": 2, "negative_prompt": "x", "guidance_scale": 4}
    assert call.edit(image, INSTRUCTION, **named) == call.edit(image, INSTRUCTION, **ours)


def test_pictures_from_text_and_fills():
    image, call = picture(), Called()
    assert call.generate(INSTRUCTION, width=64, height=32) == {"prompt": INSTRUCTION, "size": (64, 32)}
    expected = {"prompt": INSTRUCTION, "image": image, "mask": "M"}
    assert call.inpaint(INSTRUCTION, image, "M") == call.inpaint(image, INSTRUCTION, "M") == expected
    assert call.inpaint(prompt=INSTRUCTION, image=image, mask_image="M") == expected
    with pytest.raises(SettingsError, match="width and height"):
        call.generate(INSTRUCTION, width=64)


class Generator:
    """As PyTorch's."""

    def initial_seed(self):
        return 11


def test_generators():
    def seed(generator):
        return Called().edit(None, INSTRUCTION, generator=generator)["seed"]

    key = jax.random.split(jax.random.key(5))[1]
    assert (seed(None), seed(4), seed(np.int64(4)), seed(Generator())) == (0, 4, 4, 11)
    assert seed(key) == seed(jax.random.key_data(key)) == int(jax.random.bits(key, dtype=np.uint32))
    for wrong in (jax.random.split(key), np.ones(2)):
        with pytest.raises(SettingsError, match="one JAX key"):
            seed(wrong)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"seed": 1, "generator": 2}, "seed is given twice: as generator, too"),
        ({"output_type": "latent"}, "output_type must be 'pil'"),
        ({"return_dict": False}, "return_dict must be True"),
        ({"callback_on_step_end": 3}, "callback_on_step_end must be a function; got 3"),
    ],
)
def test_what_cannot_be_meant_is_refused(pipe, named, message):
    with pytest.raises(SettingsError, match=message):
        pipe(picture(), INSTRUCTION, **named)


def test_places(pipe):
    assert pipe.to("cpu") is pipe
    with pytest.raises(UserError, match="the model lies on cpu, and stays there; got cuda"):
        pipe.to("cuda")


def test_every_public_name_can_be_imported():
    assert all(getattr(editmgt_jax, name) for name in editmgt_jax.__all__)
