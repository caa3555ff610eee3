"""Decodes with other settings, and with one block at a time bypassed or muted: tables in RUN/decodes.

    RUN/decodes/variants.parquet     what the number of a variant means; 0 is the model as it is
    RUN/decodes/part-00000.parquet   what some decodes gave, one entry for each variant, example and seed

Variants that differ in traced settings lie side by side in one batch, so that a sweep compiles once for each program.

Axes    as in `editmgt_jax.config`
"""

import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np

from editmgt_jax.ablation.config import AblationConfig
from editmgt_jax.ablation.examples import ExampleSource, model_folder
from editmgt_jax.ablation.record import decode_keys
from editmgt_jax.ablation.score import write_table
from editmgt_jax.batching import in_batches
from editmgt_jax.errors import UserError
from editmgt_jax.evaluation import metrics
from editmgt_jax.evaluation.protocols.scenes import Scenes
from editmgt_jax.evaluation.protocols.scenes_figures import succeeded
from editmgt_jax.files import write_json
from editmgt_jax.models.blocks import Interventions
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.sampling.masking import covered_tokens
from editmgt_jax.sampling.settings import Settings
from editmgt_jax.training import processes

FOLDER, VARIANTS, DONE_BY = "decodes", "variants.parquet", "decoded.json"
NONE, BYPASS = "none", "bypass"
MUTED = ("text_to_image", "image_to_text", "image_to_reference")
PART = 8  # batches in a file


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to decode."""

    number: int
    settings: tuple[tuple[str, object], ...]  # besides those of `config.record.settings`
    intervention: str = NONE
    block: int = -1


@dataclasses.dataclass(frozen=True)
class Part:
    """Decodes that are run by one program and written to one file: (variant, example, seed)."""

    number: int
    items: tuple[tuple[Variant, int, int], ...]


def decode(config: AblationConfig, workdir: Path, progress: Callable[[Iterable], Iterable] = iter) -> Path:
    """Decodes all that `config.decode` asks for; goes on where an earlier call was killed. -> the folder of the tables

    Errors: UserError for settings that the model cannot have.
    """
    if config.decode.count > config.examples.count:
        raise UserError(
            f"decode.count must be at most examples.count, {config.examples.count}; got {config.decode.count}"
        )
    decoder = Decoder(config)
    every, folder = variants(config, decoder.num_blocks), workdir / FOLDER
    parts = parts_of(config, every, decoder.settings_of)
    with processes.first_then_others():
        if processes.is_first():
            _begin(folder, config, every, decoder)
    mine = [part for part in parts if part.number % processes.count() == processes.number()]
    for part in progress([part for part in mine if not _path(folder, part).exists()]):
        write_table(_path(folder, part), decoder.run(part))
    processes.wait_for_all()
    return folder


def _path(folder, part) -> Path:
    return folder / f"part-{part.number:05d}.parquet"


def _begin(folder, config, every, decoder) -> None:
    """An empty folder, or the one that the same decodes were begun in."""
    values = config.to_dict()
    facts = [values[name] for name in ("examples", "record", "decode")]
    facts += [vars(decoder.settings_of(every[0])), decoder.pipe.model.fingerprint(), Scenes.version]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    marker = folder / DONE_BY
    if folder.exists() and (not marker.is_file() or json.loads(marker.read_text())["digest"] != digest):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"digest": digest})
    columns = {
        "variant": [one.number for one in every],
        "settings": [json.dumps(dict(one.settings)) for one in every],
        "intervention": [one.intervention for one in every],
        "block": [one.block for one in every],
    }
    write_table(folder / VARIANTS, columns)


def variants(config: AblationConfig, num_blocks: int) -> list[Variant]:
    """The model as it is, the grid of settings, and each intervention on each block."""
    names = [name for name, _ in config.decode.grid]
    grid = itertools.product(*(values for _, values in config.decode.grid)) if names else ()
    found = [Variant(0, ())]
    found += [Variant(1 + i, tuple(zip(names, values, strict=True))) for i, values in enumerate(grid)]
    pairs = itertools.product(config.decode.interventions, range(num_blocks))
    return found + [Variant(len(found) + i, (), kind, block) for i, (kind, block) in enumerate(pairs)]


def parts_of(config: AblationConfig, every: Sequence[Variant], settings_of: Callable) -> list[Part]:
    """The decodes of all variants, those of one program together."""
    groups: dict[tuple, list] = {}
    for variant in every:
        settings: Settings = settings_of(variant)
        program = settings.program, variant.intervention != NONE
        items = itertools.product([variant], range(config.decode.count), config.decode.seeds)
        groups.setdefault(program, []).extend(items)
    size, found = config.decode.batch_size * PART, []
    for items in groups.values():
        for start in range(0, len(items), size):
            found.append(Part(len(found), tuple(items[start : start + size])))
    return found


class Decoder:
    """Runs the decodes of parts."""

    def __init__(self, config: AblationConfig):
        self.config = config
        self.pipe = EditPipeline.from_pretrained(model_folder(config.model), batch_size=config.decode.batch_size)
        self.num_blocks = self.pipe.model.mgt.config.num_blocks
        self.source = ExampleSource(config.examples, self.pipe.model.scheduler.native_size)
        self._encoded: dict[int, tuple] = {}

    def settings_of(self, variant: Variant) -> Settings:
        """Errors: SettingsError."""
        return self.pipe.settings(**(dict(self.config.record.settings) | dict(variant.settings)))

    def run(self, part: Part) -> dict[str, np.ndarray]:
        """The entries of a part, in order."""
        found = []
        for batch, count in in_batches(part.items, self.config.decode.batch_size):
            columns = self._decoded(batch)
            found.append({name: column[:count] for name, column in columns.items()})
        return {name: np.concatenate([columns[name] for columns in found]) for name in found[0]}

    def _decoded(self, batch) -> dict[str, np.ndarray]:
        examples = [self._example(number) for _, number, _ in batch]
        one, source, target, paintings = zip(*examples, strict=True)
        source, target = np.stack(source), np.stack(target)
        keys = jax.numpy.concatenate([decode_keys(seed, [number]) for _, number, seed in batch])
        edit = jax.device_get(
            self.pipe.edit_tokens(
                source,
                [self.pipe.encode(each.instruction) for each in one],
                keys=keys,
                settings_of=[self.settings_of(variant) for variant, _, _ in batch],
                interventions=interventions([variant for variant, _, _ in batch], self.num_blocks),
            )
        )
        edited = np.asarray(self.pipe.decode_image(edit.tokens))
        painted = [np.stack(each) for each in zip(*paintings, strict=True)]
        return {
            "variant": np.array([variant.number for variant, _, _ in batch], np.int32),
            "example": np.array([number for _, number, _ in batch], np.int32),
            "seed": np.array([seed for _, _, seed in batch], np.int32),
            **{
                name: np.asarray(values, np.float32)
                for name, values in _figures(one, edit, edited, source, target, *painted).items()
            },
        }

    def _example(self, number):
        """-> (example, ids of source and target, (pictures that these ids show at best))"""
        if number not in self._encoded:
            example = self.source[number]
            ids = np.asarray(self.pipe.encode_image(np.stack([example.source, example.target])))
            self._encoded[number] = (example, *ids, tuple(np.asarray(self.pipe.decode_image(ids))))
        return self._encoded[number]


def _figures(examples, edit, edited, source, target, source_painted, target_painted) -> dict[str, np.ndarray]:
    """What decodes gave, by the measures of `evaluation/`. -> {name: [B]}"""
    mask = np.stack([one.truth for one in examples])
    outside = ~covered_tokens(mask, source.shape[1:])
    facts = [one.facts | {"colour": one.facts.get("colour")} for one in examples]
    pairs = SimpleNamespace(mask=mask, categories=np.array([one.category for one in examples]), facts=facts)
    truth = np.stack([one.target for one in examples])
    return {
        "success": succeeded(pairs, edited, source_painted, target_painted),
        "l1_inside": metrics.l1(edited, truth, mask),
        "l1_outside": metrics.l1(edited, truth, ~mask),
        "changed_outside": metrics.share_changed(edit.tokens, source, outside),
        "vq_changed_outside": metrics.share_changed(target, source, outside),
        "kept": edit.keep.mean(axis=(1, 2)),
        "passes": edit.passes,
    }


def interventions(batch: Sequence[Variant], num_blocks: int) -> Interventions | None:
    """What is done to the blocks of each sample; None if nothing is. -> [J B], [J B 3]"""
    if all(variant.intervention == NONE for variant in batch):
        return None
    bypass, muted = np.zeros((num_blocks, len(batch)), bool), np.zeros((num_blocks, len(batch), len(MUTED)), bool)
    for index, variant in enumerate(batch):
        if variant.intervention == BYPASS:
            bypass[variant.block, index] = True
        elif variant.intervention != NONE:
            muted[variant.block, index, MUTED.index(variant.intervention)] = True
    return Interventions(jax.numpy.asarray(bypass), jax.numpy.asarray(muted))
