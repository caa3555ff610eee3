"""diffusers' names for the arguments of a pipeline: one table, applied before a call.

Source  diffusers' pipelines for editing, inpainting and text-to-image
Differs a decode is one program, so a callback is called when it has run, and cannot change it
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from editmgt_jax.declarations import SettingsError, is_integer
from editmgt_jax.models.text import EncodedText

NAMES = {
    "prompt": "instruction",
    "mask_image": "mask",
    "num_inference_steps": "steps",
    "num_images_per_prompt": "num_images",
    "generator": "seed",
    "torch_dtype": "dtype",
}
# Arguments that have one possible value here.
FIXED = {
    "output_type": "pil",
    "return_dict": True,
    "use_safetensors": True,
    "safety_checker": None,
    "callback_on_step_end_tensor_inputs": ["latents"],
}
CALLBACK = "callback_on_step_end"


def takes_diffusers_names(method: Callable) -> Callable:
    """A method of a pipeline that may also be called as diffusers' pipelines are: by the names of the table, with
    the prompt before the image, and with a callback.

    callback(pipeline, step, timestep, {"latents": ids}) is called for each step of each result, when the decode has run:
    step counts from 0, timestep down to 0, and ids are int32 [n H W] after the step.
    Errors: SettingsError for an argument that is given by two names, or has one possible value and another one came.
    """
    own = set(inspect.signature(method).parameters)

    @functools.wraps(method)
    def called(self, *inputs, **named):
        callback = named.pop(CALLBACK, None)
        if callback is not None:
            if not callable(callback):
                raise SettingsError(f"{CALLBACK} must be a function; got {callback!r}")
            named["record"] = True
        inputs, named = translated(inputs, named, own)
        made = method(self, *inputs, **named)
        if callback is not None:
            for result in made if isinstance(made, list) else [made]:
                _call_back(self, callback, result.step_tokens)
        return made

    return called


def translated(inputs: Sequence[Any], named: Mapping[str, Any], own: set[str]) -> tuple[tuple, dict[str, Any]]:
    """Arguments by our names.

    Args:
      inputs, named: those of a call; own: the names of the function's parameters, which are left as they are.
    Errors: SettingsError.
    """
    found = {}
    for name, value in named.items():
        if name in FIXED and name not in own:
            if value != FIXED[name]:
                raise SettingsError(f"{name} must be {FIXED[name]!r}, or be left out; got {value!r}")
            continue
        ours = name if name in own else NAMES.get(name, name)
        if ours in found or (ours != name and ours in named):
            raise SettingsError(f"{ours} is given twice: as {name}, too")
        found[ours] = _VALUES.get(name, _same)(value)
    if "size" in own and found.keys() & {"width", "height"}:
        if not {"width", "height"} <= found.keys() or "size" in found:
            raise SettingsError("a size is width and height, or size=(width, height)")
        found["size"] = found.pop("width"), found.pop("height")
    prompt = "prompt" if "prompt" in own else "instruction"
    if "image" in own:
        if "image" in found and len(inputs) == 1:
            return (), {prompt: inputs[0]} | found
        if len(inputs) > 1 and _is_text(inputs[0]) and not _is_text(inputs[1]):
            return (inputs[1], inputs[0], *inputs[2:]), found
    return tuple(inputs), found


def _call_back(pipeline, callback, steps) -> None:
    for step, ids in enumerate(steps):
        given = {"latents": ids}
        returned = callback(pipeline, step, len(steps) - 1 - step, given)
        changed = (returned or given).get("latents", ids)
        if changed is not ids and not np.array_equal(changed, ids):
            raise SettingsError(f"{CALLBACK} cannot change the tokens of a step: the decode has run; return nothing")


def _is_text(value) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_is_text, value))
    return isinstance(value, (str, EncodedText))


def _same(value):
    return value


def _seed_of(generator):
    """A seed as it is; of PyTorch's generators their seed; of a JAX key 32 bits drawn from it."""
    if generator is None:
        return 0
    if callable(getattr(generator, "initial_seed", None)):
        return generator.initial_seed()
    if isinstance(generator, (jax.Array, np.ndarray)) and not is_integer(generator):
        is_key = jnp.issubdtype(generator.dtype, jax.dtypes.prng_key) and generator.shape == ()
        if not is_key and not (generator.dtype == np.uint32 and generator.ndim == 1):
            raise SettingsError("generator must be an integer or one JAX key; got an array that is none")
        return int(jax.random.bits(generator, dtype=jnp.uint32))
    if not is_integer(generator):
        raise SettingsError(f"generator must be an integer, PyTorch's, or one JAX key; got {generator!r}")
    return generator


def _dtype_of(dtype):
    """A dtype as it is; of PyTorch's its name."""
    return str(dtype).removeprefix("torch.") if type(dtype).__module__ == "torch" else dtype


_VALUES = {"generator": _seed_of, "torch_dtype": _dtype_of}
