"""launch/: what is asked of gcloud and done on the machines, with stand-ins for gcloud, the bucket and the installation.

`GOLDEN` has the commands of dry runs. Where the real gcloud is installed, its parser checks them.
"""

import contextlib
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from editmgt_jax.cli import make_parser
from editmgt_jax.errors import FINAL
from editmgt_jax.training import processes
from editmgt_jax.training.config_files import load_config

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


TPU = "gcloud compute tpus queued-resources"
SSH = "--zone us-east5-b --quiet --command"
ON_ALL = "--zone us-west4-a --worker=all --node=all"
STATUS = "'test -d editmgt && bash editmgt/launch/machine.sh status || echo new'"
UNPACK = "'mkdir -p editmgt && tar --extract --gzip --file editmgt.tar.gz --directory editmgt'"
LISTED = "instance-groups managed list-instances edit --zone us-east5-b --format 'value(name,instanceStatus)'"
UBUNTU = "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"
TEMPLATE = "--maintenance-policy TERMINATE --scopes cloud-platform --image-family"
IMAGE = "--image-project ubuntu-os-accelerator-images --boot-disk-size 200GB"
SLICE = "--target-size-policy-mode bulk --default-action-on-vm-failure do-nothing"
# Arguments of pod.py (with --zone us-west4-a, or us-east5-b for mig) -> its commands.
GOLDEN = {
    "create --type v5litepod-16": [
        f"{TPU} create edit --zone us-west4-a --accelerator-type v5litepod-16 --runtime-version v2-alpha-tpuv5-lite --node-id edit"
    ],
    "create --type v6e-64 --slices 2 --spot": [
        f"{TPU} create edit --zone us-west4-a --accelerator-type v6e-64 --runtime-version v2-alpha-tpuv6e "
        "--node-count 2 --node-prefix edit --spot"
    ],
    "create --type v4-32 --project p": [
        f"{TPU} create edit --zone us-west4-a --project p --accelerator-type v4-32 --runtime-version tpu-ubuntu2204-base "
        "--node-id edit"
    ],
    "keep --type v5litepod-16 --bucket b -- --config c --workdir w": [
        f"{TPU} create edit --zone us-west4-a --accelerator-type v5litepod-16 --runtime-version v2-alpha-tpuv5-lite --node-id edit",
        f"{TPU} scp editmgt.tar.gz edit:editmgt.tar.gz {ON_ALL}",
        f"{TPU} ssh edit {ON_ALL} --command {UNPACK}",
        f"{TPU} ssh edit {ON_ALL} --command 'bash editmgt/launch/machine.sh setup b'",
        f"{TPU} ssh edit {ON_ALL} --command 'bash editmgt/launch/machine.sh train --config c --workdir w'",
    ],
    "status": [
        f"{TPU} list --format 'value(name.basename(),state.state)' --zone us-west4-a",
        f"{TPU} ssh edit {ON_ALL} --command {STATUS}",
    ],
    "log": [f"{TPU} ssh edit --zone us-west4-a --worker=0 --node=0 --command 'tail -n 40 editmgt.log'"],
    "delete": [f"{TPU} delete edit --zone us-west4-a --force --quiet"],
    "create --api mig --project p --type ct6e-standard-4t --topology 4x4 --spot": [
        "gcloud compute resource-policies create workload-policy edit --type HIGH_THROUGHPUT --accelerator-topology 4x4 "
        "--region us-east5 --project p",
        f"gcloud compute instance-templates create edit --machine-type ct6e-standard-4t {TEMPLATE} {UBUNTU} {IMAGE} "
        "--provisioning-model SPOT --instance-termination-action STOP --project p",
        "gcloud compute instance-groups managed create edit --zone us-east5-b --project p --size 4 --template edit "
        f"--workload-policy projects/p/regions/us-east5/resourcePolicies/edit {SLICE}",
    ],
    "create --api mig --project p --type tpu7x-standard-4t --topology 2x2x4": [
        "gcloud compute resource-policies create workload-policy edit --type HIGH_THROUGHPUT --accelerator-topology 2x2x4 "
        "--region us-east5 --project p",
        f"gcloud compute instance-templates create edit --machine-type tpu7x-standard-4t {TEMPLATE} "
        f"ubuntu-accel-2404-amd64-tpu-tpu7x {IMAGE} --project p",
        "gcloud compute instance-groups managed create edit --zone us-east5-b --project p --size 4 --template edit "
        f"--workload-policy projects/p/regions/us-east5/resourcePolicies/edit {SLICE}",
    ],
    "create --api mig --project p --type ct6e-standard-1t --topology 1x1": [
        f"gcloud compute instance-templates create edit --machine-type ct6e-standard-1t {TEMPLATE} {UBUNTU} {IMAGE} --project p",
        "gcloud compute instance-groups managed create edit --zone us-east5-b --project p --size 1 --template edit",
    ],
    "setup --api mig --bucket b": [
        f"gcloud compute {LISTED}",
        "gcloud compute scp editmgt.tar.gz MACHINE:editmgt.tar.gz --zone us-east5-b --quiet",
        f"gcloud compute {LISTED}",
        f"gcloud compute ssh MACHINE {SSH} {UNPACK}",
        f"gcloud compute {LISTED}",
        f"gcloud compute ssh MACHINE {SSH} 'bash editmgt/launch/machine.sh setup b'",
    ],
    "train --api mig -- --config c --workdir w": [
        f"gcloud compute {LISTED}",
        f"gcloud compute ssh MACHINE {SSH} 'JAX_COORDINATOR_ADDRESS=MACHINE:8482 JAX_NUM_PROCESSES=1 JAX_PROCESS_ID=0 "
        "bash editmgt/launch/machine.sh train --config c --workdir w'",
    ],
    "status --api mig": [
        "gcloud compute instance-groups managed list --zones us-east5-b --format 'value(name,targetSize)'",
        "gcloud compute instance-templates list --format 'value(name)'",
        "gcloud compute resource-policies list --regions us-east5 --format 'value(name)'",
        f"gcloud compute {LISTED}",
        f"gcloud compute ssh MACHINE {SSH} {STATUS}",
    ],
    "delete --api mig": [
        "gcloud compute instance-groups managed list --zones us-east5-b --format 'value(name)'",
        "gcloud compute instance-groups managed delete edit --zone us-east5-b --quiet",
        "gcloud compute instance-templates list --format 'value(name)'",
        "gcloud compute instance-templates delete edit --quiet",
        "gcloud compute resource-policies list --regions us-east5 --format 'value(name)'",
        "gcloud compute resource-policies delete edit --region us-east5 --quiet",
    ],
}


