"""A form of `POST /v1/images/edits`, or the JSON of `/v1/images/generations` -> what the pipeline is called with, checked.

Source  OpenAI's images API; seed, negative_prompt, guidance_scale and num_inference_steps as other servers have them; the other
        settings of an edit by their own names
"""

import dataclasses
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, UnidentifiedImageError

from editmgt_jax import images
from editmgt_jax.declarations import SETTINGS, SettingsError
from editmgt_jax.errors import EditMGTError
from editmgt_jax.images import ImageError
from editmgt_jax.pipeline.diffusers_names import NAMES
from editmgt_jax.serving.errors import ApiError, bad
from editmgt_jax.serving.limits import Limits

SETTING_NAMES = {setting.name: setting for setting in SETTINGS if setting.about != "result"}
ALIASES = {theirs: ours for theirs, ours in NAMES.items() if ours in SETTING_NAMES}
# Fields of OpenAI's API that choose among its own models' qualities: their values are checked, and change nothing here.
WITHOUT_EFFECT = {
    "quality": ("auto", "low", "medium", "high", "standard", "hd"),
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "input_fidelity": ("low", "high"),
    "style": ("vivid", "natural"),
}
FORMATS = ("png", "jpeg", "webp")
MOST_PARTIAL = 3
SHOWN = 60  # letters of a value in a message


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """A request, read."""

    call: dict[str, Any]  # keyword arguments of the pipeline
    size: tuple[int, int] | None  # of the answer; None is the picture's own, or the model's
    output_format: str
    compression: int  # 0 to 100, of jpeg and webp their quality
    as_url: bool
    stream: bool
    partial_images: int


class Fields:
    """The fields of a request; each is taken once, and what is left at the end is unknown."""

    def __init__(self, values: Mapping[str, Sequence[Any]]):
        self._values = {name: list(found) for name, found in values.items()}

    def every(self, *names: str) -> list[Any]:
        """All values of fields that mean the same."""
        return [value for name in names for value in self._values.pop(name, [])]

    def text(self, name: str) -> str | None:
        """One text; None where there is none. Errors: ApiError."""
        values = self.every(name)
        if len(values) > 1:
            raise bad(f"{name} may be given once; there are {len(values)}", name)
        value = values[0] if values else None
        if isinstance(value, bool):
            return str(value).lower()
        if value is not None and not isinstance(value, (str, int, float)):
            raise bad(
                f"{name} must be a text; got a file" if hasattr(value, "read") else f"{name} must be one value", name
            )
        if "\0" in str(value):  # which tells of bytes that are no text
            raise bad(f"{name} must be text without NUL; got {_short(str(value))}", name)
        return None if value is None or value == "" else str(value)

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        """One of `choices`. Errors: ApiError."""
        value = self.text(name) or default
        if value not in choices:
            raise bad(f"{name} must be one of {', '.join(choices)}; got {_short(value)}", name)
        return value

    def integer(self, name: str, lowest: int, highest: int, default: int) -> int:
        """Errors: ApiError."""
        value = self.text(name)
        if value is None:
            return default
        try:
            number = int(value)
        except ValueError:
            number = None
        if number is None or not lowest <= number <= highest:
            raise bad(f"{name} must be an integer from {lowest} to {highest}; got {_short(value)}", name)
        return number

    def check_empty(self, known: Sequence[str]) -> None:
        """Errors: ApiError for fields that nobody took."""
        if unknown := sorted(self._values):
            raise bad(
                f"unknown field {_short(unknown[0])}; there are {', '.join(known)}", unknown[0], "unknown_parameter"
            )


def read_edit(values: Mapping[str, Sequence[Any]], model: str, limits: Limits) -> Asked:
    """An edit.

    Args:
      values: the form, each field's values: texts, and of files their bytes; model: the name of the model that is served.
    Errors: ApiError.
    """
    fields = Fields(values)
    given = fields.every("image", "image[]")
    if len(given) != 1:
        raise bad(f"an edit needs exactly one picture in the field image; there are {len(given)}", "image")
    picture = _picture(given[0], "image", limits)
    masks = fields.every("mask")
    if len(masks) > 1:
        raise bad(f"mask may be given once; there are {len(masks)}", "mask")
    call = {"image": picture, "instruction": _prompt(fields)}
    if masks:
        call["mask"] = Image.fromarray(_mask(masks[0], picture.size, limits))
    if (query := fields.text("query")) is not None:
        call["query"] = query
    return _asked(fields, call, model, limits, picture.size)


def read_generation(values: Mapping[str, Sequence[Any]], model: str, limits: Limits) -> Asked:
    """A picture from text alone. Errors: ApiError."""
    fields = Fields(values)
    asked = _asked(fields, {"prompt": _prompt(fields)}, model, limits, None)
    if asked.stream:
        raise bad("pictures from text are not streamed: leave stream out", "stream")
    return (
        asked if asked.size is None else dataclasses.replace(asked, call=asked.call | {"size": asked.size}, size=None)
    )


