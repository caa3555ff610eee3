"""The process of a command: streams, signals, the cache of programs, forks."""

import os
import signal
import socket
import subprocess
import sys
import time
import warnings
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from editmgt_jax import cli
from editmgt_jax.cli import backend, compile_cache
from editmgt_jax.errors import TRANSIENT, UserError, one_line

PYTHON = [sys.executable, "-c"]
PREAMBLE = "import os, sys, time\nfrom editmgt_jax import cli, files\nfrom editmgt_jax.cli import surroundings\n"


def start(code, **options):
    return subprocess.Popen(
        [*PYTHON, PREAMBLE + code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU])
def test_a_signal_ends_a_command_and_what_it_was_writing(tmp_path, number):
    code = (
        f"import signal; signal.signal({number:d}, signal.SIG_DFL)\n"  # whatever started the tests may ignore it
        "surroundings.watch_signals()\n"
        "with files.replacing('a.txt') as temporary, files.new_folder('b') as folder:\n"
        "    temporary.write_text('half'); (folder / 'x').write_text('half')\n"
        "    print('ready', flush=True)\n"
        "    __import__('hashlib').pbkdf2_hmac('sha256', b'', b'', 10**9)  # in C, where Python handles no signals\n"
    )
    process = start(code, cwd=tmp_path)
    assert process.stdout.readline() == "ready\n" and len(list(tmp_path.iterdir())) == 2
    process.send_signal(number)
    try:
        _, text = process.communicate(timeout=240)
    finally:
        process.kill()
    said = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    assert (process.returncode, text) == (128 + number, f"editmgt: {said}\n")
    assert not list(tmp_path.iterdir())


def test_a_signal_that_is_handled_or_ignored_is_left_alone():
    code = (
        "import signal\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "surroundings.watch_signals()\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))\n"
        "os.kill(os.getpid(), signal.SIGHUP); os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.3); print('alive')\n"
    )
    assert start(code).communicate(timeout=240) == ("asked\nalive\n", "")