@pytest.mark.parametrize("arguments", GOLDEN)
def test_a_dry_run_prints_the_commands_and_runs_none(launcher, machine, capfd, arguments):
    command, *more = arguments.split()
    zone = "us-east5-b" if "mig" in more else "us-west4-a"
    assert launcher.main([command, "edit", "--zone", zone, "--dry-run", *more]) == 0
    assert capfd.readouterr().out.splitlines() == GOLDEN[arguments]
    assert not (machine.parent / "calls").exists()


def parsed(commands, folder) -> dict[str, str]:
    """What gcloud's parser objects to in each command, "" for nothing. It calls no service and has no credentials."""
    path = folder / "commands.json"
    path.write_text(json.dumps([{"command_string": command} for command in commands]))
    lint = ["gcloud", "meta", "lint-gcloud-commands", "--commands-file", path]
    done = subprocess.run(lint, capture_output=True, text=True, env=os.environ | {"CLOUDSDK_CONFIG": str(folder)})
    if done.returncode:
        pytest.skip(f"this gcloud has no `meta lint-gcloud-commands`: {done.stderr.strip()[-200:]}")
    results = json.loads(done.stdout)
    assert len(results) == len(commands)
    return {command: result["error_message"] or "" for command, result in zip(commands, results, strict=True)}


def test_gclouds_own_parser_takes_the_commands(tmp_path):
    if not shutil.which("gcloud"):
        pytest.skip("gcloud is not installed: its parser cannot check the commands")
    commands = sorted({command for commands in GOLDEN.values() for command in commands})
    wrong = "gcloud compute instance-groups managed create edit --zone z --size 4 --template edit --workload-rule r"
    objections = parsed([*commands, wrong], tmp_path)
    assert "unrecognized arguments" in objections.pop(wrong)
    objections = {command: text for command, text in objections.items() if text}
    newer = [command for command, text in objections.items() if "alternate release tracks" in text]
    assert sorted(newer) == sorted(objections), objections
    if newer:  # an older gcloud has some flags in its alpha track only
        again = parsed([command.replace("gcloud", "gcloud alpha", 1) for command in newer], tmp_path)
        assert not any(again.values()), again


@pytest.mark.parametrize(
    "arguments, rule",
    [
        ("--api mig --type ct6e-standard-4t --topology 4x4", "needs --project"),
        ("--api mig --project p --type ct9-standard-4t --topology 4x4", "--software"),
        ("--api mig --project p --type v6e-16 --topology 4x4", "needs a machine type and the topology"),
        ("--api mig --project p --type ct6e-standard-4t", "needs a machine type and the topology"),
        ("--api mig --project p --type ct6e-standard-4t --topology 1x2", "whole machines, of 4 chips"),
        ("--api mig --project p --type ct6e-standard-4t --topology 4x4 --slices 2", "makes one slice"),
        ("--type v6e-16 --topology 4x4", "--topology is for --api mig"),
    ],
)
def test_what_an_api_cannot_make_is_refused(launcher, machine, capfd, arguments, rule):
    assert launcher.main(["create", "edit", "--zone", "us-east5-b", *arguments.split()]) == 1
    assert rule in capfd.readouterr().err
    assert not (machine.parent / "calls").exists()