def _asked(fields, call, model, limits, own_size) -> Asked:
    named = fields.text("model")
    if named not in (None, model):
        raise ApiError(404, f"this server has the model {model!r}; got {_short(named)}", "model", "model_not_found")
    call |= {"num_images": fields.integer("n", 1, limits.images, 1), "seed": fields.integer("seed", 0, 2**32 - 1, 0)}
    if (negative := fields.text("negative_prompt")) is not None:
        call["negative_prompt"] = negative
    call |= _settings(fields)
    stream = fields.choice("stream", ("true", "false"), "false") == "true"
    partial = fields.integer("partial_images", 0, MOST_PARTIAL, 0)
    if stream and call["num_images"] > 1:
        raise bad(f"a stream has one picture: n must be 1; got {call['num_images']}", "n")
    for name, choices in WITHOUT_EFFECT.items():
        fields.choice(name, choices, choices[0])
    fields.text("user")
    asked = Asked(
        call=call,
        size=_size(fields.text("size"), own_size),
        output_format=fields.choice("output_format", FORMATS, "png"),
        compression=fields.integer("output_compression", 0, 100, 95),
        as_url=fields.choice("response_format", ("b64_json", "url"), "b64_json") == "url",
        stream=stream,
        partial_images=partial,
    )
    fields.check_empty(_KNOWN)
    return asked


_KNOWN = (
    *(
        "image",
        "mask",
        "prompt",
        "model",
        "n",
        "size",
        "response_format",
        "output_format",
        "output_compression",
        "stream",
    ),
    *("partial_images", "user", "seed", "negative_prompt", "query", *ALIASES, *SETTING_NAMES, *WITHOUT_EFFECT),
)


def _prompt(fields) -> str:
    prompt = fields.text("prompt")
    if prompt is None or not prompt.strip():
        raise bad("prompt must say what to change, or what to show; it is empty", "prompt")
    return prompt


def _settings(fields) -> dict[str, Any]:
    """The settings of an edit, each checked by its own rule."""
    found = {}
    for alias, name in ALIASES.items():
        if (values := fields.every(alias)) and name not in found:
            found[name] = _value(SETTING_NAMES[name], values, alias)
    for name, setting in SETTING_NAMES.items():
        if values := fields.every(name, f"{name}[]"):
            if name in found:
                raise bad(f"{name} is given twice, by another name too", name)
            found[name] = _value(setting, values, name)
    return found


def _value(setting, values, name):
    words = [word for value in values for word in str(value).replace(",", " ").split()]
    try:
        numbers = tuple(setting.kind(word) for word in words)
    except ValueError:
        one = setting.length == "one"
        kind = ("an integer" if one else "integers") if setting.kind is int else "a number" if one else "numbers"
        raise bad(f"{name} must be {kind} ({setting.help}); got {_short(values[0])}", name) from None
    value = numbers if setting.length != "one" else numbers[0] if len(numbers) == 1 else None
    if value is None or not numbers:
        raise bad(f"{name} must be one value; got {_short(' '.join(words))}", name)
    if setting.length == "pair" and len(numbers) == 1:
        value = numbers[0]
    try:
        if setting.rule is not None:
            setting.rule(name, value)
    except SettingsError as error:
        raise bad(str(error), name) from None
    return value


def _size(text, own) -> tuple[int, int] | None:
    """'auto' or 'WIDTHxHEIGHT', which must have the shape of the picture."""
    if text in (None, "auto"):
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and 0 < int(part) <= 16384 for part in parts):
        raise bad(f"size must be auto or WIDTHxHEIGHT, such as 1024x1024; got {_short(text)}", "size")
    width, height = map(int, parts)
    if own is not None and abs(width * own[1] - height * own[0]) > max(own):
        raise bad(
            f"an edit keeps the shape of its picture, {own[0]}x{own[1]}: size must be auto or have that shape; got {text}",
            "size",
        )
    return width, height


def _picture(data, name, limits) -> Image.Image:
    """A picture of a request. Errors: ApiError, from its header where it is too large."""
    check_header(data, name, limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return images.load(data, f"the {name}", keep_profile=True)
    except (EditMGTError, OSError) as error:
        raise bad(str(error), name, "invalid_image") from None


def _mask(data, size, limits):
    check_header(data, "mask", limits)
    try:
        return images.load_mask(data, size)
    except ImageError as error:
        raise bad(str(error), "mask", "invalid_mask") from None


def check_header(data: Any, name: str, limits: Limits) -> None:
    """Checks the bytes of a picture without decoding it. Errors: ApiError for what is none, or too large."""
    if not isinstance(data, bytes):
        raise bad(f"{name} must be a file", name)
    try:
        with Image.open(io.BytesIO(data)) as picture:
            (width, height), frames = picture.size, getattr(picture, "n_frames", 1)
    except Image.DecompressionBombError:
        raise _too_many_pixels(name, limits, "it has far more") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise bad(f"{name} must be a picture, such as PNG, JPEG or WebP; it is none", name, "invalid_image") from None
    if width * height > limits.pixels:
        raise _too_many_pixels(name, limits, f"it is {width}x{height}")
    if frames > limits.frames:
        raise bad(f"{name} may have {limits.frames} frame; it has {frames}: send one of them", name, "invalid_image")


def _too_many_pixels(name, limits, found) -> ApiError:
    return bad(f"{name} may have at most {limits.pixels} pixels; {found}: make it smaller", name, "image_too_large")


def _short(value: str) -> str:
    """A value of a request in a message."""
    return repr(value if len(value) <= SHOWN else f"{value[:SHOWN]}...")
