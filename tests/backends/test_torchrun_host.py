"""Large vectors once per host: one copy in its memory, the same bits, nothing left behind, and what if it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from backends.rendezvous import on_hosts
from backends.unruly import Looks, Writes
from problems import begin, blobs, experiment, play

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.backends.torchrun.bundle import SMALL
from fedlearn.backends.torchrun.group import Group
from fedlearn.backends.torchrun.host import ALIGNED, Memory, places, settle
from fedlearn.backends.torchrun.line import Line
from fedlearn.errors import ClientError, WorkerError
from fedlearn.vectors import digest

linux = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memfd_create")
pytestmark = [pytest.mark.torchrun, pytest.mark.usefixtures("tidy"), linux]
ROOT = Path(__file__).parents[2]
LARGE = {"task": blobs(features=20_000), "cohort": 3, "rounds": 3}   # 80,019 parameters


def final(backend: Any = None, algorithm: Any = None) -> str:
    chosen = {"backend": backend} if backend else {}
    return digest(play(experiment(algorithm or Scaffold(), **LARGE, **chosen))[0])


def vectors(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list in which the bytes of every vector that is broadcast or sent along a line are put down."""
    seen: list[int] = []
    broadcast, send = Group.broadcast, Line.send
    monkeypatch.setattr(Group, "broadcast",
                        lambda group, t, among: seen.append(t.numel()) or broadcast(group, t, among))
    monkeypatch.setattr(Line, "send", lambda line, v: seen.append(v.numel()) or send(line, v))
    return seen


def test_on_one_host_no_large_vector_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = vectors(monkeypatch)
    assert final(Torchrun(workers=3)) == final()
    assert seen and max(seen) <= SMALL


