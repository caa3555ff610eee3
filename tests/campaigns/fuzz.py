"""Gives damaged files to everything that reads them; whatever is not an error for users is a defect.

    pip install hypothesis
    python tests/campaigns/fuzz.py --examples 2000

Files of pictures, weights, adapters, configs, tokenizers, records and raw pairs are made whole, and then changed: bytes, lengths, JSON
values, types of columns. Prints a line a target, and of each defect the smallest input that hypothesis came upon.
"""

import argparse
import base64
import contextlib
import copy
import io
import json
import os
import shutil
import struct
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet  # noqa: E402
import tiny  # noqa: E402
import tokens  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from PIL import Image  # noqa: E402

import editmgt_jax  # noqa: E402
from editmgt_jax import images  # noqa: E402
from editmgt_jax.data.prepare.examine import PrepareConfig, Rejected, examine  # noqa: E402
from editmgt_jax.data.prepare.sources import open_source  # noqa: E402
from editmgt_jax.data.records import TokenSet  # noqa: E402
from editmgt_jax.errors import EditMGTError  # noqa: E402
from editmgt_jax.models.prompts import PromptTokenizer  # noqa: E402
from editmgt_jax.weights import lora  # noqa: E402
from editmgt_jax.weights.components import abstract_params  # noqa: E402
from editmgt_jax.weights.files import WeightFiles  # noqa: E402
from editmgt_jax.weights.loading import load_mgt, load_model  # noqa: E402

RIGHT = (EditMGTError, Rejected, FileNotFoundError, FileExistsError)  # what damaged files may raise
OWN = os.path.dirname(editmgt_jax.__file__)


# ---- changed values and bytes

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


# ---- targets


class Target(NamedTuple):
    """What is drawn, and what reads it."""

    strategy: st.SearchStrategy
    read: Callable
    share: float = 1.0  # of the examples, for what takes long


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
        __import__("PIL.ImageCms").ImageCms.ImageCmsProfile(__import__("PIL.ImageCms").ImageCms.createProfile("sRGB")),
    )
    exif[0x0112] = 6
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        with io.BytesIO() as file:
            Image.fromarray(array).convert("RGB").save(file, kind, exif=exif, icc_profile=profile.tobytes())
            found.append(file.getvalue())
    return found


def read_picture(data: bytes) -> None:
    """As an image, a mask and a data URI."""
    for read in (
        lambda: images.load(data, keep_profile=True),
        lambda: images.load_mask(data, (20, 24), may_be_empty=True),
        lambda: images.load("data:image/png;base64," + base64.b64encode(data).decode()),
    ):
        with contextlib.suppress(images.ImageError):
            read()


class Folder:
    """A folder in which one file is replaced."""

    def __init__(self, folder: Path, name: str):
        self.path = folder / name
        self.before = self.path.read_bytes()

    @contextlib.contextmanager
    def having(self, data: bytes):
        """With another content of the file."""
        self.path.write_bytes(data)
        try:
            yield
        finally:
            self.path.write_bytes(self.before)


def replaced(folder: Path, name: str, read: Callable[[], object], how="json", share=1.0) -> Target:
    """Reads a folder with one file changed."""
    one = Folder(folder, name)

    def run(data):
        with one.having(data):
            read()

    whole = changed_bytes([one.before]) if how == "bytes" else changed_json(json.loads(one.before))
    return Target(whole, run, share)


@st.composite
def changed_weights(draw, whole: bytes) -> bytes:
    """A safetensors file with a changed header."""
    length = struct.unpack("<Q", whole[:8])[0]
    header = draw(changed_json(json.loads(whole[8 : 8 + length])))
    said = draw(st.sampled_from([len(header)] * 6 + [0, 2**63, len(header) + 1, 10**9]))
    return struct.pack("<Q", said) + header + whole[8 + length :]


def weights_of(folder: Path, read: Callable[[], object], name: str) -> Target:
    """A folder whose weight file has another header, or other bytes."""
    one = Folder(folder, name)

    def run(data):
        with one.having(data):
            read()

    return Target(changed_weights(one.before) | changed_bytes([one.before]), run)


def read_tensors(folder: Path) -> None:
    """All tensors of a folder."""
    files = WeightFiles(folder)
    for key in files.tensors:
        files.read(key)


def read_pairs(folder: Path) -> None:
    """All raw pairs of a source, examined; what is rejected is."""
    for part in open_source(folder, None, 16):
        for pair in part.read():
            with contextlib.suppress(Rejected):
                examine(pair, PrepareConfig(resolution=32))


def png(number: int) -> bytes:
    """A picture of a number."""
    with io.BytesIO() as file:
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)).save(file, "PNG")
        return file.getvalue()


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


