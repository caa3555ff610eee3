"""Recipes: the note in a result repeats its edit, and nothing else."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image
from test_pipeline import INSTRUCTION, picture

from editmgt_jax import cli, images
from editmgt_jax.pipeline import EditPipeline, recipes

CALL = {"seed": 5, "query": "car", "hold_threshold": 0.2, "guidance_scale": 3.0, "negative_prompt": "a tree"}


@pytest.fixture(scope="module")
def made(pipe, tmp_path_factory):
    """-> (folder with in.png and its edit result.png, the result)"""
    folder = tmp_path_factory.mktemp("recipe")
    picture().save(folder / "in.png")
    image = images.load(folder / "in.png", keep_profile=True)
    mask = np.zeros((32, 32), bool)
    mask[:20, 3:] = True
    call = {"image": image, "instruction": INSTRUCTION, "mask": mask} | CALL
    result = pipe(**call)
    recipe = recipes.recipe_of(call, result, pipe.model.fingerprint())
    recipes.write_recipe(result.images[0], recipe, folder / "result.png")
    return folder, result


def edit(folder, model, *words):
    files = ["--image", folder / "in.png", "--output", folder / "again.png", "--from", folder / "result.png"]
    return cli.main(["edit", "--model", str(model), *map(str, [*files, *words])])


def test_the_command_repeats_the_edit_exactly(made, tiny_model):
    folder, result = made
    assert edit(folder, tiny_model, "--save-mask", folder / "mask.png") == 0
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "again.png")), np.asarray(result.images[0]))
    expected = images.mask_picture(result.keep_mask[0], (32, 32))
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "mask.png")), np.asarray(expected))


def test_the_note_is_read_as_it_was_and_has_no_picture(made):
    folder, result = made
    recipe = recipes.read_recipe(folder / "result.png")
    assert {name: recipe.call[name] for name in CALL} == CALL and recipe.call["mask"].sum() == 20 * 29
    assert recipe.call["steps"] == result.settings.steps and recipe.call["layers"] == result.settings.layers
    text = images.read_notes(folder / "result.png")["editmgt"]
    assert len(text) < 2000 and recipe.to_json() == text


def test_what_does_not_fit_is_refused(made, tiny_model, tmp_path, capsys):
    folder, _ = made

    def refused(message, *words):
        assert edit(folder, tiny_model, *words) == 2
        assert message in capsys.readouterr().err

    picture(seed=9).save(tmp_path / "other.png")
    refused("the image is another one", "--image", tmp_path / "other.png")
    refused("leave --seed out", "--seed", 3)
    refused("leave --hold-threshold out", "--hold-threshold", 0.5)
    refused("has none", "--from", folder / "in.png")
    refused("must not replace what is read", "--output", folder / "result.png")
    assert cli.main(["edit", "--image", str(folder / "in.png"), "--output", str(folder / "again.png")]) == 2
    assert "needs --instruction, or --from" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [{"seed": "x"}, {"instruction": None}, {"path": "/etc/passwd"}, {"mask": "no picture"}],
    ids=str,
)
def test_damaged_recipes(made, tmp_path, change):
    values = json.loads(recipes.read_recipe(made[0] / "result.png").to_json())
    values["call"] |= change
    images.save(picture(), tmp_path / "bad.png", {"editmgt": json.dumps(values)})
    with pytest.raises(recipes.RecipeError, match="damaged, or of another version"):
        recipes.read_recipe(tmp_path / "bad.png")


@pytest.mark.parametrize("part", ["mgt_params", "vq_params"])
def test_other_weights_are_another_model(made, pipe, part):
    folder, _ = made
    recipe, image = recipes.read_recipe(folder / "result.png"), images.load(folder / "in.png", keep_profile=True)
    recipe.check(pipe, image)
    changed = jax.tree.map(lambda leaf: leaf + 1, getattr(pipe.model, part))
    other = EditPipeline(dataclasses.replace(pipe.model, **{part: changed}))
    with pytest.raises(recipes.RecipeError, match="other weights"):
        recipe.check(other, image)
