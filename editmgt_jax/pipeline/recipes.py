"""Recipes: what repeats an edit to the last bit, as a note in the PNG of its result.

A recipe has the instruction, the seed, all settings, the mask, and hashes of the input picture and of the weights. It does not
have the input picture, so that a result can be shown without what was edited away.
"""

import base64
import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from editmgt_jax import images
from editmgt_jax.declarations import SETTINGS
from editmgt_jax.errors import UserError
from editmgt_jax.images import ImageError
from editmgt_jax.pipeline.pictures import EditPipeline
from editmgt_jax.sampling.results import Result

KEY = "editmgt"  # of the note in a PNG
_CALL = {"instruction": str, "query": str | None, "negative_prompt": str | None, "seed": int, "composite": bool}
_SETTINGS = [setting.name for setting in SETTINGS if setting.about != "result"]


class RecipeError(UserError):
    """A recipe that is none, or that does not fit what it is used with."""


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """The first picture of an edit."""

    call: dict[str, Any]  # keyword arguments of `EditPipeline.__call__` but the image
    image: str  # hash of the input picture
    weights: str  # the model's `fingerprint`

    def to_json(self) -> str:
        """The note."""
        call = dict(self.call)
        if call.get("mask") is not None:
            call["mask"] = _mask_text(call["mask"])
        return json.dumps({"call": call, "image": self.image, "weights": self.weights})

    def check(self, pipe: EditPipeline, image: Image.Image) -> None:
        """Errors: RecipeError for another input picture, or another model."""
        if picture_hash(image) != self.image:
            raise RecipeError("a recipe repeats the edit of one picture; the image is another one: its pixels differ")
        if pipe.model.fingerprint() != self.weights:
            raise RecipeError(
                "a recipe repeats the edit of one model; this one has other weights, or other types of them"
            )


def recipe_of(call: dict[str, Any], result: Result, weights: str) -> Recipe:
    """The recipe of a result.

    Args:
      call: keyword arguments that made it, with the image; weights: `fingerprint` of the model's.
    """
    names = {"instruction": "", "query": None, "negative_prompt": None, "seed": 0, "composite": True}
    kept = {name: call.get(name, default) for name, default in names.items()} | {"mask": call.get("mask")}
    settings = {name: getattr(result.settings, name) for name in _SETTINGS}
    return Recipe(kept | settings, picture_hash(call["image"]), weights)


def picture_hash(image: Image.Image) -> str:
    """Of the size, the pixels and the colour profile of an input picture, as `images.load` gives it."""
    found = hashlib.sha256(repr((image.mode, image.size)).encode())
    found.update(image.tobytes())
    found.update(image.info.get("icc_profile") or b"")
    return found.hexdigest()


def write_recipe(image: Image.Image, recipe: Recipe, path: str | Path) -> None:
    """Writes a result as PNG with its recipe. Errors: those of `images.save`."""
    images.save(image, path, {KEY: recipe.to_json()})


def read_recipe(path: str | Path) -> Recipe:
    """The recipe of a PNG. Errors: FileNotFoundError; RecipeError where it has none that this version understands."""
    text = images.read_notes(path).get(KEY)
    if text is None:
        raise RecipeError(f"a recipe is in a PNG that the page of `editmgt serve` gave; {path} has none")
    try:
        return _read(json.loads(text))
    except (ValueError, KeyError, TypeError, ImageError) as error:
        raise RecipeError(f"the recipe of {path} is damaged, or of another version: {error}") from error


def _read(values) -> Recipe:
    call = dict(values["call"])
    for name, kind in _CALL.items():
        if not isinstance(call[name], kind):
            raise ValueError(f"{name} is {call[name]!r}")
    if unknown := sorted(call.keys() - _CALL.keys() - {"mask", *_SETTINGS}):
        raise ValueError(f"there is no setting {unknown[0]!r}")
    if call["mask"] is not None:
        call["mask"] = _mask_of(call["mask"])
    for setting in SETTINGS:
        if setting.length != "one" and isinstance(call.get(setting.name), list):
            call[setting.name] = tuple(call[setting.name])
    return Recipe(call, str(values["image"]), str(values["weights"]))


def _mask_text(mask) -> str:
    """A mask [Y X] as a PNG of one bit a pixel, base64."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(mask, bool)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _mask_of(text) -> np.ndarray:
    image = images.load(base64.b64decode(text, validate=True), "the mask of the recipe")
    return np.asarray(image)[..., 0] > 127
