"""launch/: what is asked of gcloud and done on the machines, with stand-ins for gcloud, the bucket and the installation."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"

# The machines' homes are $CLOUD/machine0 and so on. The state of the queued resource is a file; creating it makes it ACTIVE.
GCLOUD = """#!/bin/bash
echo "$@" >> "$CLOUD/calls"
verb=$4 archive=$5
case "$*" in
*"--worker=all --node=all"*) homes=("$CLOUD"/machine*) ;;
*"--worker=0 --node=0"*) homes=("$CLOUD/machine0") ;;
esac
case $verb in
list) [ ! -f "$CLOUD/state" ] || printf 'pod\\t%s\\n' "$(cat "$CLOUD/state")" ;;
create) echo ACTIVE > "$CLOUD/state" ;;
delete)
    homes=("$CLOUD"/machine*)
    rm -rf "$CLOUD/state" "${homes[@]}"
    mkdir "${homes[@]}" ;;
scp) for home in "${homes[@]}"; do cp "$archive" "$home/editmgt.tar.gz"; done ;;
ssh)
    while [ "$1" != --command ]; do shift; done
    code=0
    for home in "${homes[@]}"; do
        (cd "$home" && HOME=$home bash -c "$2") || code=$?
    done
    exit $code ;;
esac
"""
# `python3 -m uv pip install` installs an editmgt that ends as $CLOUD/ends says, or at SIGTERM: at once where $CLOUD/joining is.
PYTHON = """#!/bin/bash
case "$*" in
*"uv venv"*) mkdir -p "$HOME/editmgt-venv/bin" ;;
*"uv pip install"*)
    cat > "$HOME/editmgt-venv/bin/editmgt" <<'END'
#!/bin/bash
echo "$PWD: $@"
stop() {
    [ "$HOME" != "$CLOUD/machine0" ] || echo "editmgt: asked to stop: saved at step 7"
    exit 0
}
[ -f "$CLOUD/joining" ] || trap stop TERM
while [ ! -f "$CLOUD/ends" ]; do sleep 0.05; done
exit "$(cat "$CLOUD/ends")"
END
    chmod +x "$HOME/editmgt-venv/bin/editmgt" ;;
esac
"""
MOUNTED = '#!/bin/bash\n[ -f "$HOME/mounted" ]\n'
GCSFUSE = '#!/bin/bash\ntouch "$HOME/mounted"\n'
RUN = ["--config", "configs/stage2_finetune.py", "--workdir", "runs/a b"]


@pytest.fixture(scope="module")
def launcher():
    spec = importlib.util.spec_from_file_location("pod", LAUNCH / "pod.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """The home of the first machine; gcloud's calls are in `calls` beside it."""
    programs, home = tmp_path / "programs", tmp_path / "machine0"
    programs.mkdir()
    home.mkdir()
    stand_ins = {"gcloud": GCLOUD, "python3": PYTHON, "mountpoint": MOUNTED, "gcsfuse": GCSFUSE}
    for name, text in stand_ins.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CLOUD", str(tmp_path))
    yield home
    for home in tmp_path.glob("machine*"):
        stop(home)


@pytest.fixture
def machines(machine):
    """The homes of two machines."""
    second = machine.parent / "machine1"
    second.mkdir()
    return machine, second


def stop(machine):
    subprocess.run(["bash", LAUNCH / "machine.sh", "stop"], env=os.environ | {"HOME": str(machine)}, check=True)


def lose(machine):
    """The machine's processes are gone, and what was in its home."""
    lost = machine.rename(machine.parent / "lost")
    machine.mkdir()
    os.killpg(int((lost / "editmgt.pid").read_text()), signal.SIGKILL)


def keep(*flags):
    command = ["keep", "pod", "--zone", "z", "--type", "v6e-8", *flags, "--bucket", "b", "--wait", "0.1", "--", *RUN]
    return subprocess.Popen([sys.executable, LAUNCH / "pod.py", *command], stderr=subprocess.PIPE, text=True)


@pytest.fixture
def pod(launcher):
    """Runs a command of pod.py on the pod."""
    return lambda name, *more: launcher.main([name, "pod", "--zone", "z", *more])


@pytest.fixture
def status(pod, capfd):
    """What `pod.py status` prints."""

    def ask():
        capfd.readouterr()
        assert pod("status") == 0
        return capfd.readouterr().out.strip()

    return ask


def calls(machine) -> list[str]:
    return (machine.parent / "calls").read_text().splitlines()


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def log_says(machine, text) -> bool:
    log = machine / "editmgt.log"
    return log.exists() and text in log.read_text()


def test_slices_are_asked_for(launcher, machine):
    for arguments, wanted in (
        (["--type", "v5litepod-64"], "v5litepod-64 --runtime-version v2-alpha-tpuv5-lite --node-id pod"),
        (
            ["--type", "v6e-64", "--slices", "2", "--spot"],
            "v6e-64 --runtime-version v2-alpha-tpuv6e --node-count 2 --node-prefix pod --spot",
        ),
        (["--type", "v4-32"], "v4-32 --runtime-version tpu-ubuntu2204-base --node-id pod"),
    ):
        assert launcher.main(["create", "pod", "--zone", "z", *arguments]) == 0
        assert calls(machine)[-1] == f"compute tpus queued-resources create pod --zone z --accelerator-type {wanted}"


