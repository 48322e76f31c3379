"""CPU and GPU ranks in one group, and ranks of unlike speed.

No GPU is needed but where it is said: elsewhere ranks have one in name only, and tensors that must not reach gloo.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from problems import begin, blobs, experiment, play, setup_of

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.balance import balance
from fedlearn.backends.device import Device, unlike, words
from fedlearn.backends.torchrun import coordinator
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.backends.torchrun.device import choose, one_each
from fedlearn.backends.torchrun.share import Outcome, Share
from fedlearn.config.compose import compose, recompose, to_yaml
from fedlearn.errors import ConfigError
from fedlearn.reducers.exact import ExactSum
from fedlearn.vectors import digest
from fedlearn.work import cost

ROOT = Path(__file__).parents[2]
LARGE = 20_000   # features, with which sums travel by themselves


class Movable:
    """A task that can go to a device."""

    def to(self, device: str) -> Movable:
        return self


def test_every_machine_decides_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose("auto", Movable(), 5, 1, 2) == choose("cuda", Movable(), 5, 1, 2) == "cuda:1"
    assert choose("auto", Movable(), 5, 1, 3) == choose("auto", object(), 5, 1, 2) == "cpu"
    assert choose("cpu", Movable(), 5, 1, 2) == "cpu"
    with pytest.raises(ConfigError, match="backend.devices: found 'cuda'; .*has 2 GPUs for 3 ranks"):
        choose("cuda", Movable(), 2, 2, 3)
    with pytest.raises(ConfigError, match="backend.devices: found 'cuda'.*object has no method to"):
        choose("cuda", object(), 1, 1, 2)


def test_a_list_says_it_for_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asked = ["cuda:0", "cuda:1", "cpu", "cuda:1", "cuda:2"]
    assert [choose(asked, Movable(), rank, rank, 5) for rank in range(4)] == asked[:4]
    with pytest.raises(ConfigError, match="found 'cuda:2'; allowed: cuda:0 or cuda:1 or cpu as the entry of rank 4"):
        choose(asked, Movable(), 4, 4, 5)
    with pytest.raises(ConfigError, match="found 'cuda:0'; allowed: cpu as .* rank 0. object has no method to"):
        choose(asked, object(), 0, 0, 5)


@pytest.mark.parametrize(("setting", "found", "allowed"), [
    ({"devices": "gpu"}, "'gpu'", "one of auto, cpu, cuda (did you mean cpu?), or a list with one entry per rank"),
    ({"devices": ["cpu", "cuda"]}, "'cuda'", "cpu, or cuda:N, as the entry of rank 1"),
    ({"devices": 0}, "0", "one of auto"),
    ({"speeds": "fast"}, "'fast'", "one of auto, equal, or a list with one number per rank"),
    ({"speeds": [1, 0]}, "0", "a number > 0"),
    ({"speeds": [1, float("nan")]}, "nan", "a number > 0"),
    ({"speeds": [1, 1], "dedicated": True}, "1", "0 for rank 0 with backend.dedicated=true")])
def test_wrong_words_and_entries(setting: dict[str, Any], found: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as error:
        Torchrun(**setting)
    assert str(error.value).startswith(f"backend.{next(iter(setting))}: found {found}; allowed: {allowed}")


def test_lists_cross_the_configuration_and_a_resume_with_other_ranks_says_which_is_too_short() -> None:
    text = to_yaml(compose(["backend=torchrun", "backend.devices=[cuda:0,cpu]", "backend.speeds=[1,0.25]"]))
    backend = recompose(text, []).backend
    assert (list(backend.devices), list(backend.speeds)) == (["cuda:0", "cpu"], [1, 0.25])
    for more, wrong in (([], "devices"), (["backend.devices=auto"], "speeds")):
        cfg = recompose(text, ["backend.workers=3", *more]).backend
        again = Torchrun(cfg.workers, devices=_plain(cfg.devices), speeds=_plain(cfg.speeds))
        with pytest.raises(ConfigError, match=f"backend.{wrong}: .*a list with 3 entries, .*It has 2; say backend."):
            again.open(setup_of(experiment(FedAvg())))


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else list(value)


def test_nccl_is_for_ranks_that_have_a_gpu_of_their_own() -> None:
    a, b, c = Device("cuda:0", "H100", "GPU-1"), Device("cuda:0", "H100", "GPU-2"), Device("cuda:1", "A100", "GPU-3")
    cpu = Device.of("cpu")
    assert one_each([a]) and one_each([a, b, c])
    assert not one_each([a, a]) and not one_each([a, cpu]) and not one_each([cpu])
    assert unlike([a, c]) and unlike([a, cpu]) and not unlike([a, b]) and not unlike([cpu, cpu])
    assert words([a, cpu, cpu]) == "cuda:0 (H100), 2 x cpu"


def test_an_idle_gpu_rank_of_a_mixed_group_sends_its_empty_sum_from_the_hosts_memory() -> None:
    sent: list[torch.Tensor] = []
    group: Any = SimpleNamespace(device="cuda:0", nccl=None, reduce=lambda buffer, wire: sent.append(buffer) or buffer)
    share = Share.__new__(Share)
    share.group, share.wire, share.sum = group, "float32", ExactSum()
    share.reduce([["dx", 5, "float32"]])      # on the GPU it would need one
    assert sent[0].is_cpu and sent[0].tolist() == [0] * 5


STAND_IN = '''
import json, os, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from problems import blobs, experiment, setup_of
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.torchrun import group, rank, share
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.errors import FedlearnError
from fedlearn.reducers.exact import ExactSum
from fedlearn.vectors import digest

class Far(torch.Tensor):
    """A tensor that says it is on a GPU; what is brought to the CPU is one no more."""
    is_cpu = False
    def cpu(self):
        return self.as_subclass(torch.Tensor)

class Gloo:
    """What cannot reach a GPU."""
    def __init__(self, group): self.group = group
    def __getattr__(self, name):
        def call(*args):
            flat = lambda x: [z for y in x for z in flat(y)] if isinstance(x, list) else [x]
            assert not any(isinstance(t, Far) for t in flat(list(args))), f"{name} was given what lies on a GPU"
            return getattr(self.group, name)(*args)
        return call

out = Path(sys.argv[1])
mine = int(os.environ["RANK"])
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_properties = lambda device: SimpleNamespace(name="Stand-in", uuid="GPU-1")
rank.placed = share.moved = lambda what, device: what
mesh, shape_as, far = group.mesh, ExactSum.shape_as, []
group.mesh = lambda *args: Gloo(mesh(*args))
def there(total, layout, device="cpu"):
    shape_as(total, layout, device)
    if backend.devices[mine] != "cpu":
        total.buffer = total.buffer.as_subclass(Far)
        far.append(total)
ExactSum.shape_as = there

said = []
for devices, features in json.loads(sys.argv[2]):
    backend = Torchrun(devices=devices, timeout=20)
    e = experiment(Scaffold(), rounds=2, cohort=4, backend=backend, task=blobs(features=features))
    far.clear()
    try:
        workers = backend.open(setup_of(e))
        if mine == 0:
            loop = e.protocol.start(e, workers)
            for r in range(2):
                loop.round(r)
            x, more = loop.model(), {"events": workers.events(), "nccl": workers.group.nccl is not None}
            workers.close({"x": x})
        else:
            x, more = workers.serve()["x"], {}
        said.append({"digest": digest(x), "far": len(far)} | more)
    except FedlearnError as error:
        said.append({"error": f"{type(error).__name__} {error}"})
(out / str(mine)).write_text(json.dumps(said))
'''


@pytest.mark.torchrun
def test_mixed_ranks_give_gloo_nothing_that_lies_on_a_gpu_and_hear_of_one_that_is_not_there(tmp_path: Path) -> None:
    gpu, devices = "cuda:0 (Stand-in)", ["cuda:0", "cpu", "cuda:0"]
    cases = [[["cpu", "cpu", "cuda:7"], 6], [devices, 6], [devices, LARGE]]
    (tmp_path / "script.py").write_text(STAND_IN)
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3",
                           str(tmp_path / "script.py"), str(tmp_path), json.dumps(cases)], env=environ, timeout=120,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    refused, *mixed = zip(*(json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)), strict=True)
    assert refused[0] == refused[1] == refused[2]
    assert refused[0]["error"].startswith("ConfigError backend.devices: found 'cuda:7'; allowed: cuda:0 or cpu as the "
                                          "entry of rank 2. The machine ")
    for (_, features), (first, *others) in zip(cases[1:], mixed, strict=True):
        assert first["events"] == [{"event": "unlike devices", "devices": [gpu, "cpu", gpu], "sums": "gloo",
                                    "speeds": [1.0] * 3}]
        assert not first["nccl"] and first["far"] >= 2 <= others[1]["far"] and not others[0]["far"]
        alone = experiment(Scaffold(), rounds=2, cohort=4, task=blobs(features=features))
        assert {said["digest"] for said in (first, *others)} == {digest(play(alone)[0])}


@pytest.mark.torchrun
@pytest.mark.usefixtures("tidy")
def test_a_rank_that_is_started_from_here_and_cannot_have_its_gpu() -> None:
    with pytest.raises(ConfigError, match="backend.devices: found 'cuda:99'; allowed: .*cpu as the entry of rank 1"):
        begin(experiment(FedAvg(), backend=Torchrun(workers=2, devices=["cpu", "cuda:99"])))


@pytest.mark.torchrun
@pytest.mark.usefixtures("tidy")
def test_given_speeds_share_work_out_and_change_no_bit(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fedlearn")
    e = experiment(Scaffold(), rounds=3, backend=Torchrun(workers=2, speeds=[1, 3]))
    loop, workers = begin(e)
    costs = {m: 1.0 for m in range(8)}
    assert [len(share) for share in balance(costs, workers.pace.of(workers.seats))] == [2, 6]
    for r in range(3):
        loop.round(r)
    workers.close()
    assert digest(loop.model()) == digest(play(experiment(Scaffold(), rounds=3))[0])
    assert workers.events() == [] and e.backend.describe().endswith("1 thread each, speeds 1, 3")
    assert caplog.messages.count("2 ranks: 2 x cpu; sums by gloo") == 1


@pytest.mark.torchrun
@pytest.mark.usefixtures("tidy")
def test_measured_speeds_are_adopted_and_written_down_and_who_replaces_a_rank_takes_its_speed_over(
        monkeypatch: pytest.MonkeyPatch) -> None:
    conduct, told, e = coordinator.conduct, [], experiment(Scaffold(), rounds=14, backend=Torchrun(workers=2))

    def slow(mine: Any, work: Any, shares: Any, room: int) -> Outcome:
        """As if everything took a hundred seconds, and twice as long at rank 1."""
        result, room, did = conduct(mine, work, shares, room)
        told.append([seconds for _, seconds in did])
        return Outcome(result, room, [
            (clients, seconds and 100.0 * (1 + rank) * sum(cost(e.task.sizes, m, work.local) for m in clients))
            for rank, (clients, seconds) in enumerate(did)])

    monkeypatch.setattr(coordinator, "conduct", slow)
    loop, workers = begin(e)
    for r in range(14):
        if r == 10:
            workers.children[0].process.kill()
        loop.round(r)
    workers.close()
    adopted, lost = workers.events()
    assert adopted == {"event": "speeds", "round": 6, "speeds": [1.0, 0.5]} and lost["event"] == "rank lost"
    assert workers.pace.speeds == [1.0, 0.5]
    assert told[0] == [0.0, 0.0] and all(min(seconds) > 0 for seconds in told[1:10])
    assert told[10][0] > 0 == told[10][1] and told[11][1] > 0     # the newcomer's first share is no measure
    assert digest(loop.model()) == digest(play(experiment(Scaffold(), rounds=14))[0])


@pytest.mark.gpu
@pytest.mark.torchrun
@pytest.mark.parametrize("devices", [["cuda:0"], ["cuda:0", "cuda:0"], ["cuda:0", "cpu"], ["cpu", "cuda:0"]])
@pytest.mark.parametrize("features", [6, LARGE])
def test_ranks_on_a_gpu(devices: list[str], features: int) -> None:
    choices: dict[str, Any] = {"algorithm": Scaffold(), "rounds": 3, "task": blobs(features=features)}
    backend = Torchrun(workers=len(devices), devices=devices, speeds="equal")
    one, again = (play(experiment(**choices, backend=backend))[0] for _ in range(2))
    assert torch.equal(one, again) and one.device.type == "cpu"
    assert torch.allclose(one, play(experiment(**choices))[0], atol=1e-4)
