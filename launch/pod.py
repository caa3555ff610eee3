"""Trains on TPU machines of Google Cloud, from a machine with `gcloud`: one slice, several slices, or spot machines.

    python launch/pod.py create edit --zone us-west4-a --type v5litepod-64              # --slices 2, --spot
    python launch/pod.py setup  edit --zone us-west4-a --bucket my-bucket
    python launch/pod.py train  edit --zone us-west4-a -- --config configs/stage2_finetune.py --workdir runs/stage2
    python launch/pod.py log    edit --zone us-west4-a                                  # status, stop, run, delete
    python launch/pod.py keep   edit --zone us-west4-a --type v5litepod-64 --spot --bucket my-bucket -- --config ...
    python launch/pod.py create edit --zone us-east5-b --api mig --project p --type ct6e-standard-4t --topology 4x4

`keep` does all of it, and repeats it after each preemption until the run has ended. launch/README.md has the details.
Every machine runs machine.sh; training is `editmgt train --distributed` under `editmgt supervise`.
`--dry-run` prints the commands. No command holds a secret: machines reach the bucket as their service account.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for when this file is imported

from machines import MACHINE, InstanceGroup, Pod, PodError, QueuedResource  # noqa: E402

APIS = {"tpu": QueuedResource, "mig": InstanceGroup}
GONE = ("SUSPENDED", "FAILED")


class TrainingFailed(PodError):
    """Training has ended with an error."""


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


def _say(text: str) -> None:
    print(f"pod: {text}", file=sys.stderr, flush=True)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")

    def add(name, text, *, machines=False, bucket=False, arguments=""):
        command = commands.add_parser(name, help=text)
        command.add_argument("name", help="name of the machines")
        command.add_argument("--zone", required=True)
        command.add_argument("--project", help="default: gcloud's; needed to create a group")
        command.add_argument(
            "--api", choices=list(APIS), default="tpu", help="tpu: Cloud TPU (default); mig: Compute Engine"
        )
        text = f"print the commands; {MACHINE} stands for each machine of a group"
        command.add_argument("--dry-run", action="store_true", help=text)
        if machines:
            text = "tpu: of a slice: v5litepod-64, v5p-128, v6e-64, ...; mig: of a machine: ct6e-standard-4t, ..."
            command.add_argument("--type", required=True, help=text)
            command.add_argument("--topology", metavar="AxB", help="mig: chips of the slice: 4x4, 2x2x4, ...")
            command.add_argument("--slices", type=int, default=1, metavar="N")
            command.add_argument("--spot", action="store_true", help="cheaper; can be preempted at any moment")
            command.add_argument(
                "--software", metavar="NAME", help="runtime version; mig: family of images (default: by type)"
            )
        if bucket:
            command.add_argument(
                "--bucket", required=True, help="bucket with a hierarchical namespace; holds data, models, runs"
            )
        if arguments:
            text = f"arguments of `{arguments}`"
            command.add_argument("arguments", nargs="+", metavar="-- ARGUMENTS", help=text)
        return command

    add("create", "request the machines", machines=True)
    add("setup", "install on all machines, and mount the bucket", bucket=True)
    add("train", "start or resume training on all machines", arguments="editmgt train")
    add("run", "run a command of editmgt on the first machine", arguments="editmgt")
    add("status", "print the state of the machines and of training")
    add("log", "print the end of the first machine's log").add_argument("--lines", type=int, default=40)
    add("stop", "save and end training")
    add("delete", "delete the machines")
    command = add("keep", "do all of it until the run has ended", machines=True, bucket=True, arguments="editmgt train")
    command.add_argument("--wait", type=float, default=60.0, metavar="SECONDS", help="between checks (default 60)")
    return parser


def main(argv=None) -> int:
    args = make_parser().parse_args(argv)
    pod = APIS[args.api](args.name, args.zone, args.project, args.dry_run)
    wanted = {}
    if args.command in ("create", "keep"):
        wanted = {"kind": args.type, "topology": args.topology, "slices": args.slices}
        wanted |= {"spot": args.spot, "software": args.software}
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
                status = pod.status() if state == "ACTIVE" or args.dry_run else ""
                if not args.dry_run:
                    print(state or "not there", status)
            case "run":
                pod.run(args.arguments)
            case "log":
                pod.log(args.lines)
            case "stop":
                pod.stop()
            case "delete":
                pod.delete()
            case "keep" if args.dry_run:  # of one round without accidents
                pod.create(**wanted)
                pod.setup(args.bucket)
                pod.train(args.arguments)
            case "keep":
                keep(pod, wanted, args.bucket, args.arguments, args.wait)
    except PodError as error:
        print(f"pod: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
