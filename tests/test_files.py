import errno
import json
import os
import re
import stat
import subprocess
import sys
import types

import numpy as np
import pytest

from editmgt_jax import files
from editmgt_jax.data import records
from editmgt_jax.errors import UserError
from editmgt_jax.files import claim, mounted, new_folder, replacing, write_json, write_text
from editmgt_jax.weights import trees


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_at_once(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with replacing(path) as temporary:
        temporary.write_text("after")
        assert path.read_text() == "before" and temporary.parent == tmp_path
    assert path.read_text() == "after" and names(tmp_path) == ["a.txt"]


def test_a_write_that_fails_changes_nothing(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "before" and names(tmp_path) == ["a.txt"]


def test_a_block_that_writes_nothing_changes_nothing(tmp_path):
    with replacing(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == []


def test_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    path, events = tmp_path / "a.txt", []
    sync, replace = os.fsync, files.Path.replace

    def note_sync(descriptor):
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(files.Path, "replace", lambda old, new: (events.append("name"), replace(old, new)))
    write_json(path, {"b": 1, "a": [2]})
    assert events == ["file", "name", "folder"]
    assert path.read_text() == '{\n "b": 1,\n "a": [\n  2\n ]\n}\n'
    events.clear()
    with new_folder(tmp_path / "new") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "x").write_text("x")
    assert sorted(events[:-2]) == ["file", "folder", "folder"] and events[-2:] == ["name", "folder"]


def test_a_file_system_without_sync_of_folders_will_do(tmp_path, monkeypatch):
    sync = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no sync")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_json(tmp_path / "a.json", [1])
    assert json.loads((tmp_path / "a.json").read_text()) == [1]


def test_a_sync_that_fails_is_told(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_text(tmp_path / "a.txt", "a")
    assert names(tmp_path) == []


def test_a_folder_appears_only_once_complete(tmp_path):
    with new_folder(tmp_path / "deep" / "new") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "deep" / "new").exists()
    assert names(tmp_path / "deep") == ["new"] and names(tmp_path / "deep" / "new") == ["a"]
    with pytest.raises(FileExistsError, match="name another one"), new_folder(tmp_path / "deep" / "new"):
        pytest.fail("it exists")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "deep" / "other"):
        raise ZeroDivisionError
    assert names(tmp_path / "deep") == ["new"]


def test_a_new_folder_is_not_written_through_a_link(tmp_path):
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("nowhere", "loop"):
        with pytest.raises(FileExistsError, match=name), new_folder(tmp_path / name):
            raise AssertionError("no work was to be done")


def test_a_path_is_a_text_and_a_loop_of_links_stays_itself(tmp_path):
    for wrong in (5, None, b"x", ["a"]):
        with pytest.raises(UserError, match="the output must be a path; got"):
            mounted(wrong, "the output")
    (tmp_path / "loop").symlink_to("loop")
    assert files.real(tmp_path / "loop") == files.real(tmp_path) / "loop"


def test_a_folder_lies_outside_of_its_sources(tmp_path):
    with (
        pytest.raises(UserError, match="must lie outside"),
        new_folder(tmp_path / "source" / "new", tmp_path / "source"),
    ):
        pytest.fail("it lies inside")


def test_a_kill_leaves_no_name(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from editmgt_jax.files import replacing\n"
        "with replacing(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")], timeout=60)
    (left,) = names(tmp_path)
    assert left.startswith("a.txt.") and left.endswith(".tmp")


def test_an_address_is_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mounted("runs/a", "a run") == tmp_path / "runs" / "a"
    with pytest.raises(UserError, match="a run must lie in a file system .* gs://bucket/a"):
        mounted("gs://bucket/a", "a run")


