"""Disks that are really full, folders that cannot be written to, and memory that does not suffice."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import blobs, experiment
from rows import ROWS

from fedlearn.algorithms.fedadam import FedAdam
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.ray.backend import RayActors
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.contracts import PeerAlgorithm
from fedlearn.errors import CheckpointError, ResourceError
from fedlearn.faults import Fault, Faults
from fedlearn.running import resources
from fedlearn.running.execute import checkpoint_of, execute, setup_of
from fedlearn.tracking.json_lines import write_lines
from fedlearn.tracking.run_folder import RunFolder


def mounted(place: Path, *options: str) -> None:
    """Mount something, or skip the test where this user may not."""
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    place = tmp_path / "disk"
    mounted(place, "-t", "tmpfs", "-o", "size=3m", "tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


class Filler:
    """A tracker that fills a disk to the last byte after some rounds and makes room again after others."""

    def __init__(self, disk: Path, full: int, room: int) -> None:
        self.disk, self.full, self.room = disk, full, room

    def started(self, folder: Any, config: Any) -> None:
        """Nothing yet."""

    def round(self, metrics: Any) -> None:
        """Fill the disk, or make room."""
        if metrics["round"] == self.full:
            fill(self.disk)
        elif metrics["round"] == self.room:
            (self.disk / "filler").unlink()

    def finished(self, summary: Any) -> None:
        """Nothing more."""


def fill(disk: Path) -> None:
    """Leave no byte of a disk free."""
    with (disk / "filler").open("ab", buffering=0) as file:
        for size in (2**16, 2**10, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC


def new(rounds: int = 8, **choices: Any) -> Any:
    return experiment(Scaffold(), rounds=rounds, cohort=3, checkpoint_every=2, **choices)


def rounds_of(lines: list[dict[str, Any]]) -> list[int]:
    return [line["round"] for line in lines]


def test_a_disk_that_is_full_for_a_while_costs_nothing(small_disk):
    whole = execute(new()).sha256
    folder = RunFolder(small_disk / "run")
    assert execute(new(), folder, [Filler(small_disk, full=3, room=6)]).sha256 == whole
    assert rounds_of(folder.metrics()) == list(range(9)) and rounds_of(folder.ledger()) == list(range(1, 9))
    failed = [event for event in folder.events() if event["event"] == "checkpoint not written"]
    assert rounds_of(failed) == [4] and failed[0]["newest"] == 2 and "space" in failed[0]["why"]
    assert not [path for path in folder.path.rglob("*") if path.name.startswith(".writing")]
    assert execute(new(), folder, start=checkpoint_of(new(), folder)).sha256 == whole


def test_a_disk_that_stays_full_says_what_is_lost(small_disk):
    whole = execute(new()).sha256
    folder = RunFolder(small_disk / "run")
    with pytest.raises(CheckpointError) as error:
        execute(new(), folder, [Filler(small_disk, full=5, room=99)])
    assert error.value.code == 5
    for part in ("round 8 of 8", str(folder.path), "No space left on device", "the newest is of round 4", "make room",
                 "resume"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    (small_disk / "filler").unlink()
    again = RunFolder(folder.path)
    assert execute(new(), again, start=checkpoint_of(new(), again)).sha256 == whole
    assert rounds_of(again.metrics()) == list(range(9)) and rounds_of(again.ledger()) == list(range(1, 9))


def test_a_folder_that_becomes_read_only(tmp_path):
    """As a network disk does that has lost its server."""
    whole = execute(new()).sha256
    place = tmp_path / "disk"
    place.mkdir()
    mounted(place, "--bind", str(place))

    class ReadOnly(Filler):
        def round(self, metrics: Any) -> None:
            """Turn the folder read-only, and back."""
            if metrics["round"] in (self.full, self.room):
                how = "ro" if metrics["round"] == self.full else "rw"
                subprocess.run(["mount", "-o", f"remount,{how},bind", str(place)], check=True)

    try:
        folder = RunFolder(place / "run")
        assert execute(new(), folder, [ReadOnly(place, full=3, room=5)]).sha256 == whole
        assert rounds_of(folder.metrics()) == list(range(9)) and rounds_of(folder.ledger()) == list(range(1, 9))
        assert "Read-only" in next(e["why"] for e in folder.events() if e["event"] == "checkpoint not written")
        subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
        with pytest.raises(ResourceError, match="cannot be written to: found Read-only file system"):
            execute(new(rounds=9), RunFolder(place / "run"))
        other = RunFolder(place / "other")
        with pytest.raises(ResourceError, match="cannot be written: found Read-only"), other.claim():
            pass
        with pytest.raises(ResourceError, match="cannot be written: found Read-only"):
            RunFolder(place / "run").truncate(2)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_injected_faults_of_the_disk(tmp_path):
    (tmp_path / "fired").mkdir()
    faults = Faults((Fault("full", "disk", 4), Fault("full", "line", 5)), tmp_path / "fired")
    folder = RunFolder(tmp_path / "run")
    assert execute(new(faults=faults), folder).sha256 == execute(new()).sha256
    assert len(faults.fired()) == 2
    assert [event["round"] for event in folder.events()] == [4]
    assert rounds_of(folder.metrics()) == list(range(9)) and rounds_of(folder.ledger()) == list(range(1, 9))


def test_lines_wait_in_order_and_are_written_once(small_disk, caplog):
    folder = RunFolder(small_disk)
    folder.append_ledger({"round": 1})
    fill(small_disk)
    with (small_disk / "ledger.jsonl").open("rb") as file:
        before = file.read()
    for r in range(2, 400):
        folder.append_ledger({"round": r, "cohort": list(range(20))})     # more than what is left of a page
    data = (small_disk / "ledger.jsonl").read_bytes()
    assert data.startswith(before) and data.endswith(b"\n"), "no line is torn"
    with pytest.raises(OSError, match="No space"):
        folder.settle()
    (small_disk / "filler").unlink()
    folder.append_ledger({"round": 400})
    assert caplog.text.count("ledger.jsonl cannot be written (No space left on device)") == 1
    assert "ledger.jsonl can be written again" in caplog.text
    assert rounds_of(folder.ledger()) == list(range(1, 401))
    folder.settle()
    assert rounds_of(folder.ledger()) == list(range(1, 401))


def test_a_line_is_written_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    """The disk takes some bytes of it, and then no more."""
    from fedlearn.tracking import json_lines

    class Short:
        def __init__(self, file: Any) -> None:
            self.file, self.first = file, True

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            if self.first:
                self.first = False
                return self.file.write(data[:3])
            raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "lines"
    write_lines(path, b"one\n")
    true = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(json_lines.Path, "open", lambda self, *args, **kwargs: Short(true(self, *args, **kwargs)))
        with pytest.raises(OSError, match="No space"):
            write_lines(path, b"two and more\n")
    assert path.read_bytes() == b"one\n"


def test_a_disk_without_room_for_two_checkpoints_is_refused(tmp_path, small_disk):
    with (small_disk / "filler").open("wb") as file:
        file.truncate(0)
        file.write(b"x" * 2_500_000)
    with pytest.raises(ResourceError) as error:
        execute(new(), RunFolder(small_disk / "run"))
    assert error.value.code == 6
    for part in ("2 checkpoints x (server state", "client states", "+ model", "available: ", "runs=",
                 "check_resources"):
        assert part in str(error.value)
    assert execute(new(), RunFolder(small_disk / "run"), check_resources=False).metrics


# Memory.


def test_a_hopeless_run_is_refused_with_its_arithmetic(monkeypatch):
    monkeypatch.setattr(resources, "available", lambda: (10**6, "free memory"))
    with pytest.raises(ResourceError) as error:
        execute(new(backend=Torchrun(workers=3)))
    assert error.value.code == 6
    for part in ("coordinator ", "server state", "2 other workers x ", "the process 105 MB",
                 "at least; available: 1.0 MB",
                 "fewer backend.workers", "reduce=fast", "a smaller state_memory", "check_resources=false"):
        assert part in str(error.value), error.value
    assert "\n" not in str(error.value)
    monkeypatch.setattr(resources, "available", lambda: (None, ""))
    assert execute(new(rounds=1)).metrics, "where nobody says what there is, nothing is refused"


def test_a_run_that_just_fits_is_let_start(monkeypatch):
    e = new(rounds=1)
    setup = setup_of(e)
    need = resources.memory_of(e, setup, resources.sizes_of(e, setup)).bytes
    monkeypatch.setattr(resources, "available", lambda: (need, "free memory"))
    resources.check_memory(e, setup)
    monkeypatch.setattr(resources, "available", lambda: (need - 1, "free memory"))
    with pytest.raises(ResourceError):
        resources.check_memory(e, setup)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row.algorithm).__name__)
def test_sizes_are_those_of_the_real_thing(row):
    """Nothing is allocated to find them out, and no shipped algorithm needs to be guessed."""
    algorithm, task = row.algorithm, blobs()
    x = task.initial(0)
    if isinstance(algorithm, PeerAlgorithm):
        pytest.skip("its nodes' states count, not a server's")
    e = experiment(FedAdam(), task=task)
    sizes = resources.sizes_of(e, replace(setup_of(e), algorithm=algorithm, task=task))
    held = algorithm.server_init(x.clone())
    assert sizes.server == resources.size_of(held)
    assert sizes.broadcast == resources.size_of(dict(algorithm.broadcast(held)))
    assert sizes.state == resources.size_of(algorithm.client_init(x.clone()))


def test_other_processes_of_this_host_count(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert resources.workers_of(new()) == (1, 0)
    assert resources.workers_of(new(backend=Torchrun(workers=3))) == (3, 2)
    assert resources.workers_of(new(backend=RayActors(workers=3))) == (3, 3)
    assert resources.workers_of(new(backend=RayActors(workers=3, address="auto"))) == (3, 0)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "8"), ("LOCAL_WORLD_SIZE", "4"), ("MASTER_ADDR", "localhost"),
                        ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert resources.workers_of(new(backend=Torchrun())) == (8, 3)


def group(place: Path, **files: str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (place / name.replace("__", ".")).write_text(text)


def test_control_groups_of_both_versions(tmp_path):
    group(tmp_path / "a", memory__max="1000000000", memory__current="900000000",
          memory__stat="anon 5\ninactive_file 7\n")
    group(tmp_path / "a" / "b", memory__max="max", memory__current="5", memory__stat="inactive_file 0\n")
    found = resources._headroom(tmp_path, "/a/b", "memory.max", "memory.current", "inactive_file")
    assert found == [(100000007, "control group limit 1.0 GB")]
    group(tmp_path, memory__limit_in_bytes="500", memory__usage_in_bytes="600",
          memory__stat="inactive_file 1\ntotal_inactive_file 30\n")
    found = resources._headroom(tmp_path, "/not/in/this/container", "memory.limit_in_bytes", "memory.usage_in_bytes",
                                "total_inactive_file")
    assert found == [(0, "control group limit 500 B")]


def test_what_is_available_is_less_than_what_there_is():
    there, limit = resources.available()
    if there is None:
        pytest.skip("nothing here says how much memory is free")
    assert 0 < there < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") and limit


def test_tensors_that_are_there_twice_count_once():
    x = torch.zeros(5)
    assert resources.size_of({"a": x, "b": x}) == 20