def test_a_group_trains_and_is_made_anew_when_a_machine_ends(machines):
    first, second = machines
    with keep("--api", "mig", "--project", "p", "--topology", "2x4", "--spot", kind="ct6e-standard-4t") as keeping:
        wait_for(lambda: all(log_says(machine, "meets: machine0:8482 2") for machine in machines))
        assert log_says(first, "2 0\n") and log_says(second, "2 1\n")
        for machine in machines:
            stop(machine)
        (first.parent / "full").touch()
        (first.parent / "group").write_text("TERMINATED")
        wait_for(
            lambda: sum("managed create pod" in call for call in calls(first)) >= 3
        )  # what failed half-way is deleted
        (first.parent / "full").unlink()
        wait_for(lambda: all(log_says(machine, "train") for machine in machines))
        (first.parent / "ends").write_text("0")
        assert keeping.wait(20) == 0
        said = keeping.stderr.read()
    assert "suspended: deleting" in said and "failed: deleting" in said
    variables = [processes.ADDRESS, processes.COUNT, processes.NUMBER]
    assert variables == [
        "JAX_COORDINATOR_ADDRESS",
        "JAX_NUM_PROCESSES",
        "JAX_PROCESS_ID",
    ]  # as the launcher spells them


@pytest.mark.parametrize("api", [[], ["--api", "mig"]])
def test_an_edit_runs_on_the_first_machine(pod, machine, capfd, api):
    (machine.parent / "group").write_text("RUNNING")
    assert pod("setup", *api, "--bucket", "b") == 0
    assert pod("run", *api, "--", "edit", "--instruction", "make it pink") == 0
    assert f"{machine}/editmgt: edit --instruction make it pink" in capfd.readouterr().out


def test_a_pod_is_set_up_and_trains_until_it_is_stopped(pod, status, machine, capfd):
    assert pod("create", "--type", "v6e-8") == 0 and status() == "ACTIVE new"
    assert pod("setup", "--bucket", "b") == 0
    assert (machine / "editmgt" / "runs").resolve() == machine / "editmgt-bucket" / "runs"
    assert (machine / "editmgt" / "editmgt_jax" / "pipeline" / "pictures.py").is_file()
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
    with keep("--spot") as keeping:
        wait_for(lambda: log_says(machine, "train"))
        stop(machine)
        wait_for(lambda: (machine / "editmgt.log.before").exists())  # an event of maintenance: it went on
        wait_for(lambda: log_says(machine, "train"))
        stop(machine)
        (machine.parent / "state").write_text("SUSPENDED")
        wait_for(lambda: sum(" create " in call for call in calls(machine)) == 2 and log_says(machine, "train"))
        (machine.parent / "ends").write_text("0")
        assert keeping.wait(20) == 0
    assert sum(" delete " in call for call in calls(machine)) == 1


@pytest.mark.parametrize("which", [0, 1])
def test_when_one_machine_starts_anew_all_train_again(machines, which):
    lost, left = machines[which], machines[1 - which]
    with keep() as keeping:
        wait_for(lambda: all(log_says(machine, "train") for machine in machines))
        lose(lost)
        wait_for(lambda: (left / "editmgt.log.before").exists())
        wait_for(lambda: all(log_says(machine, "train") for machine in machines))
        (lost.parent / "ends").write_text("0")
        assert keeping.wait(20) == 0
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
    assert sys.modules["machines"].combine(said) == status


def test_no_status(launcher):
    with pytest.raises(launcher.PodError, match="no machine reports"):
        sys.modules["machines"].combine("welcome\n")


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


def manifest(name):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((LAUNCH / name).read_text())


def test_the_jobset_fits_its_slice_and_its_command_parses():
    jobset = manifest("jobset.yaml")
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert math.prod(map(int, topology.split("x"))) == 16 == job["parallelism"] * chips
    assert job["parallelism"] == job["completions"] and job["completionMode"] == "Indexed"
    assert container["resources"]["requests"] == container["resources"]["limits"]
    # A host that fails restarts the set, unless the error is final.
    assert (
        job["backoffLimit"] == 0
        and pod["restartPolicy"] == "Never"
        and jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    )
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [FINAL]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    (final,) = jobset["spec"]["failurePolicy"]["rules"]
    assert final["action"] == "FailJobSet" and final["onJobFailureReasons"] == ["PodFailurePolicy"]
    args = make_parser().parse_args(container["command"][1:])
    assert args.distributed and load_config(args.config, [])


@pytest.mark.parametrize("name", ["jobset.yaml", "edit_job.yaml"])
def test_a_manifest_mounts_the_bucket_and_holds_no_secret(name):
    spec = manifest(name)["spec"]
    template = (spec["replicatedJobs"][0]["template"]["spec"] if "replicatedJobs" in spec else spec)["template"]
    (container,), (volume,) = template["spec"]["containers"], template["spec"]["volumes"]
    assert template["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
    assert (
        volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
        and "env" not in container
        and "envFrom" not in container
    )
    assert container["workingDir"] == container["volumeMounts"][0]["mountPath"]
    assert container["volumeMounts"][0]["name"] == volume["name"] and container["command"][0] == "editmgt"
    make_parser().parse_args(container["command"][1:])


def test_the_image_has_what_the_package_needs():
    copied = (LAUNCH / "Dockerfile").read_text()
    needed = ("setup.py", "pyproject.toml", "README.md", "editmgt_jax")
    assert all(name in copied and (LAUNCH.parent / name).exists() for name in needed)
