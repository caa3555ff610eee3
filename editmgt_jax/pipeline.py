"""Load a model directory once, then edit pictures, or make them from text: encode, decode in one jitted scan, localise,
paint, composite.

Axes    as in `editmgt_jax.config`; n pictures of a result
Source  released pipelines (edit, text-to-image, inpainting); model directories in the released diffusers layout
Differs held regions, and others whose tokens did not change, come back as the input's own pixels; picture i of a seed does not depend on how many are asked for
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from PIL import Image

from editmgt_jax import images
from editmgt_jax.batching import by_shape, map_batches
from editmgt_jax.declarations import SETTINGS, SettingsError, check_integer, truth
from editmgt_jax.errors import UserError
from editmgt_jax.images import ImageError
from editmgt_jax.models import text as texts
from editmgt_jax.models.blocks import Interventions
from editmgt_jax.models.text import EncodedText
from editmgt_jax.models.vq import ids_to_pixels, pixels_to_ids
from editmgt_jax.sampling.decode import Noise
from editmgt_jax.sampling.edit import TokenEdit
from editmgt_jax.sampling.orders import (
    Canvas,
    Job,
    Order,
    Pictures,
    Progress,
    Prompts,
    check_prompts,
    each,
    encoded,
    query_weights,
    read_jobs,
    read_picture,
    silent,
)
from editmgt_jax.sampling.programs import run_decode
from editmgt_jax.sampling.request import make_request
from editmgt_jax.sampling.results import Result, make_result
from editmgt_jax.sampling.settings import Settings
from editmgt_jax.weights.loading import LoadedModel, load_model

MAX_SEED = 2**32 - 1
# Settings that have no meaning without a source image.
NO_REFERENCE = frozenset(setting.name for setting in SETTINGS if setting.about == "reference")
FRAME = 1024  # pixels of the longest side of a step's picture
PAINTED_PIXELS = 8 * 512**2  # that the image tokenizer encodes or decodes at once at most


class EditPipeline:
    """Edits pictures with one loaded model; see `__call__`.

    Args:
      model: from `loading.load_model`.
      batch_size: how many pictures are decoded at once at most.
    """

    def __init__(self, model: LoadedModel, batch_size: int = 8):
        self.model, self.batch_size = model, batch_size
        self._mgt_variables, self._vq_params = jax.device_put((model.mgt_variables, model.vq_params))

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path | None = None,
        *,
        dtype: DTypeLike | dict[str, DTypeLike] | None = None,
        strict: bool = False,
        batch_size: int = 8,
        lora: str | Path | None = None,
    ) -> "EditPipeline":
        """Reads a model directory, or fetches one from the hub by name; None is the default model of the package.

        Args and errors: see `loading.load_model`.
        """
        return cls(load_model(directory, dtype, strict, lora=lora), batch_size)

    @property
    def mask_token_id(self) -> int:
        """The id of a hidden token."""
        return self.model.mgt.config.mask_token_id

    # ---- pictures

    def __call__(
        self,
        image: Pictures,
        instruction: Prompts,
        *,
        mask: Pictures | None = None,
        query: str | Sequence[str | None] | None = None,
        seed: int = 0,
        num_images: int = 1,
        negative_prompt: str | None = None,
        composite: bool = True,
        released_mask: bool = False,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Result | list[Result]:
        """Edits `image` as `instruction` says.

        Args:
          image: path, PIL image or array (see `images.load`). image, instruction, mask and query may be lists of one
            length, or single to go with all; with any list the result is a list.
          instruction: string, or what `encode` returns.
          mask: picture of the image's size, white = may change; see `images.load_mask`.
          query: words of the instruction whose attention localises the edit; by default all of them.
          seed, num_images: picture i is drawn from (seed, i) alone.
          negative_prompt: what guidance leads away from; None is the model's own, "" the empty prompt.
          composite: where anything is held, take the regions whose tokens came out as the source's, the held ones and
            others, from the input picture, past a feathered seam.
          released_mask: hide from the model what it may change, as the released code does with a mask (Q16).
          settings: see `editmgt_jax.declarations.SETTINGS`; None or absent is the model's own default.
        Errors: SettingsError, PromptError, ImageError, FileNotFoundError, before any decoding.
        """
        options = {"seed": seed, "num_images": num_images, "composite": composite, "released_mask": released_mask}
        order = self._order(settings, negative_prompt, progress, **options)
        if released_mask and order.settings.hold_threshold > 0:
            raise SettingsError("released_mask hides the ids that region hold would restore: set hold_threshold to 0")
        return self._change(order, image, instruction, mask, query)

    def generate(
        self,
        prompt: Prompts,
        size: tuple[int, int] | None = None,
        *,
        seed: int = 0,
        num_images: int = 1,
        negative_prompt: str | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Result | list[Result]:
        """Makes pictures of `prompt`, or of each of a list of prompts, from text alone.

        Args:
          size: width and height in pixels, multiples of `model.unit`; by default the square that the model is trained on.
          Others as in `__call__`; settings of region hold and of the reference have no meaning here.
        Errors: SettingsError, PromptError.
        """
        options = {"seed": seed, "num_images": num_images, "composite": False, "attends": False}
        order = self._order(settings, negative_prompt, progress, **options)
        width, height = size or (self.model.scheduler.native_size,) * 2
        unit = self.model.unit
        if any(not isinstance(side, int) or side < unit or side % unit for side in (width, height)):
            raise SettingsError(f"width and height must be multiples of {unit} pixels; got {width} x {height}")
        is_list = isinstance(prompt, (list, tuple))
        prompts = list(prompt) if is_list else [prompt]
        check_prompts(prompts)
        factor = self.model.vq.config.factor
        hidden = np.full((height // factor, width // factor), self.mask_token_id, np.int32)
        jobs = [Job(text, self.query_weights(text)) for text in self.encode(prompts)]
        results = self._results(order, [Canvas(job, None, hidden, None) for job in jobs])
        return results if is_list else results[0]

    def inpaint(
        self,
        image: Pictures,
        prompt: Prompts,
        mask: Pictures,
        *,
        seed: int = 0,
        num_images: int = 1,
        negative_prompt: str | None = None,
        composite: bool = True,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Result | list[Result]:
        """Fills the white parts of `mask` with what `prompt` describes; the model does not see what was there.

        Args: as in `__call__` and `generate`; composite takes what the mask spares from the input, past a feathered seam.
        Errors: SettingsError, PromptError, ImageError, FileNotFoundError.
        """
        options = {"seed": seed, "num_images": num_images, "composite": composite, "attends": False}
        order = self._order(settings, negative_prompt, progress, **options)
        if mask is None:
            raise ImageError("inpainting needs a mask, white where to fill")
        return self._change(order, image, prompt, mask)

    def outpaint(
        self, image: Pictures, prompt: Prompts, pad: tuple[int, int, int, int], **options: Any
    ) -> Result | list[Result]:
        """Extends a picture by `pad` pixels (left, top, right, bottom) filled with what `prompt` describes.

        Args and errors: as in `inpaint`. The result has the extended size.
        """
        image = each(image, read_picture)
        mask = each(image, lambda one: images.padding_mask(one.size, pad))
        return self.inpaint(each(image, lambda one: images.extend(one, pad)), prompt, mask, **options)

    def paint_steps(self, result: Result, index: int = 0) -> list[Image.Image]:
        """Picture `index` of a recorded result after each step, as the decoder paints it (nothing is composited).

        Tokens that are still hidden are grey. Sides are the result's, scaled so that none is longer than FRAME.
        Errors: SettingsError for a result that was not recorded.
        """
        if result.step_tokens is None:
            raise SettingsError("a result has steps when it was made with record=True; this one was not")
        width, height = result.images[index].size
        scale = min(1.0, FRAME / max(width, height))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        steps = result.step_tokens[: result.passes[index], index]
        painted = map_batches(self.decode_image, steps, self._painted_at_once(steps.shape[1:]))
        hidden = steps == self.mask_token_id
        return [images.to_image(images.hide(*frame), size) for frame in zip(painted, hidden, strict=True)]

    # ---- tokens: what evaluation builds on

    def settings(self, **chosen: Any) -> Settings:
        """Checked settings, with the model's own defaults. Errors: SettingsError."""
        return Settings.resolve(self.model.scheduler, self.model.mgt.config.num_blocks, **chosen)

    def encode(self, prompt: Prompts) -> EncodedText | list[EncodedText]:
        """A prompt, or a list of them -> EncodedText, or a list. Errors: PromptError when one is too long."""
        return each(prompt, lambda one: encoded(self.model.text, one))

    def query_weights(self, text: EncodedText, phrase: str | None = None) -> np.ndarray:
        """Weights [T] of the text tokens in the attention that is read: those of `phrase`, or all the same (Q8)."""
        return query_weights(self.model.text, text, phrase)

    def encode_image(self, pixels: np.ndarray | jax.Array) -> jax.Array:
        """Pictures to ids. float [B Y X 3] in [0, 1] -> ids int32 [B H W]"""
        return pixels_to_ids(self._vq_params, jnp.asarray(pixels, jnp.float32), self.model.vq)

    def decode_image(self, ids: np.ndarray | jax.Array) -> jax.Array:
        """Ids to pictures. int32 [B H W] -> float32 [B Y X 3] in [0, 1]"""
        return ids_to_pixels(self._vq_params, jnp.asarray(ids, jnp.int32), self.model.vq)

    def edit_tokens(
        self,
        reference_ids: np.ndarray | jax.Array | None,
        text: Sequence[EncodedText],
        *,
        start_ids: np.ndarray | jax.Array | None = None,
        keys: int | jax.Array | Noise = 0,
        negative: EncodedText | str | None = None,
        text_weights: np.ndarray | jax.Array | None = None,
        attention_step: int | None = None,
        settings_of: Sequence[Settings] | None = None,
        interventions: Interventions | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> TokenEdit:
        """Decodes a batch of edits on one grid.

        Args:
          reference_ids: int32 [B H W], or None for text-to-image, which needs start_ids; text: B encoded instructions.
          start_ids: int32 [B H W], the mask id where to edit; by default everywhere.
          keys: a seed or a key (sample i draws from fold_in(key, i)), keys [B], or the draws (`decode.Noise`).
          text_weights: float [B T], see `query_weights`; by default all text tokens weigh the same.
          attention_step: the step whose attention is returned; None is the mean over the steps.
          settings_of: the settings of each sample, instead of `settings`; they may differ in what is traced.
          interventions: blocks that each sample bypasses, and attention that is switched off, [J B]: for research.
          settings: as in `__call__`.
        Errors: SettingsError, UserError.
        """
        return self._decode(
            settings_of or self.settings(**settings),
            text,
            self._negative(negative),
            progress or silent,
            reference=reference_ids,
            start=start_ids,
            keys=keys,
            text_weights=text_weights,
            attention_step=attention_step,
            interventions=interventions,
        )

    # ---- inside

    def _order(
        self, settings, negative_prompt, progress, *, seed, num_images, composite, attends=True, released_mask=False
    ) -> Order:
        """Checks what a call asks for besides its inputs. Without `attends`, settings of the reference are errors."""
        if not attends:
            if foreign := sorted(settings.keys() & NO_REFERENCE):
                raise SettingsError(f"{foreign} are about a source image that the model attends to; there is none here")
            settings = settings | {"hold_threshold": 0.0}
        settings = self.settings(**settings)
        check_integer("num_images", num_images, 1)
        check_integer("seed", seed, 0, MAX_SEED)
        truth("composite", composite)
        truth("released_mask", released_mask)
        if not (progress is None or callable(progress)):
            raise SettingsError(f"progress must be a function of the name of a stage; got {progress!r}")
        progress = progress or silent
        progress("text")
        return Order(
            settings=settings,
            negative=self._negative(negative_prompt),
            seed=seed,
            num_images=num_images,
            attends=attends,
            composite=composite,
            released_mask=released_mask,
            progress=progress,
        )

    def _negative(self, prompt) -> EncodedText:
        return self.encode(self.model.scheduler.negative_prompt if prompt is None else prompt)

    def _change(self, order, image, instruction, mask, query=None):
        """Edits or fills images; the inputs may be lists."""
        jobs, is_list = read_jobs(self.model.text, image, instruction, mask, query, sees_all=order.attends)
        order.progress("tokenize")
        canvases = [self._canvas(order, job, ids) for job, ids in zip(jobs, self._source_ids(jobs), strict=True)]
        results = self._results(order, canvases)
        return results if is_list else results[0]

    def _source_ids(self, jobs) -> list[np.ndarray]:
        """ids [H W] of each job's image; an image that several jobs share is encoded once."""
        model, factor = self.model, self.model.vq.config.factor

        def grid(image):
            width, height = images.working_size(image.size, model.scheduler.native_size, model.unit)
            return height // factor, width // factor

        known, distinct = {}, {id(job.image): job.image for job in jobs}.values()
        for (rows, columns), batch, count in by_shape(distinct, grid, self._painted_at_once):
            pixels = np.stack([images.to_pixels(image, (columns * factor, rows * factor)) for image in batch])
            ids = np.asarray(self.encode_image(pixels))
            known |= {id(image): ids[i] for i, image in enumerate(batch[:count])}
        return [known[id(job.image)] for job in jobs]

    def _painted_at_once(self, grid) -> int:
        """How many pictures of a grid the image tokenizer works on together."""
        pixels = grid[0] * grid[1] * self.model.vq.config.factor**2
        return max(1, min(self.batch_size, PAINTED_PIXELS // pixels))

    def _canvas(self, order, job, source) -> Canvas:
        may_change = True if job.mask is None else images.mask_to_grid(job.mask, source.shape)
        start = np.where(may_change, np.int32(self.mask_token_id), source)
        reference = (start if order.released_mask and job.mask is not None else source) if order.attends else None
        return Canvas(job, reference, start, source)

    def _results(self, order, canvases) -> list[Result]:
        """Decodes and paints the pictures of every canvas."""
        work = [(index, copy) for index in range(len(canvases)) for copy in range(order.num_images)]
        edits, pixels = {}, {}
        for _, batch, count in by_shape(work, lambda item: canvases[item[0]].start.shape, lambda _: self.batch_size):
            output = self._decode_batch(order, [(canvases[index], copy) for index, copy in batch])
            edits |= {item: output.sample(i) for i, item in enumerate(batch[:count])}
        order.progress("paint")
        for _, batch, count in by_shape(work, lambda item: edits[item].tokens.shape, self._painted_at_once):
            painted = np.asarray(self.decode_image(np.stack([edits[item].tokens for item in batch])))
            pixels |= {item: painted[i] for i, item in enumerate(batch[:count])}
        copies = range(order.num_images)
        return [
            make_result(order, canvas, [edits[i, copy] for copy in copies], [pixels[i, copy] for copy in copies])
            for i, canvas in enumerate(canvases)
        ]

    def _decode_batch(self, order, batch) -> TokenEdit:
        """Decodes (canvas, number of its picture) of one grid together. -> arrays on the host"""
        canvases = [canvas for canvas, _ in batch]
        output = self._decode(
            order.settings,
            [canvas.job.text for canvas in canvases],
            order.negative,
            order.progress,
            reference=np.stack([canvas.reference for canvas in canvases]) if order.attends else None,
            start=np.stack([canvas.start for canvas in canvases]),
            keys=jnp.stack([jax.random.fold_in(jax.random.key(order.seed), copy) for _, copy in batch]),
            text_weights=np.stack([canvas.job.text_weights for canvas in canvases]),
        )
        return jax.device_get(output)

    def _decode(self, settings, text, negative, progress, **inputs) -> TokenEdit:
        """Decodes B samples. inputs: see `make_request`."""
        batch = len(inputs["start"] if inputs["reference"] is None else inputs["reference"])
        if len(text) != batch:
            raise UserError(f"each of the {batch} samples needs an encoded instruction; got {len(text)}")
        request, static = make_request(
            settings,
            self.model.scheduler,
            self.model.vq.config.factor,
            texts.stack(text),
            texts.stack([negative] * batch),
            **inputs,
        )
        return self._run(request, static, progress)

    def _run(self, request, static, progress) -> TokenEdit:
        return run_decode(self._mgt_variables, request, self.model.mgt, static, progress)
