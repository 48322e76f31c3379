"""Which Ray actors work on a GPU; what needs one is skipped where there is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from problems import blobs, experiment, play

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.backends.ray.backend import RayActors
from fedlearn.backends.ray.gpus import kinds
from fedlearn.backends.ray.machines import Machine
from fedlearn.errors import ConfigError

ABLE: Any = SimpleNamespace(to=None)
UNABLE: Any = SimpleNamespace()
ANYWHERE = [None] * 3


@pytest.mark.parametrize(("devices", "task", "gpus", "found"), [
    ("auto", ABLE, 0, "ccc"), ("auto", ABLE, 2, "ggc"), ("auto", ABLE, 9, "ggg"), ("auto", UNABLE, 9, "ccc"),
    ("cpu", ABLE, 9, "ccc"), ("cuda", ABLE, 3, "ggg"), (["cpu", "cuda", "cpu"], ABLE, 1, "cgc"),
    (["cpu"] * 3, UNABLE, 0, "ccc")])
def test_gpus_go_to_as_many_actors_as_there_are(devices: Any, task: Any, gpus: int, found: str) -> None:
    assert kinds(devices, task, gpus, ANYWHERE) == [{"c": "cpu", "g": "cuda"}[letter] for letter in found]


def test_where_actors_have_their_machines_its_gpus_count() -> None:
    a, b = Machine("a", "10.0.0.1", room=4, gpus=1), Machine("b", "10.0.0.2", room=4)
    assert kinds("auto", ABLE, 1, [b, a, a, b]) == ["cpu", "cuda", "cpu", "cpu"]


@pytest.mark.parametrize(("devices", "task", "gpus", "said"), [
    ("cuda", ABLE, 2, "devices: found 'cuda'; allowed: auto or cpu here. The cluster has 2 GPUs for 3 actors."),
    (["cuda", "cpu", "cuda"], ABLE, 1, "The cluster has 1 GPU for 2 actors."),
    ("cuda", UNABLE, 3, "has no method to")])
def test_what_cannot_be_had_is_refused(devices: Any, task: Any, gpus: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        kinds(devices, task, gpus, ANYWHERE)


@pytest.mark.parametrize(("devices", "said"), [
    ("gpu", "allowed: one of auto, cpu, cuda"), (["cuda:0", "cpu"], "allowed: cpu or cuda, as the entry of actor 0"),
    (["cpu"], "a list with 2 entries, one for each of backend.workers"), (3, "devices: found 3")])
def test_wrong_devices_are_refused(devices: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RayActors(workers=2, devices=devices)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_log_says_what_actors_have(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="fedlearn"):
        play(experiment(FedAvg(), rounds=1, cohort=2, backend=RayActors(workers=2, devices=["cpu", "cpu"])))
    assert "2 actors: 2 x cpu" in caplog.text


@pytest.mark.gpu
@pytest.mark.ray
@pytest.mark.slow
def test_a_gpu_and_a_cpu_work_in_one_round() -> None:
    backend = RayActors(workers=2, devices=["cuda", "cpu"])
    x, reports = play(experiment(FedAvg(), rounds=3, cohort=4, backend=backend))
    there, _ = play(experiment(FedAvg(), rounds=3, cohort=4, task=blobs()))
    assert torch.allclose(x, there, atol=1e-4) and len(reports) == 3
