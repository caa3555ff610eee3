"""Machines with TPUs, as pod.py asks for them: a queued resource of Cloud TPU, or an instance group of Compute Engine."""

import contextlib
import math
import re
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
SHIPPED = ("editmgt_jax", "configs", "launch", "setup.py", "pyproject.toml", "README.md")
ARCHIVE = "editmgt.tar.gz"
SOFTWARE = {"v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}  # other types:
OLDER = "tpu-ubuntu2204-base"

# Of Compute Engine. The project of images: "Consume a reservation" (Cloud TPU). The families: "TPU OS images".
IMAGES = "ubuntu-os-accelerator-images"
UBUNTU_22 = "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"
FAMILIES = {"ct5p": UBUNTU_22, "ct6e": UBUNTU_22, "tpu7x": "ubuntu-accel-2404-amd64-tpu-tpu7x"}
DISK = "200GB"  # of a machine
PORT = 8482  # of the first machine, where the processes meet; jax takes the same one on Cloud TPU
ENDED = ("STOPPING", "STOPPED", "TERMINATED", "SUSPENDING", "SUSPENDED")
MACHINE = "MACHINE"  # in a dry run, the name of each machine


class PodError(RuntimeError):
    """A launch that failed, with the reason."""


class Pod:
    """Machines with TPUs under one name. Subclasses make and reach them, by the API of their choice."""

    def __init__(self, name: str, zone: str, project: str | None = None, dry_run: bool = False):
        self._name, self._zone, self._project, self._dry_run = name, zone, project, dry_run
        self._of_project = ["--project", project] if project else []
        self._where = ["--zone", zone, *self._of_project]

    def setup(self, bucket: str) -> None:
        """Installs this checkout and mounts the bucket on all machines."""
        with self._archive() as path:
            self._copy(path)
        self._on_all(f"mkdir -p editmgt && tar --extract --gzip --file {ARCHIVE} --directory editmgt")
        self._on_all(_machine("setup", bucket))

    def train(self, arguments: list[str]) -> None:
        """Starts training on all machines, or resumes it."""
        self._on_all(_machine("train", *arguments))

    def run(self, arguments: list[str]) -> None:
        """Runs a command of `editmgt` on the first machine, in the checkout."""
        self._on_first(_machine("run", *arguments))

    def stop(self) -> None:
        """Saves and ends training."""
        self._on_all(f"test ! -d editmgt || {_machine('stop')}")

    def status(self) -> str:
        """The status of all machines, see `combine`."""
        said = self._on_all(f"test -d editmgt && {_machine('status')} || echo new", read=True)
        return "" if self._dry_run else combine(said)

    def log(self, lines: int) -> None:
        """Prints the end of the first machine's log."""
        self._on_first(f"tail -n {lines} editmgt.log")

    @contextlib.contextmanager
    def _archive(self) -> Iterator[str]:
        """The path of what is shipped, for as long as it exists."""
        if self._dry_run:
            yield ARCHIVE
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ARCHIVE
            with tarfile.open(path, "w:gz") as tar:
                for name in SHIPPED:
                    tar.add(CHECKOUT / name, name, filter=lambda f: None if "__pycache__" in f.name else f)
            yield str(path)

    def _run(self, command: list[str], read: bool = False) -> str:
        if not self._dry_run:
            return _run(command, read)
        print(shlex.join(command))
        return ""


class QueuedResource(Pod):
    """`--api tpu`: a queued resource of the Cloud TPU API, of one or more slices. It has no TPU 7x or later."""

    def create(self, kind: str, slices: int, spot: bool, software: str | None, topology: str | None) -> None:
        if topology:
            raise PodError(f"--topology is for --api mig; got {topology}: with --api tpu, --type gives the slice")
        software = software or SOFTWARE.get(kind.split("-")[0], OLDER)
        nodes = ["--node-id", self._name]
        if slices > 1:
            nodes = ["--node-count", str(slices), "--node-prefix", self._name]
        more = ["--spot"] if spot else []
        self._gcloud("create", "--accelerator-type", kind, "--runtime-version", software, *nodes, *more)

    def state(self) -> str | None:
        """ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; None if it does not exist."""
        listed = ["gcloud", "compute", "tpus", "queued-resources", "list"]
        shown = ["--format", "value(name.basename(),state.state)"]
        return _find(self._run([*listed, *shown, *self._where], read=True), self._name)

    def delete(self) -> None:
        self._gcloud("delete", "--force", "--quiet")

    def _copy(self, path: str) -> None:
        self._gcloud("scp", "--worker=all", "--node=all", before=[path], after=f":{ARCHIVE}")

    def _on_all(self, command: str, read: bool = False) -> str:
        return self._gcloud("ssh", "--worker=all", "--node=all", "--command", command, read=read)

    def _on_first(self, command: str) -> None:
        self._gcloud("ssh", "--worker=0", "--node=0", "--command", command)

    def _gcloud(self, verb, *flags, before=(), after="", read=False) -> str:
        command = ["gcloud", "compute", "tpus", "queued-resources", verb, *before, self._name + after]
        return self._run([*command, *self._where, *flags], read)


class InstanceGroup(Pod):
    """`--api mig`: one slice of v5p, v6e, TPU 7x or later, a managed instance group of Compute Engine. Its pages, by title:

    * "TPU instances in MIGs": the generations; a group of size one is a machine by itself.
    * "gcloud compute resource-policies create workload-policy": the topology of a slice of several machines. Its chips are
      connected when the machines are created ("ResourcePolicyWorkloadPolicy::AcceleratorTopologyMode").
    * "InstanceGroupManagerTargetSizePolicy::Mode": with BULK, all machines are created at once.
    * "gcloud compute instance-groups managed create": `do-nothing` keeps a single machine from being repaired by itself.
    * "Request TPU Spot VMs": the flags of the template; spot machines are restarted by creating the group anew.
    """

    @property
    def _region(self) -> str:
        return self._zone.rpartition("-")[0]

    def create(self, kind: str, slices: int, spot: bool, software: str | None, topology: str | None) -> None:
        family, size = software or FAMILIES.get(kind.split("-")[0]), _group_size(kind, topology)
        if slices > 1:
            raise PodError(f"--api mig makes one slice; got --slices {slices}: use --api tpu, or GKE")
        if not self._project or not family:
            raise PodError("--api mig needs --project and, unless --type is ct5p-*, ct6e-* or tpu7x-*, --software")
        group, region = ["--size", str(size), "--template", self._name], self._region
        if size > 1:
            policy = ["--type", "HIGH_THROUGHPUT", "--accelerator-topology", topology, "--region", region]
            self._gcloud("resource-policies", "create", "workload-policy", self._name, *policy, *self._of_project)
            group += ["--workload-policy", f"projects/{self._project}/regions/{region}/resourcePolicies/{self._name}"]
            group += ["--target-size-policy-mode", "bulk", "--default-action-on-vm-failure", "do-nothing"]
        image = ["--image-family", family, "--image-project", IMAGES, "--boot-disk-size", DISK]
        more = ["--provisioning-model", "SPOT", "--instance-termination-action", "STOP"] if spot else []
        machine = ["--machine-type", kind, "--maintenance-policy", "TERMINATE", "--scopes", "cloud-platform"]
        self._gcloud("instance-templates", "create", self._name, *machine, *image, *more, *self._of_project)
        self._gcloud("instance-groups", "managed", "create", self._name, *self._where, *group)

    def state(self) -> str | None:
        """ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED (a machine has ended), FAILED (no group, but parts of one); None: nothing."""
        (groups, *others) = self._parts()
        size = _find(self._gcloud(*groups["list"], "--format", "value(name,targetSize)", read=True), self._name)
        if size is None:
            return "FAILED" if any(self._has(part) for part in others) else None
        states = [state for _, state in self._machines()]
        if any(state in ENDED for state in states):
            return "SUSPENDED"
        return "ACTIVE" if states == ["RUNNING"] * int(size) else "WAITING_FOR_RESOURCES"

    def delete(self) -> None:
        """Deletes the group, its template and its policy, each if there is one."""
        for part in self._parts():
            if self._has(part) or self._dry_run:
                self._gcloud(*part["delete"], "--quiet")

    def train(self, arguments: list[str]) -> None:
        """Starts training on all machines, or resumes it. The environment says where they meet, see training/processes.py."""
        names = [name for name, _ in self._machines()]
        meeting = f"JAX_COORDINATOR_ADDRESS={names[0]}:{PORT} JAX_NUM_PROCESSES={len(names)}"
        command = _machine("train", *arguments)
        self._on_each({name: f"{meeting} JAX_PROCESS_ID={i} {command}" for i, name in enumerate(names)})

    def _parts(self) -> list[dict[str, list[str]]]:
        """The commands that list and delete what a slice is made of."""
        places = {"instance-groups managed": ("zone", self._zone), "instance-templates": None}
        places["resource-policies"] = ("region", self._region)
        parts = []
        for kind, place in places.items():
            listed, deleted = ([f"--{place[0]}s", place[1]], [f"--{place[0]}", place[1]]) if place else ([], [])
            commands = {"list": ["list", *listed], "delete": ["delete", self._name, *deleted]}
            parts.append({verb: [*kind.split(), *words, *self._of_project] for verb, words in commands.items()})
        return parts

    def _has(self, part: dict[str, list[str]]) -> bool:
        return _find(self._gcloud(*part["list"], "--format", "value(name)", read=True), self._name) is not None

    def _machines(self) -> list[tuple[str, str]]:
        """Name and status of each machine, by name. Errors: PodError when there is none."""
        shown = ["--format", "value(name,instanceStatus)"]
        listed = self._gcloud(
            "instance-groups", "managed", "list-instances", self._name, *self._where, *shown, read=True
        )
        machines = [tuple(line.split("\t")) for line in sorted(listed.splitlines()) if "\t" in line]
        if not machines and not self._dry_run:
            raise PodError(f"{self._name} has no machines yet")
        return machines or [(MACHINE, "RUNNING")]

    def _copy(self, path: str) -> None:
        for name, _ in self._machines():
            self._gcloud("scp", path, f"{name}:{ARCHIVE}", *self._where, "--quiet")

    def _on_all(self, command: str, read: bool = False) -> str:
        return self._on_each({name: command for name, _ in self._machines()}, read)

    def _on_first(self, command: str) -> None:
        self._on_each({self._machines()[0][0]: command})

    def _on_each(self, commands: dict[str, str], read: bool = False) -> str:
        """Runs commands on machines at the same time. -> their output"""

        def ssh(name):
            return self._gcloud("ssh", name, *self._where, "--quiet", "--command", commands[name], read=read)

        with ThreadPoolExecutor(len(commands)) as threads:
            return "".join(threads.map(ssh, commands))

    def _gcloud(self, *words: str, read: bool = False) -> str:
        return self._run(["gcloud", "compute", *words], read)


def _group_size(kind: str, topology: str | None) -> int:
    """Machines of a slice. Errors: PodError."""
    chips = re.fullmatch(r"[a-z0-9]+-[a-z0-9]+-(\d+)t", kind)
    if not chips or not re.fullmatch(r"\d+(x\d+){1,2}", topology or ""):
        raise PodError(
            "--api mig needs a machine type and the topology of the slice, such as --type ct6e-standard-4t --topology 4x4; "
            f"got {kind} and {topology}"
        )
    size, rest = divmod(math.prod(map(int, topology.split("x"))), int(chips[1]))
    if size < 1 or rest:
        raise PodError(f"--topology must be of whole machines, of {chips[1]} chips for {kind}; got {topology}")
    return size


def _find(listed: str, name: str) -> str | None:
    """The second column of the line of this name, "" without one; None without the line."""
    for line in listed.splitlines():
        first, _, second = line.partition("\t")
        if first == name:
            return second.strip()
    return None


def combine(output: str) -> str:
    """One status from a line of each machine. Other lines are ignored.

    Returns: running, partly (some machines run, others are new), new (some are, none runs), stopped, or the worst "ended CODE".
    Errors: PodError when no line is a status.
    """
    lines = {line.strip() for line in output.splitlines()}
    if "running" in lines:
        return "partly" if "new" in lines else "running"
    # Of stopped machines only the first reports it: the others report that they ended with 0.
    for status in ("new", "stopped"):
        if status in lines:
            return status
    codes = [int(line.removeprefix("ended ")) for line in lines if re.fullmatch(r"ended \d+", line)]
    if not codes:
        raise PodError("no machine reports a status")
    return f"ended {max(codes)}"


def _machine(*arguments: str) -> str:
    """A command line that runs machine.sh."""
    return shlex.join(["bash", "editmgt/launch/machine.sh", *arguments])


def _run(command: list[str], read: bool = False) -> str:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE if read else None, text=True)
    except FileNotFoundError as error:
        raise PodError(
            "gcloud must be installed and logged in: it creates the machines and runs commands on them"
        ) from error
    if done.returncode:
        raise PodError(f"exit code {done.returncode} of: {shlex.join(command)}")
    return done.stdout or ""
