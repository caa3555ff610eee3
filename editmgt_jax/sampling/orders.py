"""What a call of the pipeline asks for: its inputs, read once and checked before any decoding.

Axes    as in `editmgt_jax.config`; Y X pixels
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from editmgt_jax import images
from editmgt_jax.declarations import MAX_IMAGES, MAX_SEED, SettingsError, check_integer, truth
from editmgt_jax.errors import UserError
from editmgt_jax.models.prompts import PromptError, check_text
from editmgt_jax.models.text import EncodedText, TextEncoder
from editmgt_jax.sampling.settings import Settings

# One for all of a call, or a list with one for each.
Pictures = images.Readable | Sequence[images.Readable]
Prompts = str | EncodedText | Sequence[str | EncodedText]
Progress = Callable[[str], None]  # called with the name of each stage as it begins


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """What a call asks of every one of its pictures, checked and resolved."""

    settings: Settings
    negative: EncodedText
    seed: int
    num_images: int
    attends: bool  # whether the model sees the image that it changes, or only the rest of its mask
    composite: bool
    released_mask: bool  # whether the reference has the mask id wherever the image may change (Q16)
    progress: Progress


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One prompt, checked: with an image to edit or to fill, or with none."""

    text: EncodedText
    text_weights: np.ndarray  # float32 [T]: weights of the text tokens in the attention that is read
    image: Image.Image | None = None  # filled under the mask, if the model must not see it
    mask: np.ndarray | None = None  # bool [Y X], True = may change


class Canvas(NamedTuple):
    """A job, and the ids that its decode works with."""

    job: Job
    reference: np.ndarray | None  # int32 [H W] that the model attends to and that region hold restores
    start: np.ndarray  # int32 [H W], the mask id where to fill
    source: np.ndarray | None  # int32 [H W] of the job's image


def read_jobs(
    encoder: TextEncoder, image: Any, instruction: Any, mask: Any = None, query: Any = None, sees_all: bool = True
) -> tuple[list[Job], bool]:
    """Reads the inputs of a call, each of them once. -> (jobs, whether any input was a list)

    Args: those of `EditPipeline.__call__`; sees_all: whether the model may see what is under the mask.
    Errors: PromptError, ImageError, FileNotFoundError, UserError: all that can be wrong with the inputs is found here.
    """
    check_prompts(instruction if isinstance(instruction, (list, tuple)) else [instruction])
    texts = each(instruction, lambda prompt: encoded(encoder, prompt))
    inputs, is_list = broadcast(image=each(image, read_picture), text=texts, mask=mask, query=query)
    masks, pictures = {}, {}

    def job(image, text, mask, query):
        weights = query_weights(encoder, text, query)
        if mask is None:
            return Job(text, weights, image)
        key = id(mask), image.size
        if key not in masks:
            masks[key] = images.load_mask(mask, image.size)
        key += (id(image),)
        if key not in pictures:
            pictures[key] = image if sees_all else images.fill(image, masks[key[:2]])
        return Job(text, weights, pictures[key], masks[key[:2]])

    return [job(**each_input) for each_input in inputs], is_list


def check_call(seed: Any, num_images: Any, progress: Any, **flags: Any) -> None:
    """Errors: SettingsError for arguments of a call that are no settings and out of range; `flags` are true or false."""
    check_integer("num_images", num_images, 1, MAX_IMAGES)
    check_integer("seed", seed, 0, MAX_SEED)
    for name, value in flags.items():
        truth(name, value)
    if not (progress is None or callable(progress)):
        raise SettingsError(f"progress must be a function of the name of a stage; got {progress!r}")


def read_picture(image: Any) -> Image.Image:
    """An input picture, in its own colour profile. Errors: ImageError, FileNotFoundError."""
    return images.load(image, keep_profile=True)


def encoded(encoder: TextEncoder, prompt: str | EncodedText) -> EncodedText:
    """Errors: PromptError when the prompt is no text, or too long."""
    if isinstance(prompt, EncodedText):
        return prompt
    check_text(prompt)
    return encoder.encode(prompt)


def query_weights(encoder: TextEncoder, text: EncodedText, phrase: str | None = None) -> np.ndarray:
    """Weights [T] of the text tokens in the attention that is read: those of `phrase`, or all the same (Q8). Errors: PromptError."""
    if phrase is None:
        return np.full(len(text.states), 1 / len(text.states), np.float32)
    return encoder.weights(text, phrase)


def check_prompts(prompts: Sequence[Any]) -> None:
    """Errors: PromptError for a prompt that says nothing."""
    for prompt in prompts:
        if not isinstance(prompt, EncodedText) and not (isinstance(prompt, str) and _says_something(prompt)):
            raise PromptError(f"an instruction must say what to change, a prompt what to show; got {repr(prompt)[:80]}")


def _says_something(text) -> bool:
    """Whether a letter of a text can be seen, or cannot be read at all, which `check_text` tells."""
    return any(letter.isprintable() and not letter.isspace() or "\ud800" <= letter <= "\udfff" for letter in text)


def each(value: Any, function: Callable) -> Any:
    """The function of every one of a list, or of a single value."""
    return [function(one) for one in value] if isinstance(value, (list, tuple)) else function(value)


def broadcast(**inputs: Any) -> tuple[list[dict], bool]:
    """Lists of one length, and single values that go with all -> list of keyword dicts, whether there was a list."""
    lengths = {name: len(value) for name, value in inputs.items() if isinstance(value, (list, tuple))}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise UserError(f"inputs that are lists must have one length, at least 1; got {lengths}")
    count = next(iter(lengths.values()), 1)
    columns = {name: value if name in lengths else [value] * count for name, value in inputs.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(count)], bool(lengths)


def silent(stage: str) -> None:
    """The progress of callers that do not ask for it."""
