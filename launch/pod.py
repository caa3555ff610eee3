"""Trains on Cloud TPU, from a machine with `gcloud`: one slice, several slices, or spot machines.

    python launch/pod.py create edit --zone us-west4-a --type v5litepod-64              # --slices 2, --spot
    python launch/pod.py setup  edit --zone us-west4-a --bucket my-bucket
    python launch/pod.py train  edit --zone us-west4-a -- --config configs/stage2_finetune.py --workdir runs/stage2
    python launch/pod.py log    edit --zone us-west4-a                                  # status, stop, delete
    python launch/pod.py keep   edit --zone us-west4-a --type v5litepod-64 --spot --bucket my-bucket -- --config ...

`keep` does all of it, and repeats it after each preemption until the run has ended. launch/README.md has the details.
Every machine runs machine.sh; training is `editmgt train --distributed` under `editmgt supervise`.
"""

import argparse
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
SHIPPED = ("editmgt_jax", "configs", "launch", "setup.py", "pyproject.toml", "README.md")
SOFTWARE = {"v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}  # other types:
OLDER = "tpu-ubuntu2204-base"
GONE = ("SUSPENDED", "FAILED")


class PodError(RuntimeError):
    """A launch that failed, with the reason."""


class TrainingFailed(PodError):
    """Training has ended with an error."""


class Pod:
    """A queued resource of Cloud TPU: one or more slices under one name."""

    def __init__(self, name: str, zone: str, project: str | None = None):
        self._name = name
        self._where = ["--zone", zone, *(["--project", project] if project else [])]

    def create(self, kind: str, slices: int = 1, spot: bool = False, software: str | None = None) -> None:
        software = software or SOFTWARE.get(kind.split("-")[0], OLDER)
        nodes = ["--node-id", self._name]
        if slices > 1:
            nodes = ["--node-count", str(slices), "--node-prefix", self._name]
        more = ["--spot"] if spot else []
        self._gcloud("create", "--accelerator-type", kind, "--runtime-version", software, *nodes, *more)

    def state(self) -> str | None:
        """ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; None if it does not exist."""
        listed = [
            "gcloud",
            "compute",
            "tpus",
            "queued-resources",
            "list",
            "--format",
            "value(name.basename(),state.state)",
        ]
        for line in _run([*listed, *self._where], read=True).splitlines():
            name, _, state = line.partition("\t")
            if name == self._name:
                return state.strip()
        return None

    def setup(self, bucket: str) -> None:
        """Installs this checkout and mounts the bucket on all machines."""
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "editmgt.tar.gz"
            with tarfile.open(archive, "w:gz") as tar:
                for name in SHIPPED:
                    tar.add(CHECKOUT / name, name, filter=lambda f: None if "__pycache__" in f.name else f)
            self._gcloud("scp", "--worker=all", "--node=all", before=[str(archive)], after=":editmgt.tar.gz")
        self._on_all("mkdir -p editmgt && tar --extract --gzip --file editmgt.tar.gz --directory editmgt")
        self._on_all(_machine("setup", bucket))

    def train(self, arguments: list[str]) -> None:
        self._on_all(_machine("train", *arguments))

    def stop(self) -> None:
        self._on_all(f"test ! -d editmgt || {_machine('stop')}")

    def status(self) -> str:
        """The status of all machines, see `combine`."""
        return combine(self._on_all(f"test -d editmgt && {_machine('status')} || echo new", read=True))

    def log(self, lines: int) -> None:
        self._gcloud("ssh", "--worker=0", "--node=0", "--command", f"tail -n {lines} editmgt.log")

    def delete(self) -> None:
        self._gcloud("delete", "--force", "--quiet")

    def _on_all(self, command: str, read: bool = False) -> str:
        return self._gcloud("ssh", "--worker=all", "--node=all", "--command", command, read=read)

    def _gcloud(self, verb, *flags, before=(), after="", read=False) -> str:
        command = ["gcloud", "compute", "tpus", "queued-resources", verb, *before, self._name + after]
        return _run([*command, *self._where, *flags], read)


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


def keep(pod: Pod, wanted: dict, bucket: str, arguments: list[str], wait: float) -> None:
    """Trains until the run has ended. Creates the machines again whenever they are gone.

    Args:
      wanted: arguments of `Pod.create`; wait: seconds between checks.
    Errors: TrainingFailed when training has ended with an error, which a restart would not fix; PodError when the first check
    fails. Later ones may fail, with the network.
    """
    ended = works = False
    while not ended:
        try:
            ended = _look(pod, wanted, bucket, arguments)
            works = True
        except TrainingFailed:
            raise
        except PodError as error:
            if not works:  # the first check shows whether the request is possible at all
                raise
            _say(str(error))
        if not ended:
            time.sleep(wait)


def _look(pod: Pod, wanted: dict, bucket: str, arguments: list[str]) -> bool:
    """Takes the next step for the machines' state. -> whether the run has ended"""
    state = pod.state()
    if state in GONE:
        _say(f"{state.lower()}: deleting")
        pod.delete()
    elif state is None:
        _say("creating")
        pod.create(**wanted)
    return state == "ACTIVE" and _advance(pod, bucket, arguments)


def _advance(pod: Pod, bucket: str, arguments: list[str]) -> bool:
    """Sets machines up and starts training where needed. -> whether the run has ended"""
    try:
        status = pod.status()
        if status == "partly":  # one machine has restarted: the others would wait for ever
            _say("only some machines train: stopping them")
            pod.stop()
        elif status in ("new", "stopped"):  # stopped machines may have restarted since
            _say("setting up")
            pod.setup(bucket)
            _say("training")
            pod.train(arguments)
    except PodError as error:  # the machines may be about to go
        _say(str(error))
        return False
    if status.startswith("ended") and status != "ended 0":
        raise TrainingFailed(f"training {status}: see the log; the machines are kept")
    return status == "ended 0"


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


def _say(text: str) -> None:
    print(f"pod: {text}", file=sys.stderr, flush=True)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")

    def add(name, text, *, machines=False, bucket=False, arguments=False):
        command = commands.add_parser(name, help=text)
        command.add_argument("name", help="name of the queued resource")
        command.add_argument("--zone", required=True)
        command.add_argument("--project", help="default: gcloud's")
        if machines:
            command.add_argument("--type", required=True, help="type of a slice: v5litepod-64, v5p-128, v6e-64, ...")
            command.add_argument("--slices", type=int, default=1, metavar="N")
            command.add_argument("--spot", action="store_true", help="cheaper; can be preempted at any moment")
            command.add_argument(
                "--software", metavar="VERSION", help="runtime version of the machines (default: by type)"
            )
        if bucket:
            command.add_argument(
                "--bucket", required=True, help="bucket with a hierarchical namespace; holds data, models, runs"
            )
        if arguments:
            command.add_argument("arguments", nargs="+", metavar="-- ARGUMENTS", help="arguments of `editmgt train`")
        return command

    add("create", "request the machines", machines=True)
    add("setup", "install on all machines, and mount the bucket", bucket=True)
    add("train", "start or resume training on all machines", arguments=True)
    add("status", "print the state of the machines and of training")
    add("log", "print the end of the first machine's log").add_argument("--lines", type=int, default=40)
    add("stop", "save and end training")
    add("delete", "delete the machines")
    command = add("keep", "do all of it until the run has ended", machines=True, bucket=True, arguments=True)
    command.add_argument("--wait", type=float, default=60.0, metavar="SECONDS", help="between checks (default 60)")
    return parser


def main(argv=None) -> int:
    args = make_parser().parse_args(argv)
    pod = Pod(args.name, args.zone, args.project)
    wanted = {}
    if args.command in ("create", "keep"):
        wanted = {"kind": args.type, "slices": args.slices, "spot": args.spot, "software": args.software}
    try:
        match args.command:
            case "create":
                pod.create(**wanted)
            case "setup":
                pod.setup(args.bucket)
            case "train":
                pod.train(args.arguments)
            case "status":
                state = pod.state()
                print(state or "not there", pod.status() if state == "ACTIVE" else "")
            case "log":
                pod.log(args.lines)
            case "stop":
                pod.stop()
            case "delete":
                pod.delete()
            case "keep":
                keep(pod, wanted, args.bucket, args.arguments, args.wait)
    except PodError as error:
        print(f"pod: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
