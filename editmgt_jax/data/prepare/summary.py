"""The page of a preparation: counts, histograms, examples of rejected pairs, sample pairs."""

import base64
import html
import io
from pathlib import Path

from PIL import Image

from editmgt_jax.data.prepare.counts import HISTOGRAMS
from editmgt_jax.data.records import ShardReader
from editmgt_jax.files import write_text

PAGE = "summary.html"
SAMPLES = 12  # pairs shown
SIDE = 160  # of their pictures, pixels

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 0.6em 0 1.6em }
th, td { text-align: left; padding: 0.2em 0.9em 0.2em 0; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
td.bar { width: 22em } td.bar div { background: #4a7ab5; height: 0.85em; min-width: 1px }
.pairs { display: flex; flex-wrap: wrap; gap: 1em } figure { margin: 0; width: 21em } figcaption { font-size: 0.85em }
details { font-size: 0.85em } code { font-size: 0.9em }
"""


def write(output: Path, manifest: dict) -> None:
    """Writes the page of a preparation."""
    output = Path(output)
    pairs, kept = manifest["pairs"], manifest["kept"]
    sections = [
        f"<h1>{html.escape(manifest['source'])}</h1>",
        f"<p>{kept:,} of {pairs:,} pairs kept ({kept / pairs:.1%}), in {len(manifest['shards']):,} shards.</p>",
        _section("Rejected", _reasons(manifest["rejects"], pairs)),
        _section("Kept with a note", _reasons(manifest["notes"], pairs)),
        _section("Categories", _bars(manifest["categories"])),
        _section("Buckets, width x height", _bars(manifest["buckets"])),
    ]
    titles = {"characters": "Characters of an instruction", "side": "Shorter side of a source, pixels"}
    titles["changed"] = "Share of changed pixels"
    for name, edges in HISTOGRAMS.items():
        labels = [f"{low:g} to {high:g}" for low, high in zip(edges[:-1], edges[1:], strict=True)]
        counts = dict(zip(labels, manifest["histograms"][name], strict=True))
        sections.append(_section(titles[name], _bars(counts)))
    sections.append(_section("Samples", _samples(output, manifest["shards"])))
    config = "".join(f"<tr><td><code>{k}</code><td>{html.escape(str(v))}" for k, v in manifest["config"].items())
    sections.append(_section("Settings", f"<table>{config}</table>"))
    text = f"<!doctype html><meta charset=utf-8><title>Prepared pairs</title><style>{_STYLE}</style>"
    write_text(output / PAGE, text + "\n".join(sections) + "\n")


def _section(title, body) -> str:
    return f"<h2>{title}</h2>\n{body or '<p>none</p>'}"


def _bars(counts: dict) -> str:
    if not counts:
        return ""
    most = max(1, *counts.values())
    bars = [
        f"<tr><td>{html.escape(name)}<td class=number>{count:,}<td class=bar><div style='width:{100 * count / most:.1f}%'>"
        "</div>"
        for name, count in counts.items()
    ]
    return f"<table>{''.join(bars)}</table>"


def _reasons(found: dict, pairs: int) -> str:
    if not found:
        return ""
    lines = []
    for name, entry in sorted(found.items(), key=lambda item: -item[1]["count"]):
        examples = "<br>".join(
            html.escape(example if isinstance(example, str) else ": ".join(example)) for example in entry["examples"]
        )
        lines.append(
            f"<tr><td>{html.escape(name)}<td class=number>{entry['count']:,}<td class=number>{entry['count'] / pairs:.2%}"
            f"<td><details><summary>examples</summary>{examples}</details>"
        )
    return f"<table>{''.join(lines)}</table>"


def _samples(output, shards) -> str:
    """Pairs from shards all over the set."""
    step = max(1, len(shards) // SAMPLES)
    chosen = shards[::step][:SAMPLES]
    figures = []
    for number, shard in enumerate(chosen):
        pair = ShardReader(output / shard["file"]).pair(number % shard["records"])
        pictures = "".join(f"<img src='{_thumbnail(pair[side])}' alt={side}> " for side in ("source", "target"))
        caption = f"<b>{html.escape(pair['category'])}</b> {html.escape(pair['instruction'])}"
        figures.append(f"<figure>{pictures}<figcaption>{caption}</figcaption></figure>")
    return f"<div class=pairs>{''.join(figures)}</div>" if figures else ""


def _thumbnail(data) -> str:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