def targets(home: Path) -> dict[str, Target]:
    """All, with their whole files in a folder."""
    model = tiny.write_model(home / "model")
    _, config = load_mgt(model / "editmgt")[0], tiny.MGT_CONFIG
    abstract = abstract_params(load_mgt(model / "editmgt", check_only=True)[0])
    adapter = home / "adapter"
    ours = lora.LoRAConfig(r=2, lora_alpha=4.0, target_modules=("to_q", "to_k"))
    lora.save_lora(adapter, ours, config, lora.init_lora(ours, config, abstract, jax.random.key(0)))
    peft = json.loads((adapter / "adapter_config.json").read_text()) | {
        "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_k": 3.0}, "exclude_modules": ["to_v"], "use_rslora": False,
        "layers_to_transform": [0, 1], "layers_pattern": ["transformer_blocks", "single_transformer_blocks"], "peft_type": "LORA",
    }  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(peft))
    tokens.write_random(home / "tokens", model)
    pairs, table, brush = home / "pairs", home / "table", home / "brush"
    for folder in (pairs, table, brush / "images" / "1"):
        folder.mkdir(parents=True)
        for number, name in enumerate(("a.png", "b.png")):
            (folder / name).write_bytes(png(number))
    (pairs / "pairs.jsonl").write_text("{}")
    turn = {"input": "1-input.png", "output": "1-output1.png", "mask": "1-mask1.png", "instruction": "make it red"}
    (brush / "edit_turns.json").write_text(json.dumps([turn, turn]))
    (table / "a.parquet").write_bytes(whole_table())

    def check():
        load_model(model, check_only=True)

    found = {
        "pictures": Target(changed_bytes(picture_bytes()), read_picture),
        "safetensors": weights_of(model / "vqvae", lambda: read_tensors(model / "vqvae"), "diffusion_pytorch_model.safetensors"),
        "weights of a model": weights_of(model / "text_encoder", lambda: load_model(model), "model.safetensors"),
        "jsonl": Target(lines(), reader(Folder(pairs, "pairs.jsonl"), pairs)),
        "edit_turns.json": replaced(brush, "edit_turns.json", lambda: read_pairs(brush)),
        "parquet columns": Target(tables(), reader(Folder(table, "a.parquet"), table)),
        "parquet bytes": replaced(table, "a.parquet", lambda: read_pairs(table), "bytes"),
        "adapter config": replaced(adapter, "adapter_config.json", lambda: lora.read(adapter, config, abstract)),
        "adapter weights": weights_of(adapter, lambda: lora.read(adapter, config, abstract), "adapter_model.safetensors"),
        "token manifest": replaced(home / "tokens", "manifest.json", lambda: read_tokens(home / "tokens")),
        "token shard": replaced(home / "tokens", next((home / "tokens").glob("*.array_record")).name, lambda: read_tokens(home / "tokens"), "bytes"),
        "prompts": Target(st.text(max_size=30) | TEXTS, lambda text: PromptTokenizer(model / "tokenizer")([text]), 0.1),
    }  # fmt: skip
    for name in (
        "editmgt/config.json",
        "vqvae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
    ):
        found[name] = replaced(model, name, check, share=0.3)
    for path in sorted((model / "tokenizer").glob("*.json")):
        found[f"tokenizer/{path.name}"] = replaced(model, f"tokenizer/{path.name}", check, share=0.2)
    return found


def whole_table() -> bytes:
    """A parquet file of two pairs."""
    with io.BytesIO() as file:
        pa.parquet.write_table(
            pa.table({"input_img": [png(1), png(2)], "output_img": [png(3), png(4)], "instruction": ["a", "b"]}), file
        )
        return file.getvalue()


def reader(one: Folder, folder: Path) -> Callable[[bytes], None]:
    """Reads the pairs of a folder with another content of a file."""

    def run(data):
        with one.having(data):
            read_pairs(folder)

    return run


def read_tokens(folder: Path) -> None:
    """All records of a folder."""
    for bucket in TokenSet(folder).buckets.values():
        bucket.categories()
        for index in range(len(bucket)):
            bucket[index]


# ---- the campaign


def tried(target: Target, examples: int, number: int) -> tuple[int, dict[str, tuple[bytes, str]]]:
    """-> (inputs that were read, {defect: (its smallest input, traceback)})"""
    defects, count = {}, 0

    @seed(number)
    @settings(
        max_examples=max(1, int(examples * target.share)),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.strategy)
    def one(data):
        nonlocal count
        count += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target.read(data)
        except RIGHT:
            return
        except Exception as error:  # noqa: BLE001  (these are what is looked for)
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(OWN)]
            where = f"{os.path.relpath(frames[-1].filename, OWN)}:{frames[-1].lineno}" if frames else "?"
            name = f"{type(error).__name__} at {where}: {str(error)[:150]!r}"
            key = f"{type(error).__name__} at {where}"
            size = len(data)
            if key not in defects or size < len(defects[key][0]):
                defects[key] = (data, name)

    one()
    return count, defects


def main() -> None:
    """Runs the campaign. Errors: SystemExit with code 1 when there is a defect."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=2000, help="of each target")
    parser.add_argument("--targets", nargs="+", help="names of targets (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    home, total, inputs = Path(tempfile.mkdtemp()), 0, 0
    try:
        for name, target in targets(home).items():
            if args.targets is None or name in args.targets:
                count, defects = tried(target, args.examples, args.seed)
                print(f"{name}: {count} inputs, {len(defects)} defects", flush=True)
                for data, said in defects.values():
                    print(f"  {said}\n    input {data[:300]!r}", flush=True)
                total, inputs = total + len(defects), inputs + count
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(f"{inputs} inputs, {total} defects")
    raise SystemExit(bool(total))


if __name__ == "__main__":
    main()
