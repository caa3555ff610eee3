"""launch/: what is done on the machines, with stand-ins for gcloud, the bucket and the installation."""

import sys

import pytest
from pods import RUN, calls, keep, log_says, lose, stop, wait_for

from editmgt_jax.training import processes


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
    assert log_says(machine, f"keeps programs in: {machine}/editmgt-bucket/cache")
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
