"""Encoding training data once: procedural scenes by a run's config, or prepared pairs by a model directory."""

import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from editmgt_jax.data.records import PAIRS, PairSource, read_manifest
from editmgt_jax.data.tokenize import Encoders
from editmgt_jax.data.tokenize import tokenize as write_tokens
from editmgt_jax.errors import UserError
from editmgt_jax.files import check_outside, mounted
from editmgt_jax.models.vq import pixels_to_ids
from editmgt_jax.training import inputs, processes
from editmgt_jax.training.conditioning import text_of
from editmgt_jax.training.config import MGTRun, TrainConfig
from editmgt_jax.training.inputs import identity
from editmgt_jax.training.tasks.mgt import MGTTask
from editmgt_jax.weights.loading import find_model, load_model, load_vq, tokenizer_folders


def _image_encoder(vq, params):
    """uint8 [B Y X 3] -> ids [B H W], with B spread over this process's devices."""
    spread = NamedSharding(Mesh(np.array(jax.local_devices()), ("data",)), PartitionSpec("data"))

    params = jax.device_put(params, NamedSharding(spread.mesh, PartitionSpec()))
    return lambda pixels: pixels_to_ids(params, jax.device_put(pixels, spread), vq)


def tokenize_scenes(config: TrainConfig, output: str | Path, examples: int) -> None:
    """Writes the first `examples` training pairs of an `mgt` config as token records into `output`.

    Errors: UserError for a config of another task, or with frozen encoders.
    """
    if not isinstance(config, MGTRun) or config.model.encoders:
        raise UserError(
            "scenes are encoded by the config of task mgt whose text encoder is trained along (no model.encoders)"
        )
    output = mounted(output, "the output")
    processes.check_joined()
    with processes.holding(output, "tokenize"):
        _tokenize_scenes(config, output, examples)


def _tokenize_scenes(config, output, examples) -> None:
    with processes.first_then_others():
        config = MGTTask.resolve(config, output, make=processes.is_first())
    data = config.data
    facts = identity(config.model.vq, inputs.learnt_tokenizer(config))
    facts |= {"data": {name: getattr(data, name) for name in ("size", "seed", "objects")}}
    vq, params = load_vq(config.model.vq)
    encoders = Encoders(_image_encoder(vq, params), text_of(config, None).encoder.tokenizers)
    scenes = {f"{data.size}x{data.size}": inputs.scene_source(config, "train", examples)}
    _write(scenes, encoders, output, facts)


def tokenize_pairs(
    records: str | Path,
    model: str | Path | None,
    output: str | Path,
    batch_size: int = 32,
    text_states: bool = False,
    dtype: DTypeLike | dict[str, DTypeLike] | None = None,
) -> dict:
    """Encodes prepared pairs as a model directory's encoders do, shared by all processes that run this.

    Args:
      records: folder of `editmgt prepare`; model: model directory, None is the default model.
      batch_size: pairs that a process encodes at a time; text_states: whether to store the text encoders' output, too.
      dtype: of the encoders, see `load_model`.
    Returns: what `data.tokenize.tokenize` returns.
    Errors: UserError when records or model do not fit.
    """
    output = mounted(output, "the output")
    processes.check_joined()
    manifest = read_manifest(records, PAIRS)
    if batch_size < 1 or 2 * batch_size % jax.local_device_count():
        raise UserError(
            f"twice batch_size must be a positive multiple of the {jax.local_device_count()} devices; got {batch_size}"
        )
    directory, _ = find_model(model)
    check_outside(output, records, directory)
    loaded = load_model(directory, dtype)
    unit = loaded.unit
    for bucket in manifest["buckets"]:
        if any(int(side) % unit for side in bucket.split("x")):
            raise UserError(
                f"this model's pictures have sides that are multiples of {unit} pixels; got bucket {bucket}"
            )
    encoders = Encoders(
        image=_image_encoder(loaded.vq, loaded.vq_params),
        text=loaded.text.tokenizers,
        states=(lambda ids: loaded.text.encode_ids(ids).fields()) if text_states else None,
    )
    facts = identity(directory / "vqvae", tokenizer_folders(directory)) | {
        "data": {"source": manifest["source"], "config": manifest["config"], "kept": manifest["kept"]},
        "text_states": text_states,
    }
    sources = {bucket: PairSource(records, bucket) for bucket in manifest["buckets"]}
    with processes.holding(output, "tokenize"):
        return _write(sources, encoders, output, facts, batch_size)


def _write(sources, encoders, output, facts, *batch_size) -> dict:
    """Encodes this process's share of the pairs, and says how fast."""
    process = jax.process_index(), jax.process_count()
    report = write_tokens(
        sources, encoders, output, facts, *batch_size, process=process, wait_for_all=processes.wait_for_all
    )
    if report["left_out"]:
        print(
            f"{report['left_out']} pairs left out: their instructions are too long (see the manifest)", file=sys.stderr
        )
    if report["images"]:
        rate = report["images"] / report["seconds"]
        print(f"{rate:.1f} images/s; the device waited {report['waited']:.1%} of the time", file=sys.stderr)
    return report
