"""Figures as SVG text, from Vega-Lite descriptions. They take the colours of the page around them, light or dark.

Source  Vega-Lite, rendered by vl-convert without a browser or a network
"""

import json
import re
from collections.abc import Sequence

from editmgt_jax.errors import UserError

INK, QUIET, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"  # stand for the page's colours
_OF_PAGE = {INK: "var(--ink)", QUIET: "var(--quiet)", GRID: "var(--grid)", PAPER: "var(--paper)"}
PALETTE = ("#3b82d6", "#e07b27", "#2f9e77", "#c04a91", "#8b6bd9", "#a08a1c", "#d1495b", "#4b9fa8")
SCALE = ("#f2e6c9", "#e9b872", "#cf6f4a", "#8e3563", "#2c1e4a")  # of heat maps, low to high, legible on both papers
WIDTH, HEIGHT = 620, 260
_CONFIG = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "axis": {"labelColor": INK, "titleColor": INK, "gridColor": GRID, "domainColor": QUIET, "tickColor": QUIET,
             "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 260},
    "legend": {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12, "orient": "bottom",
               "titleFontWeight": "normal", "columns": 2, "labelLimit": 300, "symbolLimit": 40, "symbolOpacity": 1, "columnPadding": 90},
    "view": {"stroke": None},
    "range": {"category": list(PALETTE)},
    "text": {"color": INK},
    "title": {"color": INK, "fontWeight": "normal"},
}  # fmt: skip


