"""Both Compose files, for real: three nodes with clients of their own, one killed on the way, the model of one process.

Nobody else has the killed node's clients: the run waits for it. Runs are long enough that death and return fall into
them.
"""

from __future__ import annotations

import json
import re
import time

import numpy as np
import pytest
from tracking.wandb_file import history

from fedlearn import cli

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1200)]

WHAT = ["task=digits", "clients=6"]
RUN = ["cohort=6", "model=softmax", "local.steps=2", "evaluate.every=0", "progress=plain", "checkpoint.every=20"]
HELD = {"federation.json", "clients.npy", "features.npy", "labels.npy"}
TEST = {"federation.json", "test_features.npy", "test_labels.npy"}
PLACES = "/data /runs /home /tmp /dev/shm"     # where anything can be written, and what a container was given
# Prints which of the samples, given as hexadecimal digits, are somewhere in a file; and how many files were read.
LOOK = """import os, sys
found, read = set(), 0
for top in sys.argv[1].split():
    for path in (os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names):
        try:
            with open(path if os.path.isfile(path) else os.devnull, "rb") as file:
                text = file.read()
        except OSError:     # gone by now, or somebody else's
            continue
        read += 1
        found |= {i for i, sample in enumerate(sys.argv[2:], 1) if bytes.fromhex(sample) in text}
print(*sorted(found), "of", read)"""


@pytest.fixture
def data(tmp_path):
    """A folder for every node and one for the coordinator: digits, split."""
    assert cli.main(["split", str(tmp_path / "data"), "--machines", "3", *WHAT]) == 0
    return tmp_path / "data"


def hashes(said):
    return re.findall(r"^model   sha256 ([0-9a-f]{64})$", said, re.MULTILINE)


def last_round(project, head):
    """Return the last round of the run's ledger, 0 before there is one."""
    line = project.ask(head, "tail -n 1 /runs/*/2*/ledger.jsonl 2>/dev/null")
    return json.loads(line).get("round", 0) if line.endswith("}") else 0


def check_walls(project, head, node, data):
    """Look into the containers: who sees whose data, who they run as, and where they can go."""
    nodes, (coordinator,) = project.containers(node), project.containers(head)
    assert len(nodes) == 3
    sample = [np.load(data / str(i) / "features.npy")[0].tobytes().hex() for i in (1, 2, 3)]
    for container, files, seen in [*((nodes[i], HELD, [str(i + 1)]) for i in range(3)), (coordinator, TEST, [])]:
        assert set(project.engine("exec", container, "ls", "/data").split()) == files
        *found, _, read = project.engine("exec", container, "python3", "-c", LOOK, PLACES, *sample).split()
        assert found == seen and int(read) > len(files)     # the run's folder, too
    assert not project.ask(head, "find /runs /tmp /home -name '*.np[yz]'")
    for container in [coordinator, *nodes]:
        assert project.engine("exec", container, "id", "-u") != "0"
        made = json.loads(project.engine("inspect", container))[0]
        network, = made["NetworkSettings"]["Networks"]
        assert json.loads(project.engine("network", "inspect", network))[0]["Internal"] is True
        assert not made["HostConfig"]["PortBindings"]


def kill_and_start(project, head, node):
    """Kill a node's container, see the run wait for it, and bring it back."""
    victim = project.containers(node)[1]
    project.engine("kill", victim)
    reached = -1
    while reached != (reached := last_round(project, head)):
        time.sleep(3)       # rounds take milliseconds
    assert not hashes(project.said())
    project.engine("start", victim)
    project.until(lambda: last_round(project, head) > reached or hashes(project.said()), "round after its return")


def alone(project, image, rounds):
    """Return the hashes of the same run in one process, with all data in one place."""
    return hashes(project.engine("run", "--rm", "--network", "none", image, "fedlearn", "run", *WHAT, *RUN, rounds))


@pytest.mark.parametrize("project", ["torchrun"], indirect=True)
def test_torchrun_waits_for_a_node_and_its_clients(project, image, data, tmp_path):
    rounds = "rounds=4000"
    told = "tracking=[wandb,tensorboard]"   # wandb: offline, without a login, a home of its own or a network
    project.start("run", "--nodes", "3", "--data", str(data), "task=private", *RUN, rounds, told)
    project.until(lambda: last_round(project, "coordinator") > 50, "round")
    check_walls(project, "coordinator", "node", data)
    kill_and_start(project, "coordinator", "node")
    said = project.finish()
    assert re.findall(r"work runs on (\d) ranks", said) == ["4", "4"]   # begun, and gone on with, by all
    assert hashes(said) == alone(project, image, rounds) != []
    project.start("fetch", str(tmp_path / "runs"))
    project.finish()
    (run,) = tmp_path.glob("runs/*/2*")     # told once, by the coordinator, with every round
    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    assert [line["round"] for line in history(file)] == list(range(4001))
    assert len(list(run.glob("tensorboard/*tfevents*"))) == 1


@pytest.mark.parametrize("project", ["ray"], indirect=True)
def test_ray_waits_for_a_worker_and_its_clients(project, image, data):
    rounds = "rounds=2000"
    project.start("run", "--nodes", "3", "--data", str(data), "task=private", *RUN, rounds)
    project.until(lambda: last_round(project, "head") > 50, "round")
    check_walls(project, "head", "worker", data)
    kill_and_start(project, "head", "worker")
    said = project.finish()
    assert hashes(said) == alone(project, image, rounds) != []