def test_a_pod_is_set_up_and_trains_until_it_is_stopped(pod, status, machine, capfd):
    assert pod("create", "--type", "v6e-8") == 0 and status() == "ACTIVE new"
    assert pod("setup", "--bucket", "b") == 0
    assert (machine / "editmgt" / "runs").resolve() == machine / "editmgt-bucket" / "runs"
    assert (machine / "editmgt" / "editmgt_jax" / "pipeline.py").is_file()
    assert pod("train", "--", *RUN) == 0
    wait_for(lambda: log_says(machine, "train"))
    started = f"{machine}/editmgt: supervise -- editmgt train --distributed {' '.join(RUN)}"
    assert log_says(machine, started) and status() == "ACTIVE running"
    assert pod("train", "--", *RUN) == 1 and "is training: stop it first" in capfd.readouterr().err
    assert pod("stop") == 0
    wait_for(lambda: (machine / "editmgt.exit").exists())
    assert status() == "ACTIVE stopped"
    (machine / "mounted").unlink()  # the machine was started anew
    assert pod("train", "--", *RUN) == 1 and "must be mounted" in capfd.readouterr().err
    assert pod("delete") == 0 and status() == "not there"


def test_machines_that_are_taken_away_are_asked_for_again(launcher, machine):
    keeping = keep("--spot")
    try:
        wait_for(lambda: log_says(machine, "train"))
        stop(machine)
        wait_for(lambda: (machine / "editmgt.log.before").exists())  # an event of maintenance: it went on
        wait_for(lambda: log_says(machine, "train"))
        stop(machine)
        (machine.parent / "state").write_text("SUSPENDED")
        wait_for(lambda: sum(" create " in call for call in calls(machine)) == 2 and log_says(machine, "train"))
        (machine.parent / "ends").write_text("0")
        assert keeping.wait(20) == 0
    finally:
        keeping.kill()
    assert sum(" delete " in call for call in calls(machine)) == 1


@pytest.mark.parametrize("which", [0, 1])
def test_when_one_machine_starts_anew_all_train_again(machines, which):
    lost, left = machines[which], machines[1 - which]
    keeping = keep()
    try:
        wait_for(lambda: all(log_says(machine, "train") for machine in machines))
        lose(lost)
        wait_for(lambda: (left / "editmgt.log.before").exists())
        wait_for(lambda: all(log_says(machine, "train") for machine in machines))
        (lost.parent / "ends").write_text("0")
        assert keeping.wait(20) == 0
    finally:
        keeping.kill()
    assert "only some machines train: stopping them" in keeping.stderr.read()
    assert not any(" delete " in call for call in calls(lost))


@pytest.mark.parametrize("joining", [False, True])
def test_stop_ends_all_machines_whatever_the_first_does(pod, status, machines, joining):
    first, second = machines
    if joining:
        (first.parent / "joining").touch()
    assert pod("create", "--type", "v6e-8") == 0 and pod("stop") == 0 and status() == "ACTIVE new"
    assert pod("setup", "--bucket", "b") == 0 and pod("train", "--", *RUN) == 0
    wait_for(lambda: all(log_says(machine, "train") for machine in machines))
    stop(first)
    wait_for(lambda: (first / "editmgt.exit").exists())
    assert status() == "ACTIVE running"
    assert pod("stop") == 0
    wait_for(lambda: status() == "ACTIVE stopped")
    assert pod("train", "--", *RUN) == 0
    wait_for(lambda: all(log_says(machine, "train") for machine in machines))
    assert status() == "ACTIVE running"


@pytest.mark.parametrize(
    "said, status",
    [
        ("running\r\nrunning\r\n", "running"),
        ("SSH: Attempting to connect\nrunning\nended 0\n", "running"),
        ("running\nnew\nended 0\n", "partly"),
        ("new\nnew\n", "new"),
        ("stopped\nnew\nended 1\n", "new"),
        ("ended 0\nstopped\nended 0\n", "stopped"),
        ("ended 0\nended 0\n", "ended 0"),
        ("ended 0\nended 2\nended 0\n", "ended 2"),
    ],
)
def test_one_status_of_all_machines(launcher, said, status):
    assert launcher.combine(said) == status


def test_no_status(launcher):
    with pytest.raises(launcher.PodError, match="no machine reports"):
        launcher.combine("welcome\n")


def test_training_that_fails_ends_the_keeping(launcher, machine, capfd):
    (machine.parent / "ends").write_text("2")
    command = ["keep", "pod", "--zone", "z", "--type", "v6e-8", "--bucket", "b", "--wait", "0.1", "--", *RUN]
    assert launcher.main(command) == 1
    assert "training ended 2: see the log" in capfd.readouterr().err
    assert not any(" delete " in call for call in calls(machine))


def test_without_gcloud(launcher, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launcher.main(["status", "pod", "--zone", "z"]) == 1
    assert "gcloud must be installed" in capfd.readouterr().err
