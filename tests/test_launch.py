"""launch/: what is asked of gcloud and done on the machines, with stand-ins for gcloud, the bucket and the installation."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"

# One machine, whose home is $MACHINE. The state of the queued resource is a file; creating it makes it ACTIVE.
GCLOUD = """#!/bin/bash
echo "$@" >> "$MACHINE/../calls"
verb=$4
case $verb in
list) [ ! -f "$MACHINE/../state" ] || printf 'pod\\t%s\\n' "$(cat "$MACHINE/../state")" ;;
create) echo ACTIVE > "$MACHINE/../state" ;;
delete) rm -rf "$MACHINE/../state" "$MACHINE"; mkdir "$MACHINE" ;;
scp) cp "$5" "$MACHINE/editmgt.tar.gz" ;;
ssh)
    while [ "$1" != --command ]; do shift; done
    cd "$MACHINE" && HOME=$MACHINE bash -c "$2" ;;
esac
"""
# `python3 -m uv pip install` installs an editmgt that ends as $MACHINE/ends says, or at SIGTERM.
PYTHON = """#!/bin/bash
case "$*" in
*"uv venv"*) mkdir -p "$HOME/editmgt-venv/bin" ;;
*"uv pip install"*)
    cat > "$HOME/editmgt-venv/bin/editmgt" <<'END'
#!/bin/bash
echo "$PWD: $@"
trap 'echo "editmgt: asked to stop: saved at step 7"; exit 0' TERM
while [ ! -f "$MACHINE/ends" ]; do sleep 0.05; done
exit "$(cat "$MACHINE/ends")"
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
    """The home of the machine; gcloud's calls are in `calls` beside it."""
    programs, home = tmp_path / "programs", tmp_path / "machine"
    programs.mkdir()
    home.mkdir()
    stand_ins = {"gcloud": GCLOUD, "python3": PYTHON, "mountpoint": MOUNTED, "gcsfuse": GCSFUSE}
    for name, text in stand_ins.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MACHINE", str(home))
    yield home
    subprocess.run(["bash", LAUNCH / "machine.sh", "stop"], env=os.environ | {"HOME": str(home)}, check=True)


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


def test_a_pod_is_set_up_and_trains_until_it_is_stopped(launcher, machine, capfd):
    def pod(*command):
        return launcher.main([command[0], "pod", "--zone", "z", *command[1:]])

    def status():
        capfd.readouterr()
        assert pod("status") == 0
        return capfd.readouterr().out.strip()

    assert pod("create", "--type", "v6e-8") == 0 and status() == "ACTIVE new"
    assert pod("setup", "--bucket", "b") == 0
    assert (machine / "editmgt" / "runs").resolve() == machine / "editmgt-bucket" / "runs"
    assert (machine / "editmgt" / "editmgt_jax" / "cli.py").is_file()
    assert pod("train", "--", *RUN) == 0
    wait_for(lambda: log_says(machine, "train"))
    started = f"{machine}/editmgt: supervise -- editmgt train --distributed {' '.join(RUN)}"
    assert log_says(machine, started) and status() == "ACTIVE running"
    assert pod("train", "--", *RUN) == 1 and "trains already" in capfd.readouterr().err
    assert pod("stop") == 0
    wait_for(lambda: (machine / "editmgt.exit").exists())
    assert status() == "ACTIVE stopped"
    (machine / "mounted").unlink()  # the machine was started anew
    assert pod("train", "--", *RUN) == 1 and "must be mounted" in capfd.readouterr().err
    assert pod("delete") == 0 and status() == "not there"


def test_machines_that_are_taken_away_are_asked_for_again(launcher, machine):
    command = ["keep", "pod", "--zone", "z", "--type", "v6e-8", "--spot", "--bucket", "b", "--wait", "0.1", "--", *RUN]
    keeping = subprocess.Popen([sys.executable, LAUNCH / "pod.py", *command], stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: log_says(machine, "train"))
        subprocess.run(["bash", LAUNCH / "machine.sh", "stop"], env=os.environ | {"HOME": str(machine)}, check=True)
        wait_for(lambda: (machine / "editmgt.log.before").exists())  # an event of maintenance: it went on
        subprocess.run(["bash", LAUNCH / "machine.sh", "stop"], env=os.environ | {"HOME": str(machine)}, check=True)
        (machine.parent / "state").write_text("SUSPENDED")
        wait_for(lambda: sum(" create " in call for call in calls(machine)) == 2 and log_says(machine, "train"))
        (machine / "ends").write_text("0")
        assert keeping.wait(20) == 0
    finally:
        keeping.kill()
    assert sum(" delete " in call for call in calls(machine)) == 1


def test_training_that_fails_ends_the_keeping(launcher, machine, capfd):
    (machine / "ends").write_text("2")
    command = ["keep", "pod", "--zone", "z", "--type", "v6e-8", "--bucket", "b", "--wait", "0.1", "--", *RUN]
    assert launcher.main(command) == 1
    assert "training ended 2: see the log" in capfd.readouterr().err
    assert not any(" delete " in call for call in calls(machine))


def test_without_gcloud(launcher, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launcher.main(["status", "pod", "--zone", "z"]) == 1
    assert "gcloud must be installed" in capfd.readouterr().err
