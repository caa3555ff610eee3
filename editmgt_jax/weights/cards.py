"""What goes with the weights of a model that others find: `model_index.json`, as diffusers has it, and a model card.

Source  the hub's model cards: a README.md that begins with metadata
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from editmgt_jax.config import MGTConfig, SchedulerConfig, VQConfig
from editmgt_jax.files import write_json, write_text
from editmgt_jax.weights.components import MGT_FOLDERS, folder_configs, text_components

INDEX, CARD = "model_index.json", "README.md"
_LIBRARIES = {MGTConfig: "editmgt_jax", VQConfig: "diffusers"}  # of others, transformers


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a card says of how a model came about; what is empty is left out."""

    licence: str = ""  # as the hub calls it, such as apache-2.0
    base: str = ""  # the model that it starts from
    data: Sequence[str] = ()
    training: Mapping[str, object] = dataclasses.field(default_factory=dict)  # such as steps and batch size
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    commands: Sequence[str] = ()  # that made it


def complete(folder: str | Path, name: str, facts: Facts | None = None) -> None:
    """Writes the model index and the card into a folder with weights, unless they are there.

    Args:
      name: of the model, the title of the card.
    """
    folder = Path(folder)
    if (index := model_index(folder)) and not (folder / INDEX).exists():
        write_json(folder / INDEX, index, indent=2)
    if not (folder / CARD).exists():
        write_text(folder / CARD, card(folder, name, facts or Facts()))


def model_index(folder: Path) -> dict[str, object]:
    """The classes of a model directory's components; empty for a folder that is none."""
    if not any((folder / name).is_dir() for name in MGT_FOLDERS):
        return {}
    found: dict[str, object] = {"_class_name": "EditPipeline", "_diffusers_version": "0.30.2"}
    for name, kind in folder_configs().items():
        if (folder / name).is_dir():
            found[name] = [_LIBRARIES.get(kind, "transformers"), kind.CLASS_NAME]
    for entry in text_components():
        settings = folder / entry.text.tokenizer / "tokenizer_config.json"
        if settings.is_file() and entry.text.tokenizer not in found:
            found[entry.text.tokenizer] = ["transformers", json.loads(settings.read_text()).get("tokenizer_class")]
    if (folder / "scheduler").is_dir():
        found["scheduler"] = ["editmgt_jax", SchedulerConfig.CLASS_NAME]
    return found


def card(folder: Path, name: str, facts: Facts) -> str:
    """The text of a model card."""
    is_editor, is_lora = (folder / MGT_FOLDERS[0]).is_dir(), (folder / "adapter_config.json").is_file()
    is_model = bool(model_index(folder))
    kind = (
        ("An image editor by instruction" if is_editor else "A text-to-image model")
        if is_model
        else "A LoRA of an image editor"
        if is_lora
        else "An image tokenizer"
    )
    about = {
        "license": facts.licence or None,
        "library_name": "editmgt_jax",
        "pipeline_tag": ("image-to-image" if is_editor or is_lora else "text-to-image")
        if is_model or is_lora
        else None,
        "base_model": facts.base or None,
        "tags": ["masked-generative-transformer", "jax"],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in about.items() if value is not None), "---", ""]
    lines += [f"# {name}", "", f"{kind}: a masked generative transformer, for editmgt_jax.", ""]
    if is_model or is_lora:
        lines += ["## Use", "", "```bash", _use(name, is_editor, is_lora), "```", ""]
    lines += _table("Data", [(entry,) for entry in facts.data]) + _table("Training", facts.training.items())
    lines += _table("Metrics on held-out examples", [(key, f"{value:.4g}") for key, value in facts.metrics.items()])
    if facts.commands:
        lines += ["## Commands", "", "```bash", *facts.commands, "```", ""]
    lines += ["## Licence", "", facts.licence or "Not stated.", ""]
    return "\n".join(lines)


def _use(name, is_editor, is_lora) -> str:
    if is_lora:
        return f'editmgt edit --model BASE --lora {name} --image in.png --instruction "..." --output out.png'
    if is_editor:
        return f'editmgt edit --model {name} --image in.png --instruction "..." --output out.png'
    return f'editmgt generate --model {name} --prompt "..." --output out.png'


def _table(title, entries) -> list[str]:
    entries = [" | ".join(map(str, entry)) for entry in entries]
    if not entries:
        return []
    columns = entries[0].count(" | ") + 1
    head = ["| " + " | ".join([" "] * columns) + " |", "|" + "---|" * columns]
    return [f"## {title}", "", *head, *(f"| {entry} |" for entry in entries), ""]
