"""The YAML files: Compose's own check, Ray's own schema, and what Kubernetes requires, by hand."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = [ROOT / "docker/compose.torchrun.yaml", ROOT / "docker/compose.ray.yaml"]


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_compose_accepts_its_file(path):
    if shutil.which("docker-compose") is None:
        pytest.skip("docker-compose is not installed (Debian: apt-get install docker-compose)")
    environ = os.environ | {"FEDLEARN_OVERRIDES": "rounds=7 algorithm=scaffold"}
    said = subprocess.run(["docker-compose", "-f", str(path), "config"], capture_output=True, text=True, env=environ)
    assert said.returncode == 0, said.stderr
    made = yaml.safe_load(said.stdout)
    assert len(made["services"]) == 2
    if "torchrun" in path.name:
        assert all("rounds=7 algorithm=scaffold" in s["command"][-1] for s in made["services"].values())


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_containers_are_shut_in_and_come_back(path):
    made = yaml.safe_load(path.read_text())
    assert made["networks"]["private"] == {"internal": True} and "version" not in made
    (head, first), (worker, second) = made["services"].items()
    for service in (first, second):
        assert service["restart"].startswith("on-failure:") and service["secrets"] == ["token"]
        assert service["networks"] == ["private"] and "ports" not in service and "healthcheck" in service
        assert not service["user"].split("-")[-1].startswith("0"), "nobody runs as root"
    assert first["volumes"] == second["volumes"] == ["runs:/runs", "/data"]
    assert head in second["command"][-1], f"a {worker} finds its {head} by name"


def test_ray_accepts_its_file():
    pytest.importorskip("ray")
    jsonschema = pytest.importorskip("jsonschema")
    import ray.autoscaler

    made = yaml.safe_load((ROOT / "launch/ray_cluster.yaml").read_text())
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(made, schema)
    assert made["max_workers"] == len(made["provider"]["worker_ips"])
    for commands in (made["head_start_ray_commands"], made["worker_start_ray_commands"]):
        words = shlex.split(commands[-1])
        assert "RAY_AUTH_MODE=token" in words and "start" in words
    system, = [word for word in shlex.split(made["head_start_ray_commands"][-1]) if "system-config" in word]
    assert json.loads(system.partition("=")[2])["health_check_period_ms"] == 1000


@pytest.fixture(scope="module")
def kubernetes():
    """The objects of kubernetes.yaml by kind, the two Jobs by role."""
    made = list(yaml.safe_load_all((ROOT / "launch/kubernetes.yaml").read_text()))
    assert all({"apiVersion", "kind", "metadata"} <= set(one) and one["metadata"]["name"] for one in made)
    jobs = {one["spec"]["template"]["metadata"]["labels"]["role"]: one for one in made if one["kind"] == "Job"}
    return {one["kind"]: one for one in made if one["kind"] != "Job"} | jobs


def test_kubernetes_kinds_and_versions(kubernetes):
    versions = {name: one["apiVersion"] for name, one in kubernetes.items()}
    assert versions == {"Service": "v1", "ConfigMap": "v1", "PersistentVolumeClaim": "v1",
                        "NetworkPolicy": "networking.k8s.io/v1", "coordinator": "batch/v1", "node": "batch/v1"}
    assert all(isinstance(value, str) for value in kubernetes["ConfigMap"]["data"].values())
    assert kubernetes["PersistentVolumeClaim"]["spec"]["resources"]["requests"]["storage"]


def test_kubernetes_pods_find_the_coordinator(kubernetes):
    service, pod = kubernetes["Service"], kubernetes["coordinator"]["spec"]["template"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    host = f"{pod['spec']['hostname']}.{pod['spec']['subdomain']}"
    assert service["spec"]["ports"][0]["port"] == 29400     # torchrun.sh's own
    for role in ("coordinator", "node"):
        command = kubernetes[role]["spec"]["template"]["spec"]["containers"][0]["args"][0]
        assert f"--host {host} " in command and ("--coordinator" in command) == (role == "coordinator")


def test_kubernetes_coordinator_sees_no_nodes_data(kubernetes):
    lies = {role: next(volume["hostPath"]["path"] for volume in kubernetes[role]["spec"]["template"]["spec"]["volumes"]
                       if volume["name"] == "data") for role in ("coordinator", "node")}
    assert not Path(lies["coordinator"]).is_relative_to(lies["node"]) and lies["coordinator"] != lies["node"]


@pytest.mark.parametrize("role", ["coordinator", "node"])
def test_kubernetes_jobs(kubernetes, role):
    job = kubernetes[role]["spec"]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "OnFailure" and job["backoffLimit"] > 0
    assert pod["securityContext"]["runAsNonRoot"] and pod["terminationGracePeriodSeconds"] > 20
    box, = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["name"]: mount["mountPath"] for mount in box["volumeMounts"]}
    assert set(mounted) == set(volumes) and volumes["token"]["secret"]["secretName"] == "fedlearn-token"
    assert f"--token {mounted['token']}/token " in box["args"][0] and f"runs={mounted['runs']}" in box["args"][0]
    given = set(kubernetes["ConfigMap"]["data"])
    assert box["envFrom"][0]["configMapRef"]["name"] == kubernetes["ConfigMap"]["metadata"]["name"]
    assert {name for name in given if f"$({name})" in box["args"][0]} == given
    assert mounted["data"] == "/data"
    if role == "node":
        assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"]
        least, most = map(int, kubernetes["ConfigMap"]["data"]["MACHINES"].split(":"))
        assert 1 < least <= most == job["completions"] + 1
