"""launch/: what is asked of gcloud, and the manifests for Kubernetes.

`GOLDEN` has the commands of dry runs. Where the real gcloud is installed, its parser checks them.
"""

import json
import math
import os
import shutil
import subprocess

import pytest
from pods import LAUNCH

from editmgt_jax.cli import make_parser
from editmgt_jax.errors import FINAL
from editmgt_jax.training.config_files import load_config

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
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io" and "envFrom" not in container
    assert container["env"] == [{"name": "EDITMGT_CACHE", "value": container["workingDir"] + "/cache"}]
    assert container["workingDir"] == container["volumeMounts"][0]["mountPath"]
    assert container["volumeMounts"][0]["name"] == volume["name"] and container["command"][0] == "editmgt"
    make_parser().parse_args(container["command"][1:])


def test_the_image_has_what_the_package_needs():
    copied = (LAUNCH / "Dockerfile").read_text()
    needed = ("setup.py", "pyproject.toml", "README.md", "editmgt_jax")
    assert all(name in copied and (LAUNCH.parent / name).exists() for name in needed)
