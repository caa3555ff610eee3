"""Load a model directory once, then edit pictures, or make them from text: tokenise, decode in one jitted scan, localise,
paint, composite.

Axes    as in `editmgt_jax.config`; n pictures of a result, S steps
Source  released pipelines (edit, text-to-image, inpainting); model directories in the released diffusers layout
Differs held regions, and others whose tokens did not change, come back as the input's own pixels; picture i of a seed does not depend on how many are asked for
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tqdm import tqdm

from editmgt_jax import images
from editmgt_jax.declarations import SETTINGS, SettingsError, check_integer
from editmgt_jax.errors import UserError
from editmgt_jax.images import ImageError
from editmgt_jax.models.prompts import PromptError
from editmgt_jax.models.text import EncodedText
from editmgt_jax.sampling import decode
from editmgt_jax.sampling.edit import Request, TokenEdit, decode_edit, detokenize, tokenize
from editmgt_jax.sampling.settings import Settings
from editmgt_jax.weights.loading import LoadedModel, load_model

MAX_SEED = 2**32 - 1
# Settings that have no meaning without a source image.
NO_REFERENCE = frozenset(setting.name for setting in SETTINGS if setting.about == "reference")
Progress = Callable[[str], None]  # called with the name of each stage as it begins


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """The n pictures of one prompt, and what the model did."""

    images: list[Image.Image]  # of the input's size, or the size asked for
    relevance: np.ndarray  # float32 [n H W], at the step that held, else the last; about 0 to 1
    keep_mask: np.ndarray  # bool [n H W]: tokens held at the source's ids
    token_ids: np.ndarray  # int32 [n H W]
    source_ids: np.ndarray | None  # int32 [H W]; None without a source image
    settings: Settings
    passes: np.ndarray  # int32 [n]: decoding steps taken; fewer than S when the sampler ended early
    step_tokens: np.ndarray | None = None  # int32 [S n H W], recorded
    step_relevance: np.ndarray | None = None  # float32 [S n H W], recorded


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    """One prompt, checked: with an image to edit or to fill, or with none."""

    text: EncodedText
    row: np.ndarray  # float32 [T]: weights of the text tokens in the relevance
    image: Image.Image | None = None
    mask: np.ndarray | None = None  # bool [Y X], True = may change


class _Canvas(NamedTuple):
    """The ids that a job's decode works with."""

    reference: np.ndarray | None  # int32 [H W] that the model attends to and that region hold restores
    start: np.ndarray  # int32 [H W], the mask id where to fill
    source: np.ndarray | None  # int32 [H W] of the job's image