@pytest.mark.parametrize("ranks", [2, 3])  # of three, the two that can still share a copy
def test_a_rank_without_shared_memory_gets_its_own_copy(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = vectors(monkeypatch)
    monkeypatch.delattr(os, "memfd_create")   # here, not in the other ranks
    assert final(Torchrun(workers=ranks)) == final()
    assert len([n for n in seen if n > SMALL]) == 2 * LARGE["rounds"]   # the model and the control variate


def test_ranks_read_one_copy_in_place(tmp_path: Path) -> None:
    loop, workers = begin(experiment(Looks(folder=str(tmp_path)), **LARGE | {"cohort": 6},
                                     backend=Torchrun(workers=3)))
    for r in range(2):
        loop.round(r)
        looks = {int(path.name): path.read_text().splitlines() for path in tmp_path.iterdir()}
        assert looks.pop(os.getpid()) == []   # the coordinator has the server state, and maps nothing
        assert sorted(looks) == sorted(child.process.pid for child in workers.children)
        assert all(len(mapped) == 1 for mapped in looks.values())
        one, other = ((mapped[0].split()[0], dict(zip(*[iter(mapped[0].replace("kB", "").split()[1:])] * 2,
                                                      strict=True))) for mapped in looks.values())
        assert one[0] == other[0] != "0"   # the same inode
        for _, kb in (one, other):
            assert int(kb["Rss:"]) == int(kb["Size:"]) >= 4 * 80_019 // 1024   # read there, all of it
            assert kb["Anonymous:"] == "0"                                     # and nothing of it copied
    workers.close()


@pytest.mark.parametrize("choices", [{}, LARGE], ids=["small", "large"])
def test_an_algorithm_that_writes_to_what_a_host_shares(choices: dict) -> None:
    for dedicated in (False, True):
        loop, workers = begin(experiment(Writes(), **choices, stack=False,
                                         backend=Torchrun(workers=2, dedicated=dedicated)))
        for _ in range(2):
            with pytest.raises(ClientError, match="changed the broadcast 'x'.*local_init"):
                loop.round(0)
        workers.close()


KILLED = """
import time
from problems import begin, blobs, experiment
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.backends.torchrun.backend import Torchrun
loop, workers = begin(experiment(FedAvg(), task=blobs(features=20_000), backend=Torchrun(workers=3)))
loop.round(0)
print(workers.group.host.memory.address[2], flush=True)
time.sleep(600)
"""


def holders(name: str) -> list[Path]:
    """Return the open files of this machine's processes that have this name."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if name in os.readlink(link):
                found.append(link)
        except OSError:
            continue
    return found


def test_nothing_is_left_of_a_killed_run(tmp_path: Path) -> None:
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", KILLED], env=environ, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    assert len(name) > 20 and len(holders(name)) == 3
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while holders(name):
        assert time.monotonic() < deadline, "the memory outlived its run"
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == [p for p in Path("/dev/shm").glob("fedlearn*") if "fuzz" not in p.name] == []


HOSTS = """
import os, sys
from pathlib import Path
from typing import Any
from problems import blobs, experiment, setup_of
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.torchrun import host
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.vectors import digest

backend = Torchrun()
host.gethostname = lambda: "first" if backend.rank() == 0 else "second"
e = experiment(Scaffold(), rounds=3, cohort=3, backend=backend, task=blobs(features=20_000))
workers = backend.open(setup_of(e))
host = workers.group.host
about = f" {host.first} {host.shared}"
if workers.rank == 0:
    loop = e.protocol.start(e, workers)
    for r in range(3):
        loop.round(r)
    x = loop.model()
    workers.close({"x": x})
else:
    x = workers.serve()["x"]
Path(sys.argv[1], str(backend.rank())).write_text(digest(x) + about)
"""


def test_two_hosts_under_torchrun_end_with_the_same_model(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(HOSTS)
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3",
                    str(script), str(tmp_path)], env=environ, check=True, timeout=120,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    said = [(tmp_path / str(rank)).read_text() for rank in range(3)]
    assert said == [f"{final()} {about}" for about in ("True False", "True True", "False True")]


NAMES = {"x": torch.float32, "tiny": torch.float64, "c": torch.int16}


def sent(r: int) -> dict[str, torch.Tensor]:
    """Return what is broadcast in a round: large, small and large again, of odd sizes."""
    return {"x": torch.full((70_001 + 40_000 * r,), r + 0.5), "tiny": torch.full((3,), -1.0 * r, dtype=torch.float64),
            "c": torch.full((SMALL + 3, 1), r, dtype=torch.int16)}


@pytest.mark.parametrize("hosts", ["aa", "aabb", "abab", "abbb", "abc"])
def test_every_round_arrives_whole_whoever_shares(hosts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def do(group: Group) -> list[int]:
        sizes: list[int] = []
        if (between := group.host.between) is not None:
            send = between.send
            between.send = lambda v: sizes.append(v.numel()) or send(v)
        for r in range(4):
            if group.rank == 0:
                group.send({"round": r}, sent(r))
            else:
                header, vectors = group.receive()
                assert header == {"round": r} and list(vectors) == list(NAMES)
                for name, v in sent(r).items():
                    assert torch.equal(vectors[name], v) and vectors[name].dtype == v.dtype
                    assert v.nbytes <= SMALL or vectors[name].data_ptr() % ALIGNED == 0
                vectors["x"].zero_()     # stays with this rank, and ends with the round
            group.gather(torch.zeros(16, dtype=torch.uint8), 4096)
        return sizes

    for rank, large in enumerate(on_hosts(hosts, monkeypatch, do)):
        # Only the first rank of a host takes part, and only where there is another host.
        alone = len(set(hosts)) == 1 or hosts.index(hosts[rank]) != rank
        assert len(large) == (0 if alone else 2 * 4)


def test_vectors_that_may_still_be_read_are_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    def do(group: Group) -> None:
        group.send({}, sent(0))
        with pytest.raises(AssertionError):
            group.send({}, sent(1))
        group.all(None)
        group.send({}, sent(1))

    on_hosts("a", monkeypatch, do)


def test_a_file_is_taken_only_from_who_can_be_seen() -> None:
    one, two = Memory(True), Memory(True)
    host, path, name = one.address
    for other in (None, ["elsewhere", path, name], [host, path, "another"], [host, "/proc/0/fd/0", name]):
        assert two.find([other, two.address], 1) == 1
    assert two.find([None, one.address, None, two.address], 3) == 1
    one.write([torch.arange(7, dtype=torch.uint8), torch.ones(100, dtype=torch.uint8)])
    assert [p.sum().item() for p in two.parts([7, 100])] == [21, 100]
    one.close()
    assert two.parts([7])[0][6] == 6   # whoever mapped it keeps it
    two.close()
    assert Memory(False).address is None
    assert settle([0, 0, 1, 3, 3]) == [0, 0, 2, 3, 3]
    assert places([1, ALIGNED, ALIGNED + 1]) == ([0, ALIGNED, 2 * ALIGNED], 4 * ALIGNED)


def test_a_host_without_memory_for_a_broadcast_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    loop, workers = begin(experiment(FedAvg(), **LARGE, backend=Torchrun(workers=2)))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WorkerError, match="has no . MB of shared memory for a broadcast .No space left on device"):
        loop.round(0)
    workers.close()
