"""Colours of pictures in words, by measurement, and changing them. Pure arrays: no files, no sprites.

Axes    n pixels, H W rows and columns; hue is in degrees [0, 360), saturation and value in [0, 1]
Rule    a colour name is what is *measured* on the pixels, never what was intended: the dominant hue is the peak
        of the hue histogram of saturated pixels, refined by the mean hue around that peak.
"""

import numpy as np

TARGET_HUES = {  # the colours that an object can be given, and the middle of each
    "red": 355.0,
    "orange": 27.0,
    "yellow": 52.0,
    "green": 122.0,
    "cyan": 180.0,
    "blue": 219.0,
    "purple": 271.0,
    "pink": 318.0,
}
NAMES = (*TARGET_HUES, "brown")
GREYS = {"black": (0.02, 0.3), "white": (0.55, 1.12), "gray": (0.15, 0.75)}  # values that shadows and lights get
_ODD = ("brown", *GREYS)  # not told by their hue alone
_BROWN = 22.0  # its hue
_UPPER_BOUNDS = (  # hue below which a name holds, in order; red wraps around
    (9.0, "red"),
    (36.5, "orange"),
    (69.0, "yellow"),
    (168.0, "green"),
    (196.0, "cyan"),
    (249.0, "blue"),
    (291.0, "purple"),
    (337.0, "pink"),
    (360.0, "red"),
)
_CLUSTER = 42.0  # degrees around the dominant hue that count as 'the' colour of an object
_BINS = 36


def rgb_to_hsv(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 or float [... 3] in 0..255 -> float32 hue [...] in degrees, saturation [...], value [...]."""
    rgb = np.asarray(rgb, np.float32) / 255
    high, low = rgb.max(-1), rgb.min(-1)
    chroma = high - low
    safe = np.where(chroma > 0, chroma, 1)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    hue = np.where(
        high == red,
        (green - blue) / safe,
        np.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    return (60 * hue) % 360, np.where(high > 0, chroma / np.where(high > 0, high, 1), 0), high


def hsv_to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Inverse of `rgb_to_hsv`. -> float32 [... 3] in 0..255"""
    sector = np.asarray([5, 3, 1], np.float32) + (hue / 60)[..., None]
    sector = sector % 6
    ramp = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return 255 * value[..., None] * (1 - saturation[..., None] * ramp)


def _gap(hue, centre):
    """Signed distance between hues, in degrees, -180..180."""
    return (hue - centre + 180) % 360 - 180


def dominant_hue(rgb_pixels: np.ndarray, weights: np.ndarray) -> tuple[float, float, float, float] | None:
    """(hue in degrees, median saturation, median value, share of the weight) of the main colour, or None if it is grey."""
    hue, saturation, value = rgb_to_hsv(np.reshape(rgb_pixels, (-1, 3)))
    weights = np.ravel(weights).astype(np.float64)
    coloured = weights * ((saturation > 0.22) & (value > 0.16))
    total = weights.sum()
    if total <= 0 or coloured.sum() < 0.12 * total:
        return None
    strength = coloured * saturation * value
    histogram = np.bincount((hue * (_BINS / 360)).astype(int) % _BINS, strength, _BINS)
    smooth = histogram + np.roll(histogram, 1) + np.roll(histogram, -1)
    peak = (np.argmax(smooth) + 0.5) * (360 / _BINS)
    near = coloured * (np.abs(_gap(hue, peak)) < _CLUSTER)
    centre = (peak + np.average(_gap(hue, peak), weights=near * saturation * value + 1e-12)) % 360
    inside = near > 0
    return centre, float(np.median(saturation[inside])), float(np.median(value[inside])), near.sum() / total


def name_colour(rgb_pixels: np.ndarray, weights: np.ndarray | None = None) -> str | None:
    """The name of the main colour of some pixels, or None where they are mostly grey.

    rgb_pixels is [n 3] (or any shape ending in 3) in 0..255; weights [n] says how much each pixel counts (for
    instance its opacity). The answer is one of `NAMES`.
    """
    rgb_pixels = np.asarray(rgb_pixels)
    weights = np.ones(rgb_pixels.shape[:-1]) if weights is None else weights
    main = dominant_hue(rgb_pixels, weights)
    if main is None:
        return None
    hue, saturation, value, _ = main
    name = next(name for bound, name in _UPPER_BOUNDS if hue % 360 < bound)  # a mean may round to 360
    if name in ("red", "orange") and value < 0.64:
        return "brown"
    if name == "red" and saturation < 0.55:
        return "pink"
    return name


def _amount(away, saturation):
    """How much of a pixel's colour is the main one, from its distance to the main hue: 0..1."""
    near = np.clip((1.5 * _CLUSTER - np.abs(away)) / (0.5 * _CLUSTER), 0, 1)
    return near * np.clip((saturation - 0.1) / 0.2, 0, 1)


def _main_hue(rgb, opacity, target):
    main = dominant_hue(rgb, opacity)
    if main is None:
        raise ValueError(f"only a coloured object can be recoloured, this one is grey; do not ask for {target!r}")
    return main[0]


def main_area(rgb: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """How much of each pixel is in the main colour. uint8 [H W 3], opacity [H W] -> float [H W] in 0..1"""
    hue, saturation, _ = rgb_to_hsv(rgb)
    return _amount(_gap(hue, _main_hue(rgb, opacity, "a pattern")), saturation)


def recolour(rgb: np.ndarray, opacity: np.ndarray, target: str) -> np.ndarray:
    """Give the main colour of an object the colour called `target`; other hues (leaves, windows, wheels) stay.

    uint8 [H W 3], opacity [H W] -> uint8 [H W 3]. Shading and, at half strength, the spread of hues are kept. `target` is
    a key of `TARGET_HUES`, 'brown', or one of `GREYS`.
    """
    main = _main_hue(rgb, opacity, target)
    hue, saturation, value = rgb_to_hsv(rgb)
    away = _gap(hue, main)
    moved = ((_BROWN if target in _ODD else TARGET_HUES[target]) + np.clip(0.35 * away, -9, 9)) % 360
    if target in ("yellow", "orange"):  # dark yellow would read as olive, dark orange as brown
        value_new, saturation_new = value**0.45, np.minimum(1, saturation * 1.1)
    elif target == "pink":
        value_new, saturation_new = value**0.6, saturation * 0.72
    elif target == "brown":
        value_new, saturation_new = 0.5 * value, np.clip(saturation, 0.5, 0.75)
    elif target in GREYS:
        light = value * (1 - 0.35 * saturation)  # a vivid colour is as bright as white but looks darker
        dark, bright = GREYS[target]
        value_new, saturation_new = dark + (bright - dark) * light, 0 * saturation
    else:
        value_new, saturation_new = value, saturation
    painted = hsv_to_rgb(moved, saturation_new, value_new)
    mixed = rgb + _amount(away, saturation)[..., None] * (painted - rgb)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
