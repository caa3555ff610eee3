"""Models that metrics need: CLIP and DINO through transformers and PyTorch, LPIPS of this package, and the judge.

They come from a local folder, or by name from the Hugging Face hub. PyTorch is in the extra `eval` and imported only here.

Axes    n pictures or captions, D features, T tokens, K width of all heads
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from editmgt_jax.errors import UserError
from editmgt_jax.evaluation import pixels, preprocess
from editmgt_jax.evaluation.examples import check_extra

# Variants of the models that the protocols name.
VARIANTS = {
    "openai/clip-vit-base-patch32": "width 768, 12 layers, patch 32",
    "openai/clip-vit-large-patch14": "width 1024, 24 layers, patch 14",
    "facebook/dino-vits16": "width 384, 12 layers, patch 16",
    "facebook/dino-vitb8": "width 768, 12 layers, patch 8",
    "squeezenet": "squeezenet",  # networks of LPIPS have no name on the hub
}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vectors [D]; NaN if either is zero."""
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / length) if length > 0 else float("nan")


class Clip:
    """CLIP's embeddings of pictures and captions. `where`: a folder, or a name on the hub."""

    def __init__(self, where: str):
        self._torch, self._model = _load(where, "CLIPModel")
        from transformers import CLIPTokenizer

        self._tokenizer = CLIPTokenizer.from_pretrained(where)
        vision = self._model.config.vision_config
        self.side, self.where = vision.image_size, where
        self.variant = f"width {vision.hidden_size}, {vision.num_hidden_layers} layers, patch {vision.patch_size}"

    def images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Unit vectors float64 [n D] of RGB pictures."""
        inputs = self._torch.from_numpy(preprocess.clip_pixels(pictures, self.side)).to(self._model.device)
        with self._torch.no_grad():
            found = self._model.visual_projection(self._model.vision_model(pixel_values=inputs).pooler_output)
        return _unit(found)

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """Unit vectors float64 [n D]; captions that are too long lose their end."""
        inputs = self._tokenizer(
            list(captions), padding=True, truncation=True, max_length=self._length(), return_tensors="pt"
        )
        with self._torch.no_grad():
            found = self._model.text_projection(
                self._model.text_model(
                    **{name: value.to(self._model.device) for name, value in inputs.items()}
                ).pooler_output
            )
        return _unit(found)

    def _length(self):
        return self._model.config.text_config.max_position_embeddings


class Dino:
    """The class token of a DINO ViT, after its last norm."""

    def __init__(self, where: str):
        self._torch, self._model = _load(where, "ViTModel", add_pooling_layer=False)
        config = self._model.config
        self.where, self.variant = where, _vit(config)

    def images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Features float64 [n D] of RGB pictures."""
        inputs = self._torch.from_numpy(preprocess.dino_pixels(pictures)).to(self._model.device)
        with self._torch.no_grad():
            found = self._model(pixel_values=inputs, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        return found.cpu().double().numpy()


class Structure:
    """Structure distance: how much the self-similarity of a DINO ViT's last keys differs between two pictures."""

    def __init__(self, where: str):
        self._torch, self._model = _load(where, "ViTModel", add_pooling_layer=False)
        self.where, self.variant = where, _vit(self._model.config)

    def distance(self, one: Image.Image, other: Image.Image) -> float:
        """Mean squared difference of the cosine matrices [T T] of the keys of all heads together."""
        first, second = (self._similarity(picture) for picture in (one, other))
        return float(np.square(first - second).mean())

    def _similarity(self, picture):
        torch, kept = self._torch, []
        side = 224 / min(picture.size)
        size = tuple(224 if edge == min(picture.size) else int(edge * side) for edge in (picture.height, picture.width))
        array = torch.from_numpy(np.array(picture.convert("RGB"), np.float32).transpose(2, 0, 1)[None])
        array = torch.nn.functional.interpolate(array, size, mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (preprocess.IMAGENET_MEAN, preprocess.IMAGENET_STD))
        inputs = ((array - mean) / std).to(self._model.device)
        keys = self._model.layers[-1].attention.k_proj
        hook = keys.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
        try:
            with torch.no_grad():
                self._model(pixel_values=inputs, interpolate_pos_encoding=True)
        finally:
            hook.remove()
        found = kept[0][0].cpu().double().numpy()  # [T K]
        lengths = np.linalg.norm(found, axis=1)
        return found @ found.T / np.maximum(np.outer(lengths, lengths), 1e-8)


class Lpips:
    """The perceptual distance of `models.lpips`, with weights of a file that `editmgt convert lpips` wrote."""

    def __init__(self, where: str):
        import jax

        from editmgt_jax.models.lpips import LPIPS, network_of
        from editmgt_jax.weights import lpips

        params = lpips.load(where)
        self.where, self.network = where, network_of(params)
        self.variant = self.network
        self._apply = jax.jit(lambda one, other: LPIPS(self.network).apply({"params": params}, one, other))

    def distance(self, one: np.ndarray, other: np.ndarray) -> float:
        """Of two pictures, uint8 or float [Y X 3] in [0, 1]."""
        one, other = (pixels.unit(picture)[None].astype(np.float32) for picture in (one, other))
        return float(self._apply(one, other)[0])


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
    """The models of an evaluation; a metric whose model is None is left out."""

    clip: Clip | None = None
    dino: Dino | None = None
    structure: Structure | None = None
    lpips: Lpips | None = None
    judge: Any = None  # `judge.Judge` or `judge.Judged`

    def names(self) -> dict[str, str]:
        """{part: where it comes from, and its variant} of those that there are."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: f"{model.where} ({model.variant})" for name, model in found.items() if model is not None}

    def differences(self, wanted: Mapping[str, str | None]) -> list[str]:
        """Of models of another variant than the protocol's, {part: name on the hub}: what is used in the place of what."""
        return [
            f"{part} is {model.variant}; the protocol's is {wanted[part]} ({VARIANTS[wanted[part]]})"
            for part in wanted
            if wanted[part] and (model := getattr(self, part)) and model.variant != VARIANTS[wanted[part]]
        ]


def pair_metrics(models: Models, edited: Image.Image, other: Image.Image, prefix: str = "") -> dict[str, float]:
    """clip_i and dino of two pictures, where there are models for them."""
    found = {}
    if models.clip:
        found[f"{prefix}clip_i"] = cosine(*models.clip.images([edited, other]))
    if models.dino:
        found[f"{prefix}dino"] = cosine(*models.dino.images([edited, other]))
    return found


def caption_metric(models: Models, edited: Image.Image, caption: str | None) -> dict[str, float]:
    """clip_t: the edited picture against the target's caption, where there are both."""
    if not (models.clip and caption):
        return {}
    return {"clip_t": cosine(models.clip.images([edited])[0], models.clip.texts([caption])[0])}


def direction_metric(
    models: Models, edited: Image.Image, source: Image.Image, caption: str | None, source_caption: str | None
) -> dict[str, float]:
    """clip_dir: the change of the picture against that of the caption; NaN where either does not change."""
    if not (models.clip and caption and source_caption):
        return {}
    after, before = models.clip.images([edited, source])
    new, old = models.clip.texts([caption, source_caption])
    return {"clip_dir": cosine(after - before, new - old)}


def _load(where, kind, **options):
    """-> (torch, the model, on a GPU if there is one). Errors: UserError."""
    check_extra("torch")
    import torch
    import transformers

    try:
        model = getattr(transformers, kind).from_pretrained(where, **options)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"{kind} must be a folder or a name on the hub; {where} cannot be read: {first_line}"
        ) from error
    return torch, model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _vit(config):
    return f"width {config.hidden_size}, {config.num_hidden_layers} layers, patch {config.patch_size}"


def _unit(found):
    found = found.cpu().double().numpy()
    return found / np.linalg.norm(found, axis=-1, keepdims=True)
