"""One raw pair -> one prepared pair, or the reason for its rejection. Pure: the result depends on the pair and the config alone.

A reason explains a rejection. A note records an oddity, or a repair, of a pair that is kept.
"""

import dataclasses
import hashlib
import io
import warnings

import numpy as np
from PIL import Image

from editmgt_jax import images
from editmgt_jax.data.prepare.buckets import UNIT, Placement, bucket_of, bucket_sizes, crop_to_bucket
from editmgt_jax.data.prepare.sources import RawPair
from editmgt_jax.errors import UserError
from editmgt_jax.files import is_pointer

FORMATS = {"jpeg": {"quality": 95, "subsampling": "4:4:4"}, "png": {}}
HASH_SIDE = 16  # cells a side of a perceptual hash
LOCAL = ("add", "remove", "replace", "color", "colour", "motion", "motion_change", "material", "text_change")


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Which raw pairs are kept, and in what form.

    resolution            side of the square bucket, pixels
    min_side              pictures with a shorter side are `too_small`; None is half the resolution
    max_pixels            larger pictures are `too_large`, and not decoded
    max_aspect_mismatch   largest ratio of the aspect ratios of source and target
    max_crop              largest share of a picture that the crop may remove
    change_threshold      a pixel counts as changed if a channel differs by more, of 255
    min_changed           share of changed pixels below which a pair is `unchanged`
    max_changed           share above which an edit of a `local_categories` is `changed_everywhere`
    max_instruction       longest instruction, in characters
    near_duplicate_bits   largest number of different bits, of 512, of near-duplicates with one instruction
    max_per_category      further pairs of a category are `over_category_limit`; None is no limit
    task_pairs            raw pairs that a worker prepares at a time: one shard for each of their buckets
    image_format          'jpeg' (quality 95, whole chroma) or 'png' (lossless, three times the size)
    """

    resolution: int = 1024
    min_side: int | None = None
    max_pixels: int = 64_000_000
    max_aspect_mismatch: float = 1.05
    max_crop: float = 0.3
    change_threshold: int = 8
    min_changed: float = 0.0005
    max_changed: float = 0.98
    local_categories: tuple[str, ...] = LOCAL
    max_instruction: int = 1000
    near_duplicate_bits: int = 48
    max_per_category: int | None = None
    task_pairs: int = 2048
    image_format: str = "jpeg"

    def __post_init__(self):
        bucket_sizes(self.resolution)
        if self.image_format not in FORMATS:
            raise UserError(f"image_format must be one of {sorted(FORMATS)}; got {self.image_format!r}")
        for name in ("max_pixels", "task_pairs", "max_instruction", "max_per_category"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1; got {value}")
        if self.max_aspect_mismatch < 1:
            raise UserError(f"max_aspect_mismatch is a ratio, at least 1; got {self.max_aspect_mismatch}")
        if not 0 <= self.min_changed <= self.max_changed <= 1:
            raise UserError(
                f"min_changed and max_changed must be shares, 0 <= min <= max <= 1; got {self.min_changed}, "
                f"{self.max_changed}"
            )


class Rejected(Exception):
    """A raw pair that is not kept: (reason, detail)."""

    @property
    def reason(self) -> str:
        """The name under which the manifest counts it."""
        return self.args[0]

    @property
    def detail(self) -> str:
        """The finding, as text."""
        return self.args[1]


@dataclasses.dataclass(frozen=True)
class Examined:
    """A pair that passed all checks that need no other pair."""

    bucket: tuple[int, int]  # (width, height)
    record: dict  # to be written, see `records.PairSource`
    digest: str  # of both raw pictures: equal for exact duplicates
    text_digest: str  # of the instruction, letter case and spaces aside
    hashes: str  # perceptual, of both pictures
    changed: float  # share of pixels
    notes: tuple[str, ...]


def examine(pair: RawPair, config: PrepareConfig) -> Examined:
    """Checks and crops a raw pair. Errors: Rejected."""
    if pair.defect is not None:
        raise Rejected(*pair.defect)
    instruction = _check_instruction(pair.instruction, config)
    notes = list(pair.notes)
    source = _decoded(pair.source, "source", config, notes)
    target = _decoded(pair.target, "target", config, notes)
    bucket = _bucket(source.size, target.size, config, notes)
    placement = Placement.covering(source.size, bucket)
    mask = None
    if pair.mask is not None:
        mask = _mask(pair.mask, source.size, config)
    fitted = {"source": crop_to_bucket(source, placement, bucket), "target": crop_to_bucket(target, placement, bucket)}
    changed = changed_share(fitted["source"], fitted["target"], config.change_threshold)
    if changed < config.min_changed:
        raise Rejected("unchanged", f"{changed:.2%} of the pixels differ")
    if changed > config.max_changed and pair.category in config.local_categories:
        raise Rejected("changed_everywhere", f"{changed:.1%} of the pixels differ in a pair of {pair.category}")
    record = {
        "key": pair.key,
        "category": pair.category,
        "instruction": instruction,
        "original_size": list(source.size),
        "crop": [placement.left, placement.top],
        **{name: _encoded(picture, config.image_format) for name, picture in fitted.items()},
    }
    if mask is not None:
        binary = crop_to_bucket(mask, placement, bucket, Image.Resampling.NEAREST)
        record["mask"] = _encoded(binary.convert("1"), "png")
    digest = hashlib.sha256(b"%d " % len(pair.source) + pair.source + pair.target).hexdigest()
    text = " ".join(instruction.casefold().split())
    return Examined(
        bucket=bucket,
        record=record,
        digest=digest,
        text_digest=hashlib.sha256(text.encode()).hexdigest()[:32],
        hashes=difference_hash(fitted["source"]) + difference_hash(fitted["target"]),
        changed=changed,
        notes=tuple(notes),
    )


def _check_instruction(text, config) -> str:
    if not isinstance(text, str):
        raise Rejected("no_instruction", f"the instruction must be a string; got {type(text).__name__}")
    text = text.strip()
    if not text:
        raise Rejected("no_instruction", "the instruction is empty")
    if "\ufffd" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise Rejected("bad_utf8", f"the instruction has bytes that are not UTF-8: {text[:60]!r}")
    if len(text) > config.max_instruction:
        raise Rejected("instruction_too_long", f"{len(text)} characters; the limit is {config.max_instruction}")
    return text


def _decoded(data: bytes, name, config, notes) -> Image.Image:
    """An upright RGB picture."""
    mode = _check_header(data, name, config)
    if mode != "RGB" and f"mode_{mode}" not in notes:
        notes.append(f"mode_{mode}")
    return _read(lambda: images.load(data, f"the {name}"))


def _mask(data: bytes, size, config) -> Image.Image:
    """A mask of a picture of `size`, black and white; see `images.load_mask`."""
    _check_header(data, "mask", config)
    found = _read(lambda: images.load(data, "the mask").size)
    if found != size:
        raise Rejected("mask_size", f"the mask is {_by(found)}, the source {_by(size)}")
    mask = _read(lambda: images.load_mask(data, size, may_be_empty=True))
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _read(read):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except Exception as error:  # noqa: BLE001
        raise Rejected("undecodable", str(error)) from error


def _check_header(data: bytes, name, config) -> str:
    """The mode of a picture whose size is within the limits. Errors: Rejected."""
    if not data:
        raise Rejected("no_picture", f"the {name} is empty")
    if not isinstance(data, bytes):
        raise Rejected("no_picture", f"the {name} must be the bytes of a file; got {type(data).__name__}")
    if is_pointer(data):
        raise Rejected("lfs_pointer", f"the {name} is a pointer of Git LFS, not the file: fetch it with git lfs pull")
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as header:
            warnings.simplefilter("ignore")
            size, mode = header.size, header.mode
    except Image.DecompressionBombError as error:
        raise Rejected("too_large", f"the {name}: {error}") from error
    except Exception as error:  # noqa: BLE001  (Pillow raises many kinds for damaged files)
        raise Rejected("undecodable", f"{name}: {error}") from error
    if size[0] * size[1] > config.max_pixels:
        raise Rejected("too_large", f"the {name} is {_by(size)}, the limit is {config.max_pixels} pixels")
    if min(size) < (config.min_side or config.resolution // 2):
        raise Rejected("too_small", f"the {name} is {_by(size)}")
    if max(size) > images.MAX_ASPECT * min(size):
        raise Rejected("extreme_aspect", f"the {name} is {_by(size)}")
    return mode


def _bucket(source, target, config, notes) -> tuple[int, int]:
    mismatch = source[0] * target[1] / (source[1] * target[0])
    if max(mismatch, 1 / mismatch) > config.max_aspect_mismatch:
        raise Rejected("aspect_mismatch", f"the source is {_by(source)}, the target {_by(target)}")
    if source != target:
        notes.append("sizes_differ")
    bucket = bucket_of(source, bucket_sizes(config.resolution))
    scaled = Placement.covering(source, bucket).scaled
    lost = 1 - bucket[0] * bucket[1] / (scaled[0] * scaled[1])
    if lost > config.max_crop:
        raise Rejected("extreme_aspect", f"{_by(source)} would lose {lost:.0%} to the crop of {_by(bucket)}")
    return bucket


def changed_share(one: Image.Image, other: Image.Image, threshold: int) -> float:
    """Share of pixels, of two pictures of one size reduced to about 256 a side, that differ by more than `threshold`."""
    factor = max(1, min(one.size) // (8 * UNIT))
    small = [np.asarray(image.reduce(factor) if factor > 1 else image, np.int16) for image in (one, other)]
    return float((np.abs(small[0] - small[1]).max(axis=-1) > threshold).mean())


def difference_hash(image: Image.Image) -> str:
    """256 bits, each the comparison of two neighbouring cells; scaling and recompression change few of them."""
    cells = image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    cells = np.asarray(cells, np.int16)
    return np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes().hex()


def _encoded(image, image_format) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format.upper(), **FORMATS[image_format])
    return buffer.getvalue()


def _by(size) -> str:
    return f"{size[0]} x {size[1]}"
