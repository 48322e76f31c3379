"""Both Compose files, for real: three nodes with data of their own, one killed on the way, the model of one process.

Runs are long enough that the node's death and its return fall into them.
"""

from __future__ import annotations

import json
import re

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1200)]

RUN = ["clients=6", "cohort=6", "model=softmax", "local.steps=2", "evaluate.every=0", "progress=plain",
       "checkpoint.every=20"]


@pytest.fixture
def data(tmp_path):
    """A folder for every node, with a file in it that says whose it is."""
    for node in (1, 2, 3):
        (tmp_path / "data" / str(node)).mkdir(parents=True)
        (tmp_path / "data" / str(node) / f"clients-of-{node}").write_text("private\n")
    return tmp_path / "data"


def hashes(said):
    return re.findall(r"^model   sha256 ([0-9a-f]{64})$", said, re.MULTILINE)


def last_round(project, head):
    """Return the last round of the run's ledger, 0 before there is one."""
    line = project.ask(head, "tail -n 1 /runs/*/2*/ledger.jsonl 2>/dev/null")
    return json.loads(line).get("round", 0) if line.endswith("}") else 0


def check_walls(project, head, node):
    """Look into the containers: who sees which data, who they run as, and where they can go."""
    nodes = project.containers(node)
    assert len(nodes) == 3
    for number, container in enumerate(nodes, 1):
        assert project.engine("exec", container, "ls", "/data") == f"clients-of-{number}"
        assert project.engine("exec", container, "cat", f"/data/clients-of-{number}") == "private"
    assert "clients-of" not in project.ask(head, "ls -R /data /runs /home; cat /proc/mounts")
    assert project.ask(head, "test -e /data || echo none") == "none"
    for container in [*project.containers(head), *nodes]:
        assert project.engine("exec", container, "id", "-u") != "0"
        made = json.loads(project.engine("inspect", container))[0]
        network, = made["NetworkSettings"]["Networks"]
        assert json.loads(project.engine("network", "inspect", network))[0]["Internal"] is True
        assert not made["HostConfig"]["PortBindings"]


@pytest.mark.parametrize("project", ["torchrun"], indirect=True)
def test_torchrun_loses_a_node_and_takes_it_back(project, image, data):
    overrides = [*RUN, "rounds=6000"]
    project.start("run", "--nodes", "3", "--data", str(data), *overrides)

    def ranks():
        """Return with how many ranks the run was begun, and begun again."""
        return [int(number) for number in re.findall(r"work runs on (\d) ranks", project.said())]

    # Those that come a little later are taken in.
    project.until(lambda: ranks()[-1:] == [4] and last_round(project, "coordinator") > 50, "run with everybody")
    check_walls(project, "coordinator", "node")
    begun = ranks()
    victim = project.containers("node")[1]
    project.engine("kill", victim)
    project.until(lambda: ranks() == [*begun, 3], "run with those that are left")
    project.engine("start", victim)
    said = project.finish()
    assert ranks() == [*begun, 3, 4]
    alone = project.engine("run", "--rm", "--network", "none", image, "fedlearn", "run", *overrides)
    assert hashes(said) == hashes(alone) != []


@pytest.mark.parametrize("project", ["ray"], indirect=True)
def test_ray_loses_a_worker_and_takes_it_back(project, image, data):
    overrides = [*RUN, "rounds=2000"]
    project.start("run", "--nodes", "3", "--data", str(data), *overrides)
    project.until(lambda: last_round(project, "head") > 50, "round")
    check_walls(project, "head", "worker")
    victim = project.containers("worker")[1]
    project.engine("kill", victim)
    before = last_round(project, "head")
    project.until(lambda: last_round(project, "head") > before + 100, "round without it")
    project.engine("start", victim)
    said = project.finish()
    nodes = "import ray; ray.init('auto', log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()), 'alive')"
    project.until(lambda: "4 alive" in project.ask("head", f'python3 -c "{nodes}"'), "return of the worker")
    alone = project.engine("run", "--rm", "--network", "none", image, "fedlearn", "run", *overrides)
    assert hashes(said) == hashes(alone) != []
