"""Damaged files end in errors for users. `tests/campaigns/fuzz.py` looks for others."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest
import tiny

from editmgt_jax.config import MGTConfig, PEFTConfig
from editmgt_jax.data.prepare.examine import PrepareConfig, Rejected, examine
from editmgt_jax.data.prepare.sources import open_source
from editmgt_jax.data.records import TOKENS, VERSION, read_manifest
from editmgt_jax.errors import UserError
from editmgt_jax.files import read_json
from editmgt_jax.weights.files import WeightFiles

DEEP = '{"a":' * 100_000
FIELD = {"name": "source_ids", "dtype": "uint16", "shape": [4, 4]}
SHARD = {"file": "a.array_record", "records": 3}


@pytest.mark.parametrize("text", [DEEP, "[" * 100_000, "{", "", '{"a": 1}}', "1" * 5000, b"\xff\xfe"])
def test_what_is_no_json_is_told_with_its_file(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match="a.json must be JSON: it is cut off or damaged"):
        read_json(path)


def test_a_json_value_of_another_kind_is_told(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    assert read_json(tmp_path / "a.json") == read_json(tmp_path / "a.json", list) == [1]
    with pytest.raises(UserError, match="a.json must be a JSON object; got list"):
        read_json(tmp_path / "a.json", dict)


def test_readers_of_json_take_what_is_nested_too_deep_for_damage(tmp_path):
    for name, read in {
        "config.json": MGTConfig.from_json,
        "adapter_config.json": PEFTConfig.from_json,
        "edit_turns.json": lambda path: open_source(path.parent),
        "manifest.json": lambda path: read_manifest(path.parent),
        "model.safetensors.index.json": lambda path: WeightFiles(path.parent),
    }.items():
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_text(DEEP)
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            read(folder / name)
    (tmp_path / "pairs.jsonl").write_text(DEEP)
    (pair,) = open_source(tmp_path)[0].read()
    assert pair.defect == ("bad_line", "ValueError: it is nested too deep")


@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf"), -1e305])
@pytest.mark.parametrize("key", ["joint_attention_dim", "num_layers"])
def test_a_config_s_numbers_are_finite(key, value):
    with pytest.raises(UserError, match=key):
        MGTConfig.from_dict(tiny.MGT_CONFIG.to_dict() | {key: value})


@pytest.mark.parametrize(
    "change",
    [
        {"rank_pattern": {"a{99999999999}": 2}},
        {"alpha_pattern": {"(?i)to_q": 2}},
        {"layers_to_transform": [0], "layers_pattern": ["("]},
        {"target_modules": "(" * 5000},
        {"r": 10**400},
        {"lora_alpha": float("nan")},
        {"lora_alpha": 10**400},
    ],
    ids=str,
)
def test_an_adapter_s_odd_values_are_named(change):
    values = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["to_q"]} | change
    with pytest.raises(UserError, match=list(change)[-1]):
        PEFTConfig.from_dict(values)


@pytest.mark.parametrize(
    "buckets",
    [
        5,
        {"a": {}},
        {"a": {"fields": [FIELD]}},
        {"a": {"fields": [FIELD | {"shape": [4, {}]}], "shards": []}},
        {"a": {"fields": [FIELD | {"shape": [10**400]}], "shards": []}},
        {"a": {"fields": [FIELD | {"dtype": "x"}], "shards": []}},
        {"a": {"fields": [FIELD], "shards": [SHARD | {"file": {}}]}},
        {"a": {"fields": [FIELD], "shards": [SHARD | {"records": "3"}]}},
    ],
    ids=lambda buckets: json.dumps(buckets)[:40],
)
def test_a_damaged_manifest_is_named(tmp_path, buckets):
    whole = {
        "version": VERSION,
        "kind": TOKENS,
        "categories": ["add"],
        "buckets": {"a": {"fields": [FIELD], "shards": [SHARD]}},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(whole))
    assert read_manifest(tmp_path, TOKENS) == whole
    for damaged in (whole | {"buckets": buckets}, whole | {"categories": 3}, whole | {"kind": []}):
        (tmp_path / "manifest.json").write_text(json.dumps(damaged))
        with pytest.raises(UserError, match="manifest.json must .* make the records again"):
            read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["input_img", "output_img", "instruction", "mask", "type"])
def test_columns_of_any_type_are_rejected_pair_by_pair(tmp_path, name):
    kinds = {
        "number": pa.array([5]),
        "list": pa.array([["a"]]),
        "path of a number": pa.array([{"bytes": None, "path": 5}]),
        "bytes of a list": pa.array([{"bytes": [1, 2]}]),
        "date": pa.array([0], pa.timestamp("s")),
        "map": pa.array([[("bytes", b"a")]], pa.map_(pa.string(), pa.binary())),
    }
    for number, column in enumerate(kinds.values()):
        columns = {
            "input_img": pa.array([b"a"]),
            "output_img": pa.array([b"b"]),
            "instruction": pa.array(["make it red"]),
        }
        path = tmp_path / f"{number}.parquet"
        pa.parquet.write_table(pa.table(columns | {name: column}), path)
        (pair,) = open_source(path)[0].read()
        with pytest.raises(Rejected):
            examine(pair, PrepareConfig(resolution=64))


def test_turns_of_other_types_are_named(tmp_path):
    for turn in ({"input": 5, "output": "b", "instruction": "c"}, {"input": "a", "output": "b", "instruction": 5}, 7):
        (tmp_path / "edit_turns.json").write_text(json.dumps([turn]))
        with pytest.raises(UserError, match="edit_turns.json must list turns"):
            open_source(tmp_path)
