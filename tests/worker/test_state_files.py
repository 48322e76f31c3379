"""Clients' states on disk: no altered byte is taken for a state, a full disk says so, and what counts is synced."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedlearn.errors import CheckpointError, ResourceError
from fedlearn.worker import state_files
from fedlearn.worker.state_files import HEAD, WORDS, Spill, StateFiles, checksum
from fedlearn.worker.states import States


def tree(seed: int) -> dict[str, torch.Tensor]:
    """A state of two types."""
    g = torch.Generator().manual_seed(seed)
    return {"flags": torch.rand(3, generator=g) < 0.5, "x": torch.rand(7, generator=g)}


@pytest.fixture
def files(tmp_path: Path) -> StateFiles:
    """The files of a folder with the state of client 3 as of work 7."""
    made = StateFiles(tmp_path, tree(0))
    made.write(3, 7, tree(1))
    return made


def test_every_flipped_bit_and_every_cut_is_named(files: StateFiles) -> None:
    path = files.path(3, 7)
    whole = path.read_bytes()
    for i in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[i // 8] ^= 1 << i % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"state of client 3 as of work 7 cannot be read from .*3\.7\.state"):
            files.read(3, 7)
    for n in [*range(0, len(whole), 9), len(whole) - 1]:
        path.write_bytes(whole[:n])
        with pytest.raises(CheckpointError, match=f"{n} of {len(whole)} bytes"):
            files.read(3, 7)
    path.write_bytes(whole + b"x")
    with pytest.raises(CheckpointError, match=f"{len(whole) + 1} of {len(whole)} bytes"):
        files.read(3, 7)
    path.write_bytes(whole)
    assert torch.equal(files.read(3, 7)["x"], tree(1)["x"])


def test_what_else_may_lie_there_is_named(files: StateFiles) -> None:
    path = files.path(3, 7)
    files.path(4, 7).write_bytes(path.read_bytes())     # somebody else's
    with pytest.raises(CheckpointError, match="it says that it is the state of client 3 as of work 7"):
        files.read(4, 7)
    files.write(3, 8, tree(2))
    files.path(3, 8).replace(path)                      # another round's
    with pytest.raises(CheckpointError, match="it is the state of client 3 as of work 8"):
        files.read(3, 7)
    raw = np.zeros(files.encoding.size, np.uint8)       # of no format at all
    raw.tofile(path)
    with pytest.raises(CheckpointError, match="does not begin as a client's state does"):
        files.read(3, 7)
    StateFiles(files.folder, torch.zeros(3)).write(3, 7, torch.ones(3))     # of another algorithm
    with pytest.raises(CheckpointError, match="it says that it holds 12 bytes, not "):
        files.read(3, 7)
    path.unlink()
    os.mkfifo(path)                                     # to open it would wait for ever
    with pytest.raises(CheckpointError, match="No such file"):
        files.read(3, 7)
    with pytest.raises(CheckpointError, match="remove it and resume"):
        files.read(9, 9)


def test_another_format_is_named(files: StateFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_files, "FORMAT", 2)
    with pytest.raises(CheckpointError, match="it has format 1; this fedlearn reads 2"):
        files.read(3, 7)


@pytest.mark.parametrize("size", [0, 7, 8 * WORDS - 1, 8 * WORDS, 5 * 8 * WORDS + 13, 100_000])
def test_the_checksum_sees_every_byte_and_every_page(size: int) -> None:
    rng = np.random.default_rng(size)
    data = rng.integers(0, 256, size, dtype=np.uint8)
    right = checksum(b"a", [data])
    assert right == checksum(b"a", [data.copy()]) != checksum(b"b", [data])
    for i in rng.integers(0, size, 200) if size else []:
        other = data.copy()
        other[i] ^= 1 << int(rng.integers(8))
        assert checksum(b"a", [other]) != right
    pages = [(i, j) for i in range(size // 4096) for j in range(i)]
    for i, j in pages:
        other = data.copy()
        other[i * 4096:(i + 1) * 4096], other[j * 4096:(j + 1) * 4096] = (
            data[j * 4096:(j + 1) * 4096], data[i * 4096:(i + 1) * 4096])
        assert checksum(b"a", [other]) != right
        other[i * 4096:(i + 1) * 4096] = 0
        assert checksum(b"a", [other]) != right


def test_a_spilled_state_is_checked_too() -> None:
    spill = Spill(tree(0))
    spill.write(1, 1, tree(1))
    spill.write(2, 1, tree(2))
    os.pwrite(spill.file.fileno(), b"\0\1\2", spill.encoding.size + HEAD + 5)
    assert torch.equal(spill.read(1, 1)["x"], tree(1)["x"])
    with pytest.raises(CheckpointError, match="client 2 as of work 1 .*temporary folder.*it was altered"):
        spill.read(2, 1)


def test_all_that_a_checkpoint_needs_is_checked(files: StateFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write(4, 7, tree(2))
    files.check([(3, 7), (4, 7)])
    path = files.path(4, 7)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")
    with pytest.raises(CheckpointError, match="client 4 as of work 7 .*it was altered"):
        files.check([(3, 7), (4, 7)])
    monkeypatch.setattr(state_files, "CHECKED", 10)     # too many to read: whether all are there, in full length
    files.check([(3, 7), (4, 7)])
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="client 4 as of work 7 .* bytes"):
        files.check([(3, 7), (4, 7)])
    path.unlink()
    with pytest.raises(CheckpointError, match="client 4 as of work 7 .*No such file"):
        files.check([(3, 7), (4, 7)])


def test_each_state_is_synced_once_whoever_wrote_it(files: StateFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino) or fsync(fd))
    others = States(tree(0), files.folder, through=True)
    others.put(4, 7, tree(2))
    coordinator = StateFiles(files.folder)
    coordinator.sync([(3, 7), (4, 7)])
    inodes = [files.path(m, 7).stat().st_ino for m in (3, 4)]
    assert sorted(synced[:-1]) == sorted(inodes) and synced[-1] == files.folder.stat().st_ino
    others.put(3, 8, tree(3))
    coordinator.sync([(3, 8), (4, 7)])
    assert synced[3:] == [files.path(3, 8).stat().st_ino, files.folder.stat().st_ino]
    coordinator.sync([(3, 8), (4, 7)])
    assert len(synced) == 5
    with pytest.raises(CheckpointError, match="client 5 as of work 1 cannot be brought to disk"):
        coordinator.sync([(5, 1)])


def full(*_: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named_and_leaves_nothing_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = States(torch.zeros(2000), tmp_path, through=True)
    states.put(3, 1, torch.ones(2000))
    with monkeypatch.context() as patch:
        written: list[int] = []
        patch.setattr(os, "write", lambda fd, data: full() if written else written.append(1) or 64)
        with pytest.raises(ResourceError, match=r"^the state of client 3 as of work 2 cannot be written to .*/3\.2\."
                           "state: No space left on device; make room, then resume$"):
            states.put(3, 2, torch.ones(2000))
    assert [path.name for path in tmp_path.iterdir()] == ["3.1.state"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only file system")))
        with pytest.raises(CheckpointError, match="Read-only file system; see to it, then resume"):
            states.put(3, 2, torch.ones(2000))
    assert [path.name for path in tmp_path.iterdir()] == ["3.1.state"]


def test_a_file_that_may_not_grow_is_a_matter_of_room(tmp_path: Path) -> None:
    """A limit on the size of files is what a test can set on any machine."""
    states, spill = States(torch.zeros(20_000), tmp_path, through=True), Spill(torch.zeros(20_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(ResourceError, match="client 3 as of work 2 .*File too large; make room, then resume"):
            states.put(3, 2, torch.ones(20_000))
        with pytest.raises(ResourceError, match="temporary folder .*File too large; make room there, name another one"):
            spill.write(3, 2, torch.ones(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    spill.write(3, 2, torch.full((20_000,), 5.0))
    assert spill.read(3, 2)[0] == 5


def test_a_state_that_cannot_go_to_disk_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = States(torch.zeros(4), tmp_path, memory=2 * 16)
    for m in range(2):
        states.put(m, 0, torch.full((4,), float(m)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(ResourceError):
            states.put(2, 0, torch.full((4,), 2.0))
        with pytest.raises(ResourceError):
            states.flush([(0, 0), (1, 0), (2, 0)])
    assert states.count == 3 == sum(map(len, states.held.values()))
    states.flush([(0, 0), (1, 0), (2, 0)])
    assert [StateFiles(tmp_path, torch.zeros(4)).read(m, 0)[0].item() for m in range(3)] == [0, 1, 2]


def test_what_killed_writers_left_goes_and_a_late_writer_does_not_mind(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late, coordinator = States(torch.zeros(4), tmp_path, through=True), StateFiles(tmp_path)
    late.put(1, 0, torch.zeros(4))
    (tmp_path / "1.1.state.0123456789ab.part").write_bytes(b"half")
    replace = Path.replace
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda path, to: coordinator.prune([(1, 0)]) or replace(path, to))
        late.put(2, 0, torch.zeros(4))
    assert [path.name for path in tmp_path.iterdir()] == ["1.0.state"]
