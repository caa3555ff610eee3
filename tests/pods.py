"""Stand-ins for gcloud, the bucket and the installation of machines, and fixtures with them, for tests of launch/."""

import contextlib
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
# A group has the state of its machines, and files for its template and its policy.
GCLOUD = """#!/bin/bash
echo "$@" >> "$CLOUD/calls"
if [ "$2" != tpus ]; then source "$CLOUD/compute_engine"; exit; fi
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
COMPUTE_ENGINE = """
shown() { [ ! -f "$CLOUD/$1" ] || printf "pod${2:-}\\n"; }
case "$2 $3 $4" in
"resource-policies create workload-policy") touch "$CLOUD/policy" ;;
"resource-policies list"*) shown policy ;;
"resource-policies delete"*) rm "$CLOUD/policy" ;;
"instance-templates create"*) touch "$CLOUD/template" ;;
"instance-templates list"*) shown template ;;
"instance-templates delete"*) rm "$CLOUD/template" ;;
"instance-groups managed create") [ ! -f "$CLOUD/full" ] || exit 1; echo RUNNING > "$CLOUD/group" ;;
"instance-groups managed list") shown group "\\t2" ;;
"instance-groups managed list-instances")
    for home in "$CLOUD"/machine*; do printf '%s\\t%s\\n' "$(basename "$home")" "$(cat "$CLOUD/group")"; done ;;
"instance-groups managed delete")
    rm -r "$CLOUD/group" "$CLOUD"/machine*
    mkdir "$CLOUD/machine0" "$CLOUD/machine1" ;;
"scp "*) cp "$3" "$CLOUD/${4/://}" ;;
"ssh "*)
    name=$3
    while [ "$1" != --command ]; do shift; done
    cd "$CLOUD/$name" && HOME=$PWD bash -c "$2" ;;
*) exit 9 ;;
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
echo "keeps programs in: $EDITMGT_CACHE"
echo "meets: ${JAX_COORDINATOR_ADDRESS:-} ${JAX_NUM_PROCESSES:-} ${JAX_PROCESS_ID:-}"
[ "$1" = supervise ] || exit 0
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
    (tmp_path / "compute_engine").write_text(COMPUTE_ENGINE)
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


@contextlib.contextmanager
def keep(*flags, kind="v6e-8"):
    """`pod.py keep` as a process; killed at the end."""
    command = ["keep", "pod", "--zone", "z-1", "--type", kind, *flags, "--bucket", "b", "--wait", "0.1", "--", *RUN]
    program = [sys.executable, LAUNCH / "pod.py", *command]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


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
