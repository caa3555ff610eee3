"""Damaged inputs of the campaign of `fuzz.py`: whole files, and strategies that change them."""

import contextlib
import copy
import io
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from hypothesis import strategies as st
from PIL import Image, ImageCms

TEXTS = st.sampled_from(
    ["", " ", "(", "(?i)a", "a{99999999999}", "\ud800", "\0", "é", "a" * 3000, "1", "nan", "../x", "/", "fp16"]
)
NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 3.5, 0.0, 2**31, 2**63, -(2**63), 10**400, 1e300, float("nan"), float("inf"), -0.0]
)
ODD = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS | st.integers(-5, 300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
DEEP = st.sampled_from(
    ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, '"', "{}", "[]", "null", "0", "\ufeff{}", "{'a': 1}", ""]
)


def places(value, at=()) -> list[tuple]:
    """The places of a JSON value: paths of keys and numbers."""
    found = [at] if at else []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += places(inner, (*at, key))
    return found


@st.composite
def changed_json(draw, whole) -> bytes:
    """The text of a JSON value in which some places have other values, are gone or new; or another text."""
    if draw(st.integers(0, 9)) == 0:
        return draw(DEEP).encode()
    value = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        where = places(value)
        if not where:
            break
        *path, last = draw(st.sampled_from(where))
        inner = value
        for key in path:
            inner = inner[key]
        kind = draw(st.integers(0, 4))
        if kind == 0:
            del inner[last]
        elif kind == 1 and isinstance(inner, dict):
            inner[draw(TEXTS)] = draw(ODD)
        elif kind == 2:
            inner[last] = [inner[last], draw(ODD)]
        else:
            inner[last] = draw(ODD)
    return json.dumps(value).encode()


@st.composite
def changed_bytes(draw, choices) -> bytes:
    """One of some contents with bytes changed, cut off, doubled or left out."""
    data = bytearray(draw(st.sampled_from(choices)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, min(len(data), 10**6) - 1)))
        kind = draw(st.integers(0, 4))
        if kind == 0:
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at : at + 4] = draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\1"]))
        elif kind == 3:
            del data[at : at + draw(st.integers(1, 64))]
        else:
            data[at:at] = data[: draw(st.integers(1, 64))]
    return bytes(data)


def png(number: int) -> bytes:
    """A picture of a number."""
    with io.BytesIO() as file:
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)).save(file, "PNG")
        return file.getvalue()


def picture_bytes() -> list[bytes]:
    """A picture in all formats, with and without what files may have besides."""
    array, found = np.random.default_rng(0).integers(0, 256, (24, 20, 4), np.uint8), []
    for mode in ("RGB", "L", "P", "RGBA", "CMYK", "I;16", "1", "LA", "F"):
        one = Image.fromarray(array).convert("RGB")
        picture = (
            Image.fromarray(array).convert(mode) if mode == "RGBA" else one.convert("L" if mode == "I;16" else mode)
        )
        picture = picture.convert("I").convert("I;16") if mode == "I;16" else picture
        for kind in (
            "PNG",
            "JPEG",
            "WEBP",
            "TIFF",
            "GIF",
            "BMP",
            "ICO",
            "JPEG2000",
            "PPM",
            "TGA",
            "AVIF",
            "PCX",
            "DDS",
            "SGI",
        ):
            with contextlib.suppress(OSError, ValueError, KeyError), io.BytesIO() as file:
                picture.save(file, kind)
                found.append(file.getvalue())
    exif, profile = (
        Image.Exif(),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
    )
    exif[0x0112] = 6
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        with io.BytesIO() as file:
            Image.fromarray(array).convert("RGB").save(file, kind, exif=exif, icc_profile=profile.tobytes())
            found.append(file.getvalue())
    return found


@st.composite
def changed_weights(draw, whole: bytes) -> bytes:
    """A safetensors file with a changed header."""
    length = struct.unpack("<Q", whole[:8])[0]
    header = draw(changed_json(json.loads(whole[8 : 8 + length])))
    said = draw(st.sampled_from([len(header)] * 6 + [0, 2**63, len(header) + 1, 10**9]))
    return struct.pack("<Q", said) + header + whole[8 + length :]


@st.composite
def lines(draw) -> bytes:
    """A pairs.jsonl of whole, changed and odd lines."""
    whole = {"source": "a.png", "target": "b.png", "instruction": "make it red", "mask": None, "category": "style"}
    texts = [
        draw(changed_json(whole) | st.just(json.dumps(whole).encode()) | st.binary(max_size=20))
        for _ in range(draw(st.integers(1, 3)))
    ]
    return draw(st.sampled_from([b"\n", b"\r\n", b"\0"])).join(texts)


@st.composite
def tables(draw) -> bytes:
    """A parquet file whose columns have any type."""
    count = 2
    kinds = {
        "bytes": lambda: pa.array([png(1), png(2)]),
        "struct": lambda: pa.array([{"bytes": png(1), "path": None}, {"bytes": None, "path": "a.png"}]),
        "large": lambda: pa.array([png(1), None], pa.large_binary()),
        "text": lambda: pa.array(["make it red", None]),
        "bad text": lambda: pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"a"]).buffers()),
        "dictionary": lambda: pa.array(["a", "b"]).dictionary_encode(),
        "number": lambda: pa.array([1, None]),
        "float": lambda: pa.array([1.5, float("nan")]),
        "list": lambda: pa.array([["a"], []]),
        "struct of lists": lambda: pa.array([{"bytes": [1, 2]}, {"bytes": []}]),
        "other struct": lambda: pa.array([{"a": 1}, {"a": 2}]),
        "path of numbers": lambda: pa.array([{"bytes": None, "path": 5}, None]),
        "null": lambda: pa.nulls(count),
        "bool": lambda: pa.array([True, False]),
        "date": lambda: pa.array([0, 1], pa.timestamp("s")),
        "decimal": lambda: pa.array([1, 2], pa.int64()).cast(pa.decimal128(20)),
        "list of bytes": lambda: pa.array([[png(1)], [b"a"]]),
        "fixed": lambda: pa.array([b"abcd", b"efgh"], pa.binary(4)),
        "map": lambda: pa.array([[("bytes", b"a")], []], pa.map_(pa.string(), pa.binary())),
    }
    columns = {}
    for name in ("input_img", "output_img", "instruction", "mask", "type"):
        usual = "bytes" if name in ("input_img", "output_img") else "text"
        columns[name] = kinds[draw(st.sampled_from([usual] * 8 + sorted(kinds)))]()
    if draw(st.integers(0, 9)) == 0:
        columns.pop(draw(st.sampled_from(sorted(columns))))
    table = pa.table(columns)
    if draw(st.booleans()):
        note = draw(changed_json({"info": {"features": {"type": {"names": ["a", "b"], "_type": "ClassLabel"}}}}))
        table = table.replace_schema_metadata({b"huggingface": note})
    with io.BytesIO() as file:
        pa.parquet.write_table(table, file)
        return file.getvalue()


def whole_table() -> bytes:
    """A parquet file of two pairs."""
    with io.BytesIO() as file:
        pa.parquet.write_table(
            pa.table({"input_img": [png(1), png(2)], "output_img": [png(3), png(4)], "instruction": ["a", "b"]}), file
        )
        return file.getvalue()
