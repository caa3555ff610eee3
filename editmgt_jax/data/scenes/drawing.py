"""A scene as a description, and the picture of it.

Axes    S rows or columns of the square picture
Exact   integer arithmetic throughout, so what two scenes share is equal in both pictures to the last bit
"""

import dataclasses
import operator

import numpy as np

from editmgt_jax.data.scenes import sprites


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object or person in a scene. x and y are the pixel where it stands."""

    key: str | tuple[str, str, str]
    colour: str | None  # the colour it was given; None leaves it as it is
    side: int
    x: int
    y: int
    flip: bool
    slot: str

    @property
    def name(self):
        return self.key if isinstance(self.key, str) else self.key[0]


@dataclasses.dataclass(frozen=True)
class Scene:
    background: str
    direction: int
    shift: tuple[int, int]
    flip: bool
    things: tuple[Thing, ...]


def _placed(thing, size):
    """The layer of a thing and where it falls: (layer, rows of the picture, columns, rows of the layer, columns)."""
    layer = sprites.layer(thing.key, thing.side, thing.colour)
    if thing.flip:
        layer = sprites.flipped(layer)
    top, left = thing.y - layer.ground[1], thing.x - layer.ground[0]
    height, width = layer.body.shape
    rows, columns = slice(max(0, top), min(size, top + height)), slice(max(0, left), min(size, left + width))
    inner = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    return layer, (rows, columns), inner


def footprint(thing, size, whole=True):
    """Where a thing covers the picture, with its shadow or (whole=False) without. -> bool [S S]"""
    mask = np.zeros((size, size), bool)
    layer, outer, inner = _placed(thing, size)
    mask[outer] = layer.rgba[inner][..., 3] > 0 if whole else layer.body[inner]
    return mask


def opaque(scene, size):
    """Where the things of a scene hide its background altogether. -> bool [S S]"""
    mask = np.zeros((size, size), bool)
    for thing in scene.things:
        layer, outer, inner = _placed(thing, size)
        mask[outer] |= layer.rgba[inner][..., 3] == 255
    return mask


def _backdrop(scene, size):
    m = sprites.margin(size)
    full = sprites.view(scene.background, scene.direction, size)
    if scene.flip:
        full = full[:, ::-1]
    dy, dx = scene.shift
    return full[m + dy : m + dy + size, m + dx : m + dx + size]


def render(scene, size):
    """-> uint8 [S S 3]"""
    canvas = _backdrop(scene, size).copy()
    for thing in sorted(scene.things, key=operator.attrgetter("y")):
        layer, outer, inner = _placed(thing, size)
        rgba = layer.rgba[inner]
        below = canvas[outer].astype(np.uint16) * (255 - rgba[..., 3:].astype(np.uint16))
        canvas[outer] = rgba[..., :3] + ((below + 127) // 255).astype(np.uint8)
    return canvas