def svg(spec: dict, label: str) -> str:
    """A Vega-Lite description -> an <svg> element. Errors: UserError when the extra is not installed.

    Args:
      label: what the figure shows, for screen readers.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise UserError("figures need vl-convert-python: pip install 'editmgt_jax[ablate]'") from error
    whole = {"$schema": "https://vega.github.io/schema/vega-lite/v5.json", "config": _CONFIG} | spec
    text = vl_convert.vegalite_to_svg(json.dumps(whole))
    for colour, variable in _OF_PAGE.items():
        text = text.replace(colour, variable)
    label = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    text = re.sub(r"<svg ", f'<svg role="img" aria-label="{label}" ', text, count=1)
    text = re.sub(r' xmlns:xlink="[^"]*"', "", text)
    return re.sub(r'(<svg [^>]*?) width="[\d.]+" height="[\d.]+"', r"\1", text, count=1)


def _quantitative(field, title, **more):
    return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": False}} | more


def _series(names: Sequence[str]) -> dict:
    names = list(dict.fromkeys(names))
    return {"field": "series", "type": "nominal", "title": None, "scale": {"domain": names}}


def lines(values: list[dict], x: str, y: str, levels: list[dict] = (), ordinal: bool = True) -> dict:
    """Lines with bands: values have x, mean, low, high and series; levels have mean and series and are dashed."""
    kind = "ordinal" if ordinal else "quantitative"
    across = {"field": "x", "type": kind, "title": x, "axis": {"labelAngle": 0, "labelOverlap": True}, "sort": None}
    names = [one["series"] for one in [*values, *levels]]
    base = {"x": across, "color": _series(names)}
    layers = [
        {"data": {"values": values}, "mark": {"type": "area", "opacity": 0.18},
         "encoding": base | {"y": _quantitative("low", y), "y2": {"field": "high"}}},
        {"data": {"values": values}, "mark": {"type": "line", "point": {"size": 40}},
         "encoding": base | {"y": _quantitative("mean", y)}},
    ]  # fmt: skip
    if levels:
        dashed = {"y": _quantitative("mean", y), "color": _series(names)}
        layers.append({"data": {"values": list(levels)}, "mark": {"type": "rule", "strokeDash": [6, 4], "size": 2},
                       "encoding": dashed})  # fmt: skip
    return {"width": WIDTH, "height": HEIGHT, "layer": layers}


def curves(values: list[dict], x: str, y: str, diagonal: bool = False) -> dict:
    """Lines through points (x, y) of each series."""
    names = [one["series"] for one in values]
    unit = {"domain": [0, 1]}
    encoding = {
        "x": {"field": "x", "type": "quantitative", "title": x, "scale": unit},
        "y": {"field": "y", "type": "quantitative", "title": y, "scale": unit},
        "color": _series(names),
    }
    layers = [{"data": {"values": values}, "mark": {"type": "line"}, "encoding": encoding | {"order": {"field": "x"}}}]
    if diagonal:
        ends = [{"x": 0, "y": 0}, {"x": 1, "y": 1}]
        straight = {axis: encoding[axis] for axis in ("x", "y")}
        layers.append({"data": {"values": ends}, "mark": {"type": "line", "strokeDash": [3, 3], "color": QUIET},
                       "encoding": straight})  # fmt: skip
    return {"width": WIDTH, "height": 340, "layer": layers}


def heat_map(values: list[dict], x: str, y: str, title: str) -> dict:
    """Cells of x and y with a value; the value is written into the cell where there are few."""
    axis = {"type": "ordinal", "sort": None}
    encoding = {
        "x": {"field": "x", "title": x, "axis": {"labelAngle": 0}} | axis,
        "y": {"field": "y", "title": y} | axis,
    }
    colour = {"field": "mean", "type": "quantitative", "title": title, "scale": {"range": list(SCALE), "zero": False}}
    layers = [{"mark": "rect", "encoding": encoding | {"color": colour}}]
    if len({one["x"] for one in values}) <= 12:
        middle = sum((min(one["mean"] for one in values), max(one["mean"] for one in values))) / 2
        contrast = {"condition": {"test": f"datum.mean > {middle}", "value": "#ffffff"}, "value": "#1a1a1a"}
        text = {"text": {"field": "mean", "type": "quantitative", "format": ".2f"}, "color": contrast}
        layers.append({"mark": {"type": "text", "fontSize": 11}, "encoding": encoding | text})
    return {"data": {"values": values}, "width": WIDTH, "height": 380, "layer": layers}


def bars(values: list[dict], x: str, y: str) -> dict:
    """Points with intervals, for each x beside each other by series: x, mean, low, high, series."""
    names = [one["series"] for one in values]
    encoding = {
        "x": {"field": "x", "type": "nominal", "title": x, "axis": {"labelAngle": 0}, "sort": None},
        "xOffset": {"field": "series", "sort": list(dict.fromkeys(names))},
        "color": _series(names),
    }
    return {
        "data": {"values": values}, "width": WIDTH, "height": HEIGHT,
        "layer": [
            {"mark": {"type": "rule", "size": 2},
             "encoding": encoding | {"y": _quantitative("low", y), "y2": {"field": "high"}}},
            {"mark": {"type": "point", "filled": True, "size": 55}, "encoding": encoding | {"y": _quantitative("mean", y)}},
        ],
    }  # fmt: skip


def crosses(values: list[dict], x: str, y: str, joined: bool = False) -> dict:
    """Points with intervals in both directions and a label: x, x_low, x_high, mean, low, high, label, series."""
    names = [one["series"] for one in values]
    across, along = _quantitative("x", x), _quantitative("mean", y)
    low, high = min(one["low"] for one in values), max(one["high"] for one in values)
    if low == high:  # else the axis has one mark
        along["scale"] = along["scale"] | {"domain": [low - 0.1, high]}
    colour = {"color": _series(names)}
    layers = [
        {"mark": {"type": "rule", "opacity": 0.5},
         "encoding": {"x": across, "y": along | {"field": "low"}, "y2": {"field": "high"}} | colour},
        {"mark": {"type": "rule", "opacity": 0.5},
         "encoding": {"x": _quantitative("x_low", x), "x2": {"field": "x_high"}, "y": along} | colour},
        {"mark": {"type": "point", "filled": True, "size": 55}, "encoding": {"x": across, "y": along} | colour},
        {"mark": {"type": "text", "dx": 9, "dy": -8, "align": "left", "fontSize": 11},
         "data": {"values": _apart(values, 0.05 * (high - low))},
         "encoding": {"x": across, "y": along, "text": {"field": "label"}}},
    ]  # fmt: skip
    if joined:
        path = {"x": across, "y": along, "order": {"field": "order"}} | colour
        layers.insert(0, {"mark": {"type": "line", "opacity": 0.6}, "encoding": path})
    return {"data": {"values": values}, "width": WIDTH, "height": 320, "layer": layers}


def _apart(values, least: float) -> list[dict]:
    """The points that get a label: not those with the same one at the same x, nearer than `least` in height."""
    found = []
    for one in values:
        same = [other for other in found if (other["label"], other["x"]) == (one["label"], one["x"])]
        if all(abs(other["mean"] - one["mean"]) > least for other in same):
            found.append(one)
    return found