def test_a_folder_belongs_to_one_job(tmp_path):
    claim(tmp_path / "out", {"b": [1], "a": 2})
    (tmp_path / "out" / "results").write_text("x")
    claim(tmp_path / "out", {"a": 2, "b": [1]})
    with pytest.raises(UserError, match="belongs to a job with other a, c "):
        claim(tmp_path / "out", {"a": 3, "b": [1], "c": 4})
    assert json.loads((tmp_path / "out" / "job.json").read_text()) == {"a": 2, "b": [1]}


def test_a_folder_of_no_job_is_refused_unless_it_is_empty(tmp_path):
    (tmp_path / "job.json.0f.tmp").write_text("half")  # of another process of the job, or of a killed one
    claim(tmp_path, {"a": 2})
    (tmp_path / "job.json").rename(tmp_path / "letter.txt")
    with pytest.raises(UserError, match="is not empty, and has no job.json"):
        claim(tmp_path, {"a": 2})


@pytest.mark.parametrize("note", ["{", "[1, 2]", "7"])
def test_a_note_that_is_damaged_is_of_another_job(tmp_path, note):
    (tmp_path / "job.json").write_text(note)
    with pytest.raises(UserError, match="belongs to a job with other values "):
        claim(tmp_path, {"a": 2})


def test_an_error_within_a_new_folder_names_the_file_once(tmp_path, monkeypatch):
    def copy(source, target):
        raise OSError(errno.ENOSPC, "no space", str(source), None, str(target))

    monkeypatch.setattr(files.shutil, "copyfile", copy)
    (tmp_path / "a.txt").write_text("a")
    with (
        pytest.raises(OSError, match=r"cannot write \S+/new/inner/b.txt: no space after") as copied,
        new_folder(tmp_path / "new") as folder,
    ):
        (folder / "inner").mkdir()
        files.shutil.copyfile(tmp_path / "a.txt", folder / "inner" / "b.txt")
    with (
        pytest.raises(OSError, match=r"cannot write \S+/new/b.txt: no space after") as nested,
        new_folder(tmp_path / "new") as folder,
        replacing(folder / "b.txt") as temporary,
    ):
        files.shutil.copyfile(tmp_path / "a.txt", temporary)
    for error in (copied, nested):
        assert str(error.value).count("cannot write") == 1 and ".tmp" not in str(error.value)


def test_what_cannot_be_written_is_found_before(tmp_path):
    (tmp_path / "a").write_text("before")
    files.check_writable(tmp_path / "a")
    files.check_writable(tmp_path / "b")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "before"
    for path in (tmp_path, tmp_path / "a" / "b", tmp_path / "gone" / "b"):
        with pytest.raises(OSError, match=re.escape(str(path))):
            files.check_writable(path)


def test_a_full_disk_is_told_from_a_library_s_words(tmp_path):
    with pytest.raises(OSError, match="No space left") as error, files.system_errors(tmp_path / "a"):
        raise RuntimeError("write() failed: No space left on device; at byte 5")
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(tmp_path / "a")
    for other in (RuntimeError("a defect"), UserError("no pair says 'No space left on device'")):
        with pytest.raises(type(other), match=str(other)), files.system_errors(tmp_path / "a"):
            raise other


def test_a_shard_that_cannot_be_closed_is_told_as_the_system_s_error(tmp_path, monkeypatch):
    class Full:
        def __init__(self, *_):
            pass

        def close(self):
            raise RuntimeError(f"Failed to close: {os.strerror(errno.ENOSPC)}")

    monkeypatch.setattr(records, "ArrayRecordWriter", Full)
    with pytest.raises(OSError, match="No space left"), records.ShardWriter(tmp_path / "a"):
        pass
    with pytest.raises(ZeroDivisionError), records.ShardWriter(tmp_path / "a"):
        raise ZeroDivisionError


def test_a_tree_for_which_there_is_no_room_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(trees.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=15))
    with pytest.raises(OSError, match="No space left on device: 16 bytes are needed, 15 are free"):
        trees.save_tree(tmp_path / "tree", {"a": np.zeros(4, np.float32)})
    assert names(tmp_path) == []