def test_a_signal_ends_a_server_that_starts():
    code = (
        "import sys, time\n"
        "from editmgt_jax import cli\n"
        "from editmgt_jax.serving import run\n"
        "def load(*_, **more):\n"
        "    print('loading', flush=True); time.sleep(100)\n"
        "run.EditPipeline.from_pretrained = load\n"
        "sys.argv[1:] = ['serve', '--port', '0']\n"
        "sys.exit(cli.main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGTERM)
    try:
        _, said = process.communicate(timeout=240)
    finally:
        process.kill()
    assert (process.returncode, said) == (143, "editmgt: ended by SIGTERM\n")


def test_a_server_s_address_that_is_taken_is_told_before_a_model_is_read(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--port", str(port), "--model", "/absent"]) == 2
    assert f"127.0.0.1 port {port} is not: Address already in use" in capsys.readouterr().err


def test_what_a_dead_process_left_is_removed(tmp_path):
    code = (
        "with files.replacing('a.txt') as temporary, files.new_folder('b') as folder:\n"
        "    temporary.write_text('half'); (folder / 'x').write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    start(code, cwd=tmp_path).communicate(timeout=240)
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "other.12345678-1-12345678.tmp").write_text("of another machine")
    start("files.write_text('c.txt', 'whole')", cwd=tmp_path).communicate(timeout=240)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.txt", "other.12345678-1-12345678.tmp"]


@pytest.mark.parametrize("closed", ["2>&-", "1>&- 2>&-", "2>/dev/full", "0<&- 1>&- 2>&-"])
def test_streams_may_be_closed(tmp_path, closed):
    code = "surroundings.guard_streams()\nprint('x', file=sys.stderr, flush=True)\nopen('a.txt', 'w').write('whole')"
    command = ["bash", "-c", f'"$@" {closed}', "-", *PYTHON, PREAMBLE + code]
    assert subprocess.run(command, cwd=tmp_path, timeout=240).returncode == 0
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_stdout_that_is_full_is_an_error_and_one_that_nobody_reads_is_none():
    run = lambda command: subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=240)
    version = f"{sys.executable} -m editmgt_jax --version"
    full = run(f"{version} > /dev/full")
    assert full.returncode == 2 and full.stderr == "editmgt: error: standard output: No space left on device\n"
    long = run(f"{sys.executable} -m editmgt_jax inspect --preset editmgt-1024 --json > /dev/full")
    assert long.returncode == 2 and long.stderr == "editmgt: error: standard output: No space left on device\n"
    unread = run(f"{version} | true; exit ${{PIPESTATUS[0]}}")
    assert unread.returncode in (0, cli.PIPE_CLOSED) and unread.stderr == ""


def test_a_folder_that_is_gone_is_said(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(["train", "--config", "scenes_mgt", "--workdir", "run"]) == 2
    assert (
        capsys.readouterr().err == "editmgt: error: the folder that this process is in is gone: change to another one\n"
    )


def test_versions_and_errors_are_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("editmgt ")
    for arguments in (["edit"], ["paint\nit"], ["edit", "--steps", "a\nb"], ["edit", "--nonsense\udce9"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        text = capsys.readouterr().err
        assert (
            ended.value.code == 2 and text.count("\n") == 1 and text.startswith("editmgt") and text[:-1].isprintable()
        )
    with pytest.raises(SystemExit):
        cli.main(["edit", "--instruction", "-x"])
    assert "a value that begins with a dash is given as --instruction=-VALUE" in capsys.readouterr().err
    assert one_line("a\nb\x00\udce9é") == "a\\nb\\x00\\udce9é"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((10**9,), np.dtype("f4")),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nstack"),
        ImportError("libjax_common.so: failed to map segment from shared object"),
    ],
    ids=["python", "numpy", "jax", "library"],
)
def test_memory_that_does_not_suffice_is_told_in_a_line(monkeypatch, capsys, error):
    def fail(_):
        raise error

    monkeypatch.setattr("editmgt_jax.cli.models.inspect", fail)
    assert cli.main(["inspect", "model"]) == TRANSIENT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("editmgt: error: there is not enough memory (") and line.endswith("or free memory")


def test_a_platform_that_is_not_there_is_told_in_a_line(monkeypatch, capsys):
    def fail(_):
        raise RuntimeError("Unable to initialize backend 'rocket': it is not in the list")

    monkeypatch.setenv("JAX_PLATFORMS", "rocket")
    monkeypatch.setattr("editmgt_jax.cli.models.inspect", fail)
    assert cli.main(["inspect", "model"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "JAX_PLATFORMS must name devices of this machine, such as cpu; got 'rocket'" in line


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("XLA_FLAGS", "--nonsense", "Unknown flag in XLA_FLAGS: --nonsense"),
        ("XLA_FLAGS", "--xla_force_host_platform_device_count=x", "Couldn't interpret value x"),
        ("JAX_PLATFORMS", "cuda", "JAX_PLATFORMS must name devices of this machine, such as cpu; got 'cuda'"),
        ("JAX_DEFAULT_DEVICE", "rocket", "an environment variable of JAX"),
        ("JAX_ENABLE_X64", "maybe", "an environment variable of JAX"),
    ],
)
def test_environment_variables_of_jax_are_told_in_a_line(tmp_path, name, value, said):
    Image.new("RGB", (32, 32)).save(tmp_path / "in.png")
    command = [*(sys.executable, "-m", "editmgt_jax", "edit", "--image", "in.png"), *("--instruction", "x")]
    run = subprocess.run(
        [*command, "--output", "out.png"],
        cwd=tmp_path,
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        timeout=240,
    )
    (line,) = run.stderr.splitlines()
    assert run.returncode == 2 and said in line and line.startswith("editmgt: error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


def test_flags_that_xla_knows_are_taken(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    backend.check_flags()


def test_threads_that_may_not_start_are_told():
    told = backend.for_users(RuntimeError("can't start new thread"))
    assert told.exit_code == TRANSIENT and "ulimit -u" in str(told)


def test_other_errors_keep_their_traceback(monkeypatch):
    def fail(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: RESOURCE")

    monkeypatch.setattr("editmgt_jax.cli.models.inspect", fail)
    with pytest.raises(jax.errors.JaxRuntimeError):
        cli.main(["inspect", "model"])


def test_warnings_of_other_packages_are_not_shown(capsys):
    notes = cli._Notes()
    for filename in ("/lib/site-packages/apitools/a.py", "/lib/site-packages/PIL/b.py"):
        notes("stray", UserWarning, filename, 1)
    own = os.path.join(cli.surroundings.OWN, "images", "reading.py")
    for _ in range(2):
        notes("the mask is full", UserWarning, own, 1)
    assert capsys.readouterr().err == "editmgt: note: the mask is full\n"


class TestCompileCache:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("EDITMGT_CACHE", str(tmp_path))
        before = jax.config.jax_compilation_cache_dir
        jax.config.update("jax_compilation_cache_dir", str(tmp_path))
        yield tmp_path
        jax.config.update("jax_compilation_cache_dir", before)

    def test_damaged_files_are_deleted_and_said(self, folder):
        whole = zlib.compress(b"program" * 100)
        (folder / "a-cache").write_bytes(whole)
        (folder / "b-cache").write_bytes(whole[:9])
        (folder / "c-cache").write_bytes(b"")
        said = compile_cache.noted("Error reading persistent compilation cache entry for 'jit_f': zlib.error: x")
        assert said == f"damaged files in the cache of compiled programs, {folder}, are replaced"
        assert [path.name for path in folder.iterdir()] == ["a-cache"]
        assert compile_cache.noted("something else") == "something else"

    @pytest.mark.parametrize("home", ["", "~"])  # HOME is empty, or the user is none that the system knows
    def test_no_home_is_a_note(self, monkeypatch, capsys, home):
        for name in ("EDITMGT_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(os.path, "expanduser", lambda _: home)
        compile_cache.use()
        assert capsys.readouterr().err == (
            "editmgt: note: compiled programs are not cached, this user has no home folder: set EDITMGT_CACHE to a folder\n"
        )
        with pytest.raises(UserError):
            compile_cache.folder()


def test_a_fork_of_a_process_that_used_a_pipeline_refuses(pipe):
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks of processes with threads
        child = os.fork()
    if not child:
        try:
            pipe(np.zeros((32, 32, 3), np.uint8), "make the car red")
        except UserError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.close(write)
    ended = time.monotonic() + 240
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        assert time.monotonic() < ended, "the child hangs"
        time.sleep(0.05)
    assert "load the pipeline after the fork" in os.read(read, 1000).decode()
