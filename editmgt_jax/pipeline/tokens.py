"""A loaded model on tokens: encode texts and pictures, decode edits. What evaluation, ablation and training build on.

Axes    as in `editmgt_jax.config`
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from editmgt_jax import executables
from editmgt_jax.declarations import check_integer
from editmgt_jax.errors import UserError
from editmgt_jax.files import check_writable
from editmgt_jax.models import text as texts
from editmgt_jax.models.blocks import Interventions
from editmgt_jax.models.prompts import PromptError
from editmgt_jax.models.text import EncodedText
from editmgt_jax.models.vq import ids_to_pixels, pixels_to_ids
from editmgt_jax.pipeline.diffusers_names import takes_diffusers_names
from editmgt_jax.sampling.canvas import canvas_size, check_ids, check_pixels, check_results, free_memory, host_memory
from editmgt_jax.sampling.decode import Noise
from editmgt_jax.sampling.edit import TokenEdit
from editmgt_jax.sampling.exported import ExportedDecode, export_decode
from editmgt_jax.sampling.orders import (
    Progress,
    Prompts,
    each,
    encoded,
    query_weights,
    silent,
)
from editmgt_jax.sampling.programs import check_batch_size, check_process, run_decode
from editmgt_jax.sampling.request import make_request
from editmgt_jax.sampling.settings import Settings
from editmgt_jax.weights import hub
from editmgt_jax.weights.hub import HubOptions
from editmgt_jax.weights.loading import LoadedModel, load_model

MAX_BATCH = 1024  # pictures of an exported decode


class TokenPipeline:
    """One loaded model.

    Args:
      model: from `loading.load_model`.
      batch_size: how many pictures are decoded at once at most.
      program: a decode from a file, which `export_decode` wrote, in place of one that is compiled here.
    """

    def __init__(self, model: LoadedModel, batch_size: int = 8, program: ExportedDecode | None = None):
        check_batch_size(batch_size)
        if not isinstance(program, (ExportedDecode, type(None))):
            raise UserError(f"program must be an ExportedDecode(path), which reads the file; got {program!r}")
        self.model, self._program = model, program
        self.batch_size = int(batch_size) if program is None else program.header.batch
        self._mgt_variables, self._vq_params = jax.device_put((model.mgt_variables, model.vq_params))

    @classmethod
    @takes_diffusers_names
    def from_pretrained(
        cls,
        directory: str | Path | None = None,
        *,
        dtype: DTypeLike | dict[str, DTypeLike] | None = None,
        strict: bool = False,
        batch_size: int = 8,
        lora: str | Path | None = None,
        variant: str | None = None,
        program: ExportedDecode | None = None,
        **fetching: Unpack[HubOptions],
    ) -> Self:
        """Reads a model directory, or fetches one from the hub by name; None is the default model of the package.

        Args and errors: see `loading.load_model`, and the class.
        """
        check_batch_size(batch_size)
        return cls(load_model(directory, dtype, strict, lora=lora, variant=variant, **fetching), batch_size, program)

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes the model directory that this pipeline was read from, in the types it has there, with a model index and a card.

        Errors: FileExistsError; UserError for a model with a LoRA, or that was not read from a directory.
        """
        hub.save(self._own_directory(), directory)

    def push_to_hub(
        self,
        name: str,
        *,
        token: str | bool | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = hub.MESSAGE,
    ) -> str:
        """Publishes what `save_pretrained` writes. -> address of the commit

        Args and errors: see `weights.hub.push`, and `save_pretrained`.
        """
        publishing = {"token": token, "private": private, "revision": revision, "message": commit_message}
        return hub.push(self._own_directory(), name, **publishing)

    def _own_directory(self) -> Path:
        if self.model.directory is None:
            raise UserError("this model was not read from a directory: there is none to save")
        if self.model.lora_params is not None:
            raise UserError("a model with a LoRA is saved by `editmgt convert merge`, or without it")
        return self.model.directory

    def to(self, device: Any) -> Self:
        """This pipeline, for scripts of diffusers. JAX chooses the device, by JAX_PLATFORMS.

        Args:
          device: where its weights lie: "cpu", "cuda" or "tpu", or PyTorch's object of that name.
        Errors: UserError for any other place.
        """
        platform = jax.default_backend()
        if str(device).partition(":")[0] not in {platform, *({"cuda"} if platform == "gpu" else ())}:
            raise UserError(
                f"the model lies on {platform}, and stays there; got {device}: set JAX_PLATFORMS before the start"
            )
        return self

    @property
    def mask_token_id(self) -> int:
        """The id of a hidden token."""
        return self.model.mgt.config.mask_token_id

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
        """Pictures to ids. float [B Y X 3] in [0, 1] -> ids int32 [B H W]. Errors: UserError."""
        check_process()
        check_pixels(pixels, self.model.vq.config.factor)
        return executables.run(pixels_to_ids, self._vq_params, jnp.asarray(pixels, jnp.float32), vq=self.model.vq)

    def decode_image(self, ids: np.ndarray | jax.Array) -> jax.Array:
        """Ids to pictures. int32 [B H W] -> float32 [B Y X 3] in [0, 1]. Errors: UserError."""
        check_process()
        check_ids(ids, self.mask_token_id)
        return executables.run(ids_to_pixels, self._vq_params, jnp.asarray(ids, jnp.int32), vq=self.model.vq)

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
            [self._negative(negative)] * len(text),
            progress or silent,
            reference=reference_ids,
            start=start_ids,
            keys=keys,
            text_weights=text_weights,
            attention_step=attention_step,
            interventions=interventions,
        )

    def export_decode(
        self,
        path: str | Path,
        size: tuple[int, int] | None = None,
        *,
        batch: int = 1,
        platforms: Sequence[str] = ("cpu",),
        **settings: Any,
    ) -> None:
        """Writes the decode of edits of one size (width, height; by default the model's square) to a file, see `exported`.

        platforms: of `exported.PLATFORMS`; settings: as in `__call__`. Those that are traced may differ when it is used.
        Errors: SettingsError, UserError, OSError.
        """
        check_integer("batch", batch, 1, MAX_BATCH)
        check_writable(path)
        text, ids = texts.stack([self.encode("")] * batch), np.zeros((batch, *self._grid(size, batch)), np.int32)
        parts = self.settings(**settings), self.model.scheduler, self.model.vq.config.factor
        request, static = make_request(*parts, text, text, keys=0, reference=ids)
        export_decode(path, self._mgt_variables, request, self.model.mgt, static, platforms)

    def _grid(self, size, at_once=1) -> tuple[int, int]:
        """Tokens of a picture of `size` (width, height), None for the model's square; `at_once` fit into memory. -> (H, W)"""
        width, height = canvas_size(size, self.model, at_once, free_memory())
        return height // self.model.vq.config.factor, width // self.model.vq.config.factor

    def _check_room(self, order, sizes, decoded) -> None:
        """Errors: SettingsError when the pictures of a call do not fit into memory; sizes: see `check_results`."""
        check_results(sizes, decoded, order.num_images, host_memory())

    def _negative(self, prompt) -> EncodedText:
        try:
            return encoded(self.model.text, self.model.scheduler.negative_prompt if prompt is None else prompt)
        except PromptError as error:
            raise PromptError(f"negative_prompt: {error}") from error

    def _decode(self, settings, text, negative, progress, **inputs) -> TokenEdit:
        """Decodes B samples. inputs: see `make_request`."""
        check_process()
        batch = len(inputs["start"] if inputs["reference"] is None else inputs["reference"])
        if len(text) != batch:
            raise UserError(f"each of the {batch} samples needs an encoded instruction; got {len(text)}")
        request, static = make_request(
            settings,
            self.model.scheduler,
            self.model.vq.config.factor,
            texts.stack(text),
            texts.stack(negative),
            **inputs,
        )
        return self._run(request, static, progress)

    def _run(self, request, static, progress) -> TokenEdit:
        if self._program is None:
            return run_decode(self._mgt_variables, request, self.model.mgt, static, progress)
        progress("decode")
        return self._program(self._mgt_variables, request, self.model.mgt, static)