class EditPipeline:
    """Edits pictures with one loaded model; see `__call__`.

    Args:
      model: from `loading.load_model`.
      batch_size: how many pictures are decoded at once at most.
    """

    def __init__(self, model: LoadedModel, batch_size: int = 8):
        self.model, self.batch_size = model, batch_size
        self._mgt_variables, self._vq_params = jax.device_put((model.mgt_variables, model.vq_params))
        self._programs = {}  # compiled decodes by everything that shapes them

    @classmethod
    def from_pretrained(
        cls, directory=None, *, dtype=None, strict: bool = False, batch_size: int = 8, lora=None
    ) -> "EditPipeline":
        """Reads a model directory, or fetches one from the hub by name; None is the default model of the package.

        Args: see `loading.load_model`.
        """
        return cls(load_model(directory, dtype, strict, lora=lora), batch_size)

    @property
    def mask_token_id(self) -> int:
        return self.model.mgt.config.mask_token_id

    # ---- pictures

    def __call__(
        self,
        image,
        instruction,
        *,
        mask=None,
        query=None,
        seed: int = 0,
        num_images: int = 1,
        negative_prompt: str | None = None,
        composite: bool = True,
        progress: Progress | None = None,
        **settings,
    ) -> Result | list[Result]:
        """Edits `image` as `instruction` says.

        Args:
          image: path, PIL image or array (see `images.load`). image, instruction, mask and query may be lists of one
            length, or single to go with all; with any list the result is a list.
          instruction: string, or what `encode` returns.
          mask: picture of the image's size, white = may change.
          query: words of the instruction whose attention localises the edit; by default all of them.
          seed, num_images: picture i is drawn from (seed, i) alone.
          negative_prompt: what guidance leads away from; None is the model's own, "" the empty prompt.
          composite: where anything is held, take the regions whose tokens came out as the source's, the held ones and
            others, from the input picture, past a feathered seam.
          settings: see `editmgt_jax.declarations.SETTINGS`; None or absent is the model's own default.
        Errors: SettingsError, PromptError, ImageError, FileNotFoundError, before any decoding.
        """
        settings, progress = self._checked(seed, num_images, settings), progress or _silent
        inputs = (image, instruction, mask, query)
        return self._change(inputs, True, negative_prompt, seed, num_images, settings, composite, progress)

    def generate(
        self,
        prompt,
        size: tuple[int, int] | None = None,
        *,
        seed: int = 0,
        num_images: int = 1,
        negative_prompt: str | None = None,
        progress: Progress | None = None,
        **settings,
    ) -> Result | list[Result]:
        """Makes pictures of `prompt`, or of each of a list of prompts, from text alone.

        Args:
          size: width and height in pixels, multiples of `model.unit`; by default the square that the model is trained on.
          Others as in `__call__`; settings of region hold and of the reference have no meaning here and are errors.
        """
        settings, progress = self._checked(seed, num_images, settings, NO_REFERENCE), progress or _silent
        width, height = size or (self.model.scheduler.native_size,) * 2
        unit = self.model.unit
        if any(not isinstance(side, int) or side < unit or side % unit for side in (width, height)):
            raise SettingsError(f"width and height must be multiples of {unit} pixels; got {width} x {height}")
        progress("text")
        prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
        _check_prompts(prompts)
        jobs = [_Job(text, self.query_row(text)) for text in self.encode(prompts)]
        negative = self.encode(self._negative(negative_prompt))
        factor = self.model.vq.config.factor
        hidden = np.full((height // factor, width // factor), self.mask_token_id, np.int32)
        canvases = [_Canvas(None, hidden, None)] * len(jobs)
        results = self._results(jobs, canvases, negative, seed, num_images, settings, False, progress)
        return results if isinstance(prompt, (list, tuple)) else results[0]

    def inpaint(
        self,
        image,
        prompt,
        mask,
        *,
        seed: int = 0,
        num_images: int = 1,
        negative_prompt: str | None = None,
        composite: bool = True,
        progress: Progress | None = None,
        **settings,
    ) -> Result | list[Result]:
        """Fills the white parts of `mask` with what `prompt` describes; the model does not see what was there.

        Args: as in `__call__` and `generate`; composite takes what the mask spares from the input, past a feathered seam.
        """
        settings, progress = self._checked(seed, num_images, settings, NO_REFERENCE), progress or _silent
        if mask is None:
            raise ImageError("inpainting needs a mask, white where to fill")
        inputs = (image, prompt, mask, None)
        return self._change(inputs, False, negative_prompt, seed, num_images, settings, composite, progress)

    def outpaint(self, image, prompt, pad: tuple[int, int, int, int], **options) -> Result | list[Result]:
        """Extends a picture by `pad` pixels (left, top, right, bottom) filled with what `prompt` describes.

        Args: options as in `inpaint`. The result has the extended size.
        """
        image = _each(image, images.load)
        mask = _each(image, lambda one: images.padding_mask(one.size, pad))
        return self.inpaint(_each(image, lambda one: images.extend(one, pad)), prompt, mask, **options)

    def paint_steps(self, result: Result, index: int = 0, longest: int = 1024) -> list[Image.Image]:
        """Picture `index` of a recorded result after each step, as the decoder paints it (nothing is composited).

        Tokens that are still hidden are grey. Sides are the result's, scaled so that none is longer than `longest`.
        """
        if result.step_tokens is None:
            raise SettingsError("a result has steps when it was made with record=True; this one was not")
        width, height = result.images[index].size
        scale = min(1.0, longest / max(width, height))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        frames = []
        for ids in result.step_tokens[: result.passes[index], index]:
            pixels = images.hide(np.asarray(self.detokenize(ids[None]))[0], ids == self.mask_token_id)
            frames.append(images.to_image(pixels, size))
        return frames

    # ---- tokens: what evaluation builds on

    def settings(self, **chosen) -> Settings:
        """Checked settings, with the model's own defaults."""
        return Settings.resolve(self.model.scheduler, self.model.mgt.config.num_blocks, **chosen)

    def encode(self, prompt):
        """A prompt, or a list of them -> EncodedText, or a list. Errors: PromptError when one is too long."""
        if isinstance(prompt, (list, tuple)):
            return [self.encode(one) for one in prompt]
        return prompt if isinstance(prompt, EncodedText) else self.model.text.encode(prompt)

    def query_row(self, text: EncodedText, phrase: str | None = None) -> np.ndarray:
        """Weights [T] of the text tokens in the relevance: those of `phrase`, or all the same (Q8)."""
        length = len(text.states)
        if phrase is None:
            return np.full(length, 1 / length, np.float32)
        return self.model.text.tokenizer.span(text.text, phrase)

    def tokenize(self, pixels) -> jax.Array:
        """float [B Y X 3] in [0, 1] -> ids int32 [B H W]"""
        return tokenize(self._vq_params, jnp.asarray(pixels, jnp.float32), self.model.vq)

    def detokenize(self, ids) -> jax.Array:
        """ids [B H W] -> float32 [B Y X 3] in [0, 1]"""
        return detokenize(self._vq_params, jnp.asarray(ids, jnp.int32), self.model.vq)

    def edit_tokens(
        self,
        reference_ids,
        text: Sequence[EncodedText],
        *,
        start_ids=None,
        keys=0,
        negative: EncodedText | str | None = None,
        rows=None,
        relevance_step: int | None = None,
        progress: Progress | None = None,
        **settings,
    ) -> TokenEdit:
        """Decodes a batch of edits on one grid.

        Args:
          reference_ids: int32 [B H W], or None for text-to-image, which needs start_ids; text: B encoded instructions.
          start_ids: int32 [B H W], the mask id where to edit; by default everywhere.
          keys: a seed or a key (sample i draws from fold_in(key, i)), keys [B], or the draws (`decode.Noise`).
          rows: float [B T], see `query_row`; by default all text tokens weigh the same.
          relevance_step: the step whose raw relevance is returned; None is the mean over the steps.
          settings: as in `__call__`.
        """
        settings = self.settings(**settings)
        batch, *grid = np.shape(start_ids if reference_ids is None else reference_ids)
        if len(text) != batch:
            raise UserError(f"each of the {batch} samples needs an encoded instruction; got {len(text)}")
        if relevance_step is not None and relevance_step not in range(settings.steps):
            raise SettingsError(f"relevance_step must lie in 0..{settings.steps - 1}; got {relevance_step}")
        if start_ids is None:
            start_ids = np.full(np.shape(reference_ids), self.mask_token_id)
        if rows is None:
            rows = np.stack([self.query_row(one) for one in text])
        weights = np.full(settings.steps, 1 / settings.steps, np.float32)
        if relevance_step is not None:
            weights = np.eye(settings.steps, dtype=np.float32)[relevance_step]
        convention = self.model.scheduler.timestep_convention
        request = Request(
            reference=None if reference_ids is None else jnp.asarray(reference_ids, jnp.int32),
            start=jnp.asarray(start_ids, jnp.int32),
            text=_stack(text),
            negative=_stack([self.encode(self._negative(negative))] * batch),
            size=jnp.asarray([side * self.model.vq.config.factor for side in reversed(grid)], jnp.float32),
            rows=jnp.asarray(rows, jnp.float32)[:, None],
            keys=_sample_keys(keys, batch),
            step_weights=jnp.asarray(weights),
            knobs=settings.knobs(self.model.scheduler.masking_schedule),
        )
        return self._run(request, settings.plan(convention), progress or _silent)

    # ---- inside

    def _checked(self, seed, num_images, settings, without=frozenset()) -> Settings:
        if foreign := sorted(settings.keys() & without):
            raise SettingsError(f"{foreign} are about a source image that the model attends to; there is none here")
        settings = self.settings(**settings | dict.fromkeys(without & {"hold_threshold"}, 0.0))
        check_integer("num_images", num_images, 1)
        check_integer("seed", seed, 0, MAX_SEED)
        return settings

    def _negative(self, prompt):
        return self.model.scheduler.negative_prompt if prompt is None else prompt

    def _run(self, request, plan, progress) -> TokenEdit:
        key = (plan, jax.tree.map(jnp.shape, request))
        if key not in self._programs:
            progress("compile")
            grid = " x ".join(str(side) for side in reversed(request.start.shape[1:]))
            cached = "cached on disk afterwards" if jax.config.jax_compilation_cache_dir else "for this process"
            tqdm.write(f"compiling for {grid} tokens, first use of these shapes; {cached}", file=sys.stderr)
            lowered = decode_edit.lower(self._mgt_variables, request, self.model.mgt, plan)
            self._programs[key] = lowered.compile()
        progress("decode")
        return self._programs[key](self._mgt_variables, request)

    def _jobs(self, image, instruction, mask, query):
        """Everything that can be wrong with the inputs is found here. -> list of _Job, whether any input was a list"""
        _check_prompts(instruction if isinstance(instruction, (list, tuple)) else [instruction])
        image = _each(image, images.load)
        requests, is_list = _broadcast(image=image, instruction=self.encode(instruction), mask=mask, query=query)

        def job(image, instruction, mask, query):
            mask = None if mask is None else images.load_mask(mask, image.size)
            return _Job(instruction, self.query_row(instruction, query), image, mask)

        return [job(**request) for request in requests], is_list

    def _source_ids(self, jobs) -> list[np.ndarray]:
        """ids [H W] of each job's image; an image that several jobs share is tokenised once."""
        known = {}
        for job in jobs:
            if id(job.image) not in known:
                size = images.working_size(job.image.size, self.model.scheduler.native_size, self.model.unit)
                known[id(job.image)] = np.asarray(self.tokenize(images.to_pixels(job.image, size)[None]))[0]
        return [known[id(job.image)] for job in jobs]

    def _change(self, inputs, attend, negative_prompt, seed, num_images, settings, composite, progress):
        """Changes images (see `_jobs` for the inputs). attend: whether the model sees the image itself, or its mask's rest."""
        progress("text")
        jobs, is_list = self._jobs(*inputs)
        negative = self.encode(self._negative(negative_prompt))
        progress("tokenise")
        canvases = [self._canvas(job, ids, attend) for job, ids in zip(jobs, self._source_ids(jobs), strict=True)]
        results = self._results(jobs, canvases, negative, seed, num_images, settings, composite, progress)
        return results if is_list else results[0]

    def _canvas(self, job, source, attend: bool) -> _Canvas:
        may_change = True if job.mask is None else images.mask_to_grid(job.mask, source.shape)
        start = np.where(may_change, np.int32(self.mask_token_id), source)
        return _Canvas(source if attend else None, start, source)

    def _results(self, jobs, canvases, negative, seed, num_images, settings, composite, progress) -> list[Result]:
        """Decodes and paints `num_images` pictures of every job."""
        edits = {}
        work = [(job, copy) for job in range(len(jobs)) for copy in range(num_images)]
        for chunk in _chunks(work, lambda item: canvases[item[0]].start.shape, self.batch_size):
            output = self._decode_chunk(chunk, jobs, canvases, negative, seed, settings, progress)
            edits.update((item, (output, row)) for row, item in enumerate(chunk))
        progress("paint")
        return [
            self._result(job, canvases[index], [edits[index, copy] for copy in range(num_images)], settings, composite)
            for index, job in enumerate(jobs)
        ]

    def _decode_chunk(self, chunk, jobs, canvases, negative, seed, settings, progress) -> TokenEdit:
        """Decodes (job, copy) items of one grid together. -> arrays on the host"""
        attends = canvases[chunk[0][0]].reference is not None
        output = self.edit_tokens(
            np.stack([canvases[index].reference for index, _ in chunk]) if attends else None,
            [jobs[index].text for index, _ in chunk],
            start_ids=np.stack([canvases[index].start for index, _ in chunk]),
            keys=jnp.stack([jax.random.fold_in(jax.random.key(seed), copy) for _, copy in chunk]),
            negative=negative,
            rows=np.stack([jobs[index].row for index, _ in chunk]),
            progress=progress,
            **vars(settings),
        )
        return jax.device_get(output)

    def _result(self, job, canvas, rows, settings, composite) -> Result:
        """Paints the pictures of one job. rows: (TokenEdit of a chunk, row in it) of each picture."""

        def gather(name, axis=0):
            columns = [(getattr(output, name), row) for output, row in rows]
            return None if columns[0][0] is None else np.stack([np.take(x, row, axis) for x, row in columns], axis)

        tokens, keep = gather("tokens"), gather("keep")
        pictures = []
        for ids, held in zip(tokens, keep, strict=True):
            size = None if job.image is None else job.image.size
            picture = images.to_image(np.asarray(self.detokenize(ids[None]))[0], size)
            if composite and (held.any() or job.mask is not None):
                picture = images.composite(job.image, picture, ids == canvas.source, job.mask)
            pictures.append(picture)
        return Result(
            images=pictures,
            relevance=gather("scores"),
            keep_mask=keep,
            token_ids=tokens,
            source_ids=canvas.source,
            settings=settings,
            passes=gather("passes"),
            step_tokens=gather("step_tokens", axis=1),
            step_relevance=gather("step_scores", axis=1),
        )


def _silent(stage: str) -> None:
    """The progress of callers that do not ask for it."""


def _check_prompts(prompts) -> None:
    for prompt in prompts:
        if not isinstance(prompt, EncodedText) and not (isinstance(prompt, str) and prompt.strip()):
            raise PromptError(f"an instruction must say what to change, a prompt what to show; got {prompt!r}")


def _each(value, function):
    return [function(one) for one in value] if isinstance(value, (list, tuple)) else function(value)


def _broadcast(**inputs):
    """Lists of one length, and single values that go with all -> list of keyword dicts, whether there was a list."""
    lengths = {name: len(value) for name, value in inputs.items() if isinstance(value, (list, tuple))}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise UserError(f"inputs that are lists must have one length, at least 1; got {lengths}")
    count = next(iter(lengths.values()), 1)
    columns = {name: value if name in lengths else [value] * count for name, value in inputs.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(count)], bool(lengths)


def _chunks(work, shape_of, size):
    """Items of one shape in lists of one length of at most `size`; the last one is padded by repeating its end."""
    groups = {}
    for item in work:
        groups.setdefault(shape_of(item), []).append(item)
    for group in groups.values():
        length = min(size, len(group))
        for first in range(0, len(group), length):
            chunk = group[first : first + length]
            yield chunk + chunk[-1:] * (length - len(chunk))


def _stack(text):
    return jnp.stack([one.states for one in text]), jnp.stack([one.pooled for one in text])


def _sample_keys(keys, batch):
    if isinstance(keys, decode.Noise):
        return keys
    return decode.sample_keys(jax.random.key(keys) if isinstance(keys, int) else keys, batch)
