"""A report: sections of text, tables, figures and pictures, as one HTML file that requests nothing and as Markdown."""

import base64
import html
import io
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from editmgt_jax.report import figures

STYLE = """
:root { --ink: #1d2530; --quiet: #6b7480; --grid: #dfe3e8; --paper: #ffffff; --mark: #f1f4f7;
  --shade: rgba(0, 0, 0, .22); }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --quiet: #97a1ad; --grid: #333b45; --paper: #14181d; --mark: #1f252c;
    --shade: rgba(255, 255, 255, .25); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 1.2rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
body > * { max-width: 820px; } body > .scroll, body > .row { max-width: none; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
figure { margin: 1rem 0; overflow-x: auto; }
figure svg { width: 100%; min-width: 560px; height: auto; display: block; }
figcaption { color: var(--quiet); font-size: .9rem; position: sticky; left: 0; }
.scroll { overflow-x: auto; }
figure, .scroll { background:  /* a shade at the side to which there is more */
  linear-gradient(to right, var(--paper) 40%, transparent) left / 36px 100% no-repeat local,
  linear-gradient(to left, var(--paper) 40%, transparent) right / 36px 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / 12px 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right / 12px 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th { font-weight: 600; } .base td { background: var(--mark); }
@media (max-width: 600px) { th:first-child, td:first-child { white-space: normal; min-width: 7rem; } }
code { background: var(--mark); padding: .1rem .3rem; border-radius: 3px; }
pre { background: var(--mark); padding: .7rem; overflow-x: auto; } pre code { padding: 0; }
img { max-width: 100%; height: auto; }
.pixels { image-rendering: pixelated; max-width: none; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; }
.row figure { margin: 0; width: calc(50% - .3rem); max-width: 240px; }
"""


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Code(NamedTuple):
    """Commands or a config."""

    text: str


class Table(NamedTuple):
    """Lines of cells; `based`: the first line is what the others are compared with."""

    heads: Sequence[str]
    cells: Sequence[Sequence[str]]
    based: bool = False


class Figure(NamedTuple):
    """A figure with what it shows."""

    spec: dict
    caption: str


class Picture(NamedTuple):
    """A picture with what it shows: its own pixels, or a photograph, which may lose a little."""

    image: Image.Image
    caption: str
    photograph: bool = False


class Row(NamedTuple):
    """Pictures side by side under a line of text."""

    text: str
    pictures: Sequence[Picture]


Part = Text | Code | Table | Figure | Picture | Row


class Section(NamedTuple):
    """A heading and what stands below it; without a heading it goes on."""

    title: str
    parts: Sequence[Part]


def to_html(title: str, sections: Sequence[Section]) -> str:
    """The whole file."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        body += [f"<h2>{html.escape(section.title)}</h2>"] if section.title else []
        body += [_html_of(part) for part in section.parts]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _html_of(part: Part) -> str:
    if isinstance(part, Text):
        return f"<p>{html.escape(part.text)}</p>"
    if isinstance(part, Code):
        return f"<pre><code>{html.escape(part.text)}</code></pre>"
    if isinstance(part, Table):
        heads = "".join(f"<th>{html.escape(head)}</th>" for head in part.heads)
        lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in part.cells]
        marks = [' class="base"' if part.based and number == 0 else "" for number in range(len(lines))]
        body = "".join(f"<tr{mark}>{line}</tr>" for mark, line in zip(marks, lines, strict=True))
        return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    if isinstance(part, Row):
        return f'<p>{html.escape(part.text)}</p>\n<div class="row">{"".join(map(_html_of, part.pictures))}</div>'
    if isinstance(part, Figure):
        caption = part.caption[:1].upper() + part.caption[1:]
        return f"<figure>{figures.svg(part.spec, part.caption)}<figcaption>{html.escape(caption)}</figcaption></figure>"
    return f"<figure>{_img(part)}<figcaption>{html.escape(part.caption)}</figcaption></figure>"


def _img(picture: Picture) -> str:
    buffer = io.BytesIO()
    kind, more = ("jpeg", {"quality": 90}) if picture.photograph else ("png", {})
    picture.image.save(buffer, kind, **more)
    data = base64.b64encode(buffer.getvalue()).decode()
    look = "" if picture.photograph else ' class="pixels"'
    return f'<img{look} src="data:image/{kind};base64,{data}" alt="{html.escape(picture.caption)}">'


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """The text and the tables; figures are named by what they show."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""] if section.title else []
        for part in section.parts:
            lines += [_markdown_of(part), ""]
    return "\n".join(lines)


def _markdown_of(part: Part) -> str:
    if isinstance(part, Text):
        return part.text
    if isinstance(part, Code):
        return f"```text\n{part.text}\n```"
    if isinstance(part, Table):
        line = "| {} |".format
        cells = [line(" | ".join(cell.replace("|", "\\|") for cell in one)) for one in (part.heads, *part.cells)]
        return "\n".join([cells[0], "|" + "---|" * len(part.heads), *cells[1:]])
    return f"*In the HTML file:* {part.text if isinstance(part, Row) else part.caption}"
