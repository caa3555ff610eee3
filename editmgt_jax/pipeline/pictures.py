"""Load a model directory once, then edit pictures, or make them from text: encode, decode in one jitted scan, localise,
paint, composite.

Axes    as in `editmgt_jax.config`; n pictures of a result
Source  released pipelines (edit, text-to-image, inpainting); model directories in the released diffusers layout
Differs held regions, and others whose tokens did not change, come back as the input's own pixels; picture i of a seed does not depend on how many are asked for
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from editmgt_jax import executables, images
from editmgt_jax.batching import by_shape, map_batches, power_of_two
from editmgt_jax.declarations import SETTINGS, SettingsError
from editmgt_jax.errors import EditMGTError, UserError
from editmgt_jax.images import ImageError
from editmgt_jax.pipeline.diffusers_names import takes_diffusers_names
from editmgt_jax.pipeline.tokens import TokenPipeline
from editmgt_jax.sampling.decode import picture_keys
from editmgt_jax.sampling.edit import TokenEdit
from editmgt_jax.sampling.orders import (
    Canvas,
    Job,
    Order,
    Pictures,
    Progress,
    Prompts,
    check_call,
    check_prompts,
    each,
    read_jobs,
    read_picture,
    silent,
)
from editmgt_jax.sampling.programs import check_process
from editmgt_jax.sampling.results import Result, Results, make_result

# Settings that have no meaning without a source image.
NO_REFERENCE = frozenset(setting.name for setting in SETTINGS if setting.about == "reference")
FRAME = 1024  # pixels of the longest side of a step's picture
PAINTED_PIXELS = 8 * 512**2  # that the image tokenizer encodes or decodes at once at most


class EditPipeline(TokenPipeline):
    """Edits pictures with one loaded model; see `__call__`. diffusers' names of arguments are taken, too: `diffusers_names`."""

    @takes_diffusers_names
    def __call__(
        self,
        image: Pictures,
        instruction: Prompts,
        *misplaced: Any,
        mask: Pictures | None = None,
        query: str | Sequence[str | None] | None = None,
        seed: int = 0,
        num_images: int = 1,
        negative_prompt: str | None = None,
        composite: bool = True,
        released_mask: bool = False,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Result | Results:
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
        if misplaced:
            raise SettingsError("mask and all that follows are keywords, mask=...; got another positional argument")
        options = {"seed": seed, "num_images": num_images, "composite": composite, "released_mask": released_mask}
        return self._change(
            self._edit_order(settings, negative_prompt, progress, **options), image, instruction, mask, query
        )

    @takes_diffusers_names
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
    ) -> Result | Results:
        """Makes pictures of `prompt`, or of each of a list of prompts, from text alone.

        Args:
          size: width and height in pixels, multiples of `model.unit`; by default the square that the model is trained on.
          Others as in `__call__`; settings of region hold and of the reference have no meaning here.
        Errors: SettingsError, PromptError.
        """
        options = {"seed": seed, "num_images": num_images, "composite": False, "attends": False}
        order = self._order(settings, negative_prompt, progress, **options)
        grid = self._grid(size, min(self.batch_size, order.num_images))
        is_list = isinstance(prompt, (list, tuple))
        prompts = list(prompt) if is_list else [prompt]
        check_prompts(prompts)
        factor = self.model.vq.config.factor
        sizes = [(grid[1] * factor, grid[0] * factor)] * len(prompts)
        self._check_room(order, sizes, sizes)
        self._note_editor(order)
        hidden = np.full(grid, self.mask_token_id, np.int32)
        jobs = [Job(text, self.query_weights(text)) for text in self.encode(prompts)]
        results = self._results([(order, Canvas(job, None, hidden, None)) for job in jobs])
        return Results(results) if is_list else results[0]

    @takes_diffusers_names
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
    ) -> Result | Results:
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
    ) -> Result | Results:
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
        if not isinstance(result, Result):
            raise UserError(f"paint_steps takes a result of this pipeline; got {type(result).__name__}")
        if result.step_tokens is None:
            raise SettingsError("a result has steps when it was made with record=True; this one was not")
        width, height = result.images[index].size
        scale = min(1.0, FRAME / max(width, height))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        steps = result.step_tokens[: result.passes[index], index]
        painted = map_batches(self.decode_image, steps, self._painted_at_once(steps.shape[1:]))
        hidden = steps == self.mask_token_id
        return [images.to_image(images.hide(*frame), size) for frame in zip(painted, hidden, strict=True)]

    def together(self, calls: Sequence[Mapping[str, Any]]) -> list[Result | EditMGTError]:
        """Edits of separate calls, decoded together where grid, steps and static settings are the same. For servers.

        Args:
          calls: keyword arguments of `__call__` each, of one picture and one instruction. Batches are filled up to powers of
            two, so that few programs are compiled.
        Returns: the result of each call, or its error where it is wrong; the others do not depend on it.
        """
        results: list[Any] = [None] * len(calls)
        work = {}
        for number, call in enumerate(calls):
            try:
                work[number] = self._read(**call)
            except (EditMGTError, OSError) as error:
                results[number] = error
        source_ids = self._source_ids([job for _, job in work.values()], apart=True)
        canvases = [
            (order, self._canvas(order, job, ids)) for (order, job), ids in zip(work.values(), source_ids, strict=True)
        ]
        for number, result in zip(work, self._results(canvases, apart=True), strict=True):
            results[number] = result
        return results

    # ---- inside

    def _order(
        self, settings, negative_prompt, progress, *, seed, num_images, composite, attends=True, released_mask=False
    ) -> Order:
        """Checks what a call asks for besides its inputs. Without `attends`, settings of the reference are errors."""
        if not attends:
            if foreign := sorted(settings.keys() & NO_REFERENCE):
                raise SettingsError(f"{foreign} are about a source image that the model attends to; there is none here")
            settings = settings | {"hold_threshold": 0.0}
        check_process()
        settings = self.settings(**settings)
        check_call(seed, num_images, progress, composite=composite, released_mask=released_mask)
        progress = progress or silent
        progress("text")
        return Order(
            settings=settings,
            negative=self._negative(negative_prompt),
            seed=int(seed),
            num_images=int(num_images),
            attends=attends,
            composite=composite,
            released_mask=released_mask,
            progress=progress,
        )

    def _note_editor(self, order) -> None:
        if not order.attends and self.model.is_editor:
            warnings.warn("this model is an editor: it was not trained to make pictures from text", stacklevel=4)

    def _edit_order(self, settings, negative_prompt, progress, *, released_mask, **options) -> Order:
        order = self._order(settings, negative_prompt, progress, released_mask=released_mask, **options)
        if released_mask and order.settings.hold_threshold > 0:
            raise SettingsError("released_mask hides the ids that region hold would restore: set hold_threshold to 0")
        return order

    def _read(
        self,
        image,
        instruction,
        mask=None,
        query=None,
        seed=0,
        num_images=1,
        negative_prompt=None,
        composite=True,
        released_mask=False,
        progress=None,
        **settings,
    ) -> tuple[Order, Job]:
        """One call's order and job."""
        options = {"seed": seed, "num_images": num_images, "composite": composite, "released_mask": released_mask}
        order = self._edit_order(settings, negative_prompt, progress, **options)
        (job,), is_list = read_jobs(self.model.text, image, instruction, mask, query)
        if is_list:
            raise UserError("calls that are decoded together have one picture and one instruction each; got a list")
        return order, job

    def _change(self, order, image, instruction, mask, query=None):
        """Edits or fills images; the inputs may be lists."""
        jobs, is_list = read_jobs(self.model.text, image, instruction, mask, query, sees_all=order.attends)
        sizes = [job.image.size for job in jobs]
        self._check_room(order, sizes, [self._working_size(size) for size in sizes])
        self._note_editor(order)
        order.progress("tokenize")
        canvases = [
            (order, self._canvas(order, job, ids)) for job, ids in zip(jobs, self._source_ids(jobs), strict=True)
        ]
        results = self._results(canvases)
        return Results(results) if is_list else results[0]

    def _source_ids(self, jobs, apart=False) -> list[np.ndarray]:
        """ids [H W] of each job's image; an image that several jobs share is encoded once."""
        factor = self.model.vq.config.factor

        def grid(image):
            width, height = self._working_size(image.size)
            return height // factor, width // factor

        known, distinct = {}, {id(job.image): job.image for job in jobs}.values()
        for (rows, columns), batch, count in by_shape(distinct, grid, self._painted_at_once if not apart else _one):
            pixels = np.stack([images.to_pixels(image, (columns * factor, rows * factor)) for image in batch])
            ids = np.asarray(self.encode_image(pixels))
            known |= {id(image): ids[i] for i, image in enumerate(batch[:count])}
        return [known[id(job.image)] for job in jobs]

    def _working_size(self, size) -> tuple[int, int]:
        return images.working_size(size, self.model.scheduler.native_size, self.model.unit)

    def _painted_at_once(self, grid) -> int:
        """How many pictures of a grid the image tokenizer works on together. On CPUs one: more are no faster there, and their
        sums may differ in the last bit."""
        if jax.default_backend() == "cpu":
            return 1
        pixels = grid[0] * grid[1] * self.model.vq.config.factor**2
        return max(1, min(self.batch_size, PAINTED_PIXELS // pixels))

    def _canvas(self, order, job, source) -> Canvas:
        may_change = True if job.mask is None else images.mask_to_grid(job.mask, source.shape)
        start = np.where(may_change, np.int32(self.mask_token_id), source)
        reference = (start if order.released_mask and job.mask is not None else source) if order.attends else None
        return Canvas(job, reference, start, source)

    def _results(self, canvases, apart=False) -> list[Result]:
        """Decodes and paints the pictures of every (order, canvas).

        Args:
          apart: whether each has an order of its own. Their tokens are then decoded together, in batches of powers of two, and
            each is painted alone, since sums of another batch size may differ in the last bit.
        """
        painted_at_once, filled = (_one, power_of_two) if apart else (self._painted_at_once, None)
        work = [(i, copy) for i, (order, _) in enumerate(canvases) for copy in range(order.num_images)]
        edits, pixels = {}, {}

        def program(item):
            order, canvas = canvases[item[0]]
            return canvas.start.shape, order.attends, order.settings.program

        for _, batch, count in by_shape(work, program, lambda _: self.batch_size, filled):
            output = self._decode_batch([(*canvases[i], copy) for i, copy in batch], one_order=not apart)
            edits |= {item: output.sample(i) for i, item in enumerate(batch[:count])}
        if work:
            canvases[0][0].progress("paint")
        for _, batch, count in by_shape(work, lambda item: edits[item].tokens.shape, painted_at_once):
            painted = np.asarray(self.decode_image(np.stack([edits[item].tokens for item in batch])))
            pixels |= {item: painted[i] for i, item in enumerate(batch[:count])}
        results = []
        for i, (order, canvas) in enumerate(canvases):
            copies = [(i, copy) for copy in range(order.num_images)]
            results.append(
                make_result(order, canvas, [edits[item] for item in copies], [pixels[item] for item in copies])
            )
        return results

    def _decode_batch(self, batch, one_order) -> TokenEdit:
        """Decodes (order, canvas, number of its picture) of one program together. -> arrays on the host"""
        orders, canvases, copies = zip(*batch, strict=True)
        first, seeds = orders[0], np.array([order.seed for order in orders], np.uint32)
        output = self._decode(
            first.settings if one_order else [order.settings for order in orders],
            [canvas.job.text for canvas in canvases],
            [order.negative for order in orders],
            first.progress,
            reference=np.stack([canvas.reference for canvas in canvases]) if first.attends else None,
            start=np.stack([canvas.start for canvas in canvases]),
            keys=executables.run(picture_keys, seeds, np.array(copies, np.int32)),
            text_weights=np.stack([canvas.job.text_weights for canvas in canvases]),
        )
        return jax.device_get(output)


def _one(_):
    return 1
