"""Tokenising and loading: what is written comes back, in the same order for any number of hosts, however often stopped."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import tokens

from editmgt_jax.data.loader import DataError, Mixture, token_batches
from editmgt_jax.data.records import ShardReader, TokenSet, read_manifest
from editmgt_jax.errors import UserError


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr("editmgt_jax.data.tokenize.SHARD", 16)


@pytest.fixture
def folder(tmp_path):
    tokens.write(tmp_path / "tokens")
    return tmp_path / "tokens"


def mixture(*folders, **categories):
    return Mixture(tuple((str(folder), 1.0) for folder in folders), tuple(categories.items()))


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# ---- tokenizing


def test_records_hold_what_the_pairs_say(folder):
    found = TokenSet(folder)
    assert {name: len(bucket) for name, bucket in found.buckets.items()} == {"32x32": 49, "64x32": 22}
    assert found.manifest["left_out"]["count"] == 2  # pair 7 of each bucket
    assert "at most 3 tokens" in found.manifest["left_out"]["examples"][0][1]
    record = found.buckets["64x32"][21]
    assert record["source_ids"].shape == (4, 8) and record["source_ids"].dtype == np.uint16
    assert (record["source_ids"] == 22).all() and (record["target_ids"] == 255 - 22 + 256 * 255).all()
    np.testing.assert_array_equal(record["micro"], [128, 64, 5, 3, 6])
    assert "".join(map(chr, record["text_ids"])) == " 22" and record["llm_ids"].shape == (2,)
    categories = found.buckets["32x32"].categories()
    pairs = tokens.Pairs("32x32", 50)
    expected = [pairs[i]["category"] for i in range(50) if i != 7]
    assert [found.categories[i] for i in categories] == expected


def test_a_stopped_job_goes_on(folder, tmp_path):
    whole = {path.name: path.read_bytes() for path in folder.glob("*.array_record")}
    (folder / "manifest.json").unlink()
    (folder / "reports" / "32x32-00001.json").unlink()
    (folder / "32x32-00001.array_record").write_bytes(b"half")
    report = tokens.write(folder)
    assert report["images"] == 2 * 16 and 0 <= report["waited"] <= 1
    assert {path.name: path.read_bytes() for path in folder.glob("*.array_record")} == whole
    with pytest.raises(ValueError, match="belongs to a job with other sizes "):
        tokens.write(folder, {"32x32": 51})


def test_processes_share_the_shards(folder, tmp_path):
    other = tmp_path / "shared"
    for number in (1, 0):
        tokens.write(other, process=(number, 2))
    for path in folder.rglob("*.*"):
        if path.is_file():
            assert path.read_bytes() == (other / path.relative_to(folder)).read_bytes(), path


def test_text_states_can_be_stored(tmp_path):
    import dataclasses

    import jax.numpy as jnp

    def states(ids):
        return {"states": jnp.ones((8, 3, 5), jnp.bfloat16) * ids["text_ids"][:, :, None]}

    encoders = dataclasses.replace(tokens.ENCODERS, states=states)
    tokens.tokenize({"32x32": tokens.Pairs("32x32", 5)}, encoders, tmp_path / "t", {}, batch_size=8)
    record = TokenSet(tmp_path / "t").buckets["32x32"][2]
    assert record["states"].dtype == "bfloat16" and record["states"].shape == (3, 5)
    np.testing.assert_array_equal(record["states"][:, 0].astype(np.int32), record["text_ids"])


# ---- loading


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_same_global_batches(folder, hosts):
    whole = take(token_batches(mixture(folder), 8, seed=1), 12)
    parts = [
        take(token_batches(mixture(folder), 8, seed=1, examples=range(8 * i // hosts, 8 * (i + 1) // hosts)), 12)
        for i in range(hosts)
    ]
    for step, batch in enumerate(whole):
        joined = {name: np.concatenate([part[step][name] for part in parts]) for name in batch}
        assert same(joined, batch)


@pytest.mark.parametrize("workers", [0, 4])
def test_a_stop_changes_nothing(folder, workers):
    whole = take(token_batches(mixture(folder), 4, seed=1), 20)
    first = token_batches(mixture(folder), 4, seed=1, workers=workers)
    before = take(first, 7)
    state = json.loads(json.dumps(first.get_state()))
    second = token_batches(mixture(folder), 4, seed=1, workers=workers)
    second.set_state(state)
    after = take(second, 13 if not workers else 5)
    assert all(same(one, other) for one, other in zip(before + after, whole, strict=False))
    if workers:
        for process in multiprocessing.active_children():
            process.kill()
        with pytest.raises(DataError, match="a process that reads data ahead died.*data.workers") as died:
            take(second, 1000)
        assert died.value.transient


def test_a_state_of_other_batches_is_refused(folder):
    state = token_batches(mixture(folder), 4, seed=1).get_state()
    token_batches(mixture(folder), 4, seed=1, examples=(1, 3), workers=2).set_state(state)
    for other in (token_batches(mixture(folder), 8, seed=1), token_batches(mixture(folder), 4, seed=2)):
        with pytest.raises(DataError, match="drawn as before the stop"):
            other.set_state(state)


def test_epochs_are_permutations_in_different_orders(tmp_path):
    tokens.write(tmp_path / "t", {"32x32": 48}, offset=100)
    seen = [
        number
        for batch in take(token_batches(mixture(tmp_path / "t"), 8, seed=3), 12)
        for number in tokens.numbers(batch)
    ]
    first, second = seen[:48], seen[48:]
    assert sorted(first) == sorted(second) == list(range(100, 148))
    assert first != second and first != sorted(first)
    other = [n for batch in take(token_batches(mixture(tmp_path / "t"), 8, seed=4), 6) for n in tokens.numbers(batch)]
    assert other != first


def test_a_batch_is_of_one_bucket_and_buckets_come_by_size(folder):
    shapes = [batch["source_ids"].shape for batch in take(token_batches(mixture(folder), 4, seed=0), 142)]
    wide = sum(shape == (4, 4, 8) for shape in shapes)
    assert set(shapes) == {(4, 4, 4), (4, 4, 8)} and abs(wide / 142 - 22 / 71) < 0.05


def test_folders_and_categories_have_weights(tmp_path):
    tokens.write(tmp_path / "a", {"32x32": 30}, offset=100)
    tokens.write(tmp_path / "b", {"32x32": 30}, offset=200)
    drawn = Mixture(((str(tmp_path / "a"), 3.0), (str(tmp_path / "b"), 1.0)))
    seen = [n for batch in take(token_batches(drawn, 8, seed=0), 60) for n in tokens.numbers(batch)]
    assert abs(np.mean(np.array(seen) < 200) - 0.75) < 0.02
    weighted = mixture(tmp_path / "a", add=0.0, style=2.0)
    seen = np.array([n for batch in take(token_batches(weighted, 8, seed=0), 60) for n in tokens.numbers(batch)])
    assert not (seen % 3 == 0).any() and abs((seen % 3 == 2).mean() - 2 / 3) < 0.02


def test_corrupt_records_are_named_skipped_and_counted(tmp_path, capfd):
    folder = tmp_path / "one"
    tokens.write(folder, {"32x32": 50})
    path = folder / "32x32-00000.array_record"
    data = bytearray(path.read_bytes())
    position = data.find(np.full(16, 3, np.uint16).tobytes())  # the ids of pair 3
    data[position : position + 8] = b"\xff" * 8
    path.write_bytes(data)
    only = mixture(folder)
    seen = [n for batch in take(token_batches(only, 4, seed=0), 60) for n in tokens.numbers(batch)]
    assert 3 not in seen and {2, 4} <= set(seen)
    message = capfd.readouterr().err
    assert message.count("record 3 of") == 1 and "32x32-00000" in message
    with pytest.raises(DataError, match="more than 0 records cannot be read.*record 3"):
        take(token_batches(only, 4, seed=0, bad_records=0), 60)


def test_the_records_of_a_batch_can_be_named(folder):
    batches = token_batches(mixture(folder), 4, seed=5, examples=(0, 1))
    files = {"32x32": 0, "64x32": 0}
    for step in range(10):
        names, batch = batches.names(step), next(batches)
        assert len(names) == 4
        for name, number in zip(names[:2], tokens.numbers(batch), strict=True):
            record, shard = name.removeprefix("record ").split(" of ")
            bucket = Path(shard).name.partition("-")[0]
            found = TokenSet(folder).buckets[bucket].schema.unpack(ShardReader(shard).read(int(record)))
            assert found["source_ids"][0, 0] == number
            files[bucket] += 1
    assert all(files.values())


def test_what_cannot_be_drawn_from(folder, tmp_path):
    with pytest.raises(ValueError, match=r"weights can be given for .*got \['motion'\]"):
        token_batches(mixture(folder, motion=2.0), 8, seed=0)
    with pytest.raises(ValueError, match="no record is left"):
        token_batches(mixture(folder, add=0.0, remove=0.0, style=0.0), 8, seed=0)
    with pytest.raises(ValueError, match="positive weights"):
        token_batches(Mixture(((str(folder), 0.0),)), 8, seed=0)
    with pytest.raises(FileNotFoundError, match="needs its manifest.json"):
        token_batches(mixture(tmp_path), 8, seed=0)
    (folder / "32x32-00001.array_record").unlink()
    with pytest.raises(FileNotFoundError, match="lacks.*32x32-00001"):
        token_batches(mixture(folder), 8, seed=0)


def test_a_folder_of_another_kind_or_version(folder):
    manifest = read_manifest(folder)
    whole = (folder / "manifest.json").read_text()
    for text, message in ((whole[:-30], "manifest.json must be JSON: it is cut off"), ("[]", "must be a JSON object")):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=message):
            read_manifest(folder)
    for change, message in (({"kind": "pairs"}, "must hold token records"), ({"version": 1}, "must be of version 2")):
        (folder / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(ValueError, match=message):
            TokenSet(folder)
