"""What holds for the whole suite: one thread, the order of the tests, and nothing left behind.

Everything temporary of a session goes into one private folder, which also becomes TMPDIR of the processes
that tests start. At the end nobody may still be running or listening, and nothing may lie there.
"""

from __future__ import annotations

import gc
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch, and for the processes that tests start

import pytest
import torch
from processes import children

torch.set_num_threads(1)
# A shell without job control lets what it starts in the background ignore Ctrl-C, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Every process that descends from this session carries the mark, even after its parent died.
MARK = f"FEDLEARN_TEST_SESSION={uuid.uuid4().hex}"
ORDER = {"torchrun": 1, "ray": 2, "docker": 3, "slow": 4}
# Ray and torch never remove these, multiprocessing and wandb do at exit, pytest rotates its own: all go with
# the private folder. Anything else there was made by fedlearn or by a test.
NOT_OURS = ("pytest-of-*", "ray", "torchinductor_*", "pymp-*", "torchelastic_*", "*wandb-media", "*wandb-artifacts")

lasting: set[int] = set()   # the processes of what lives as long as the session


def pytest_configure(config: pytest.Config) -> None:
    """Give the session its private temporary folder and its mark."""
    os.environ.update([MARK.split("=")])
    config.fedlearn_tmp = Path(tempfile.mkdtemp(prefix="fedlearn-"))  # type: ignore[attr-defined]
    tempfile.tempdir = os.environ["TMPDIR"] = str(config.fedlearn_tmp)  # type: ignore[attr-defined]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the private folder; to look at what a test wrote, name another place with ``--basetemp``."""
    if folder := getattr(config, "fedlearn_tmp", None):
        shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run plain tests first, then those that start processes, then the long ones; skip absent hardware."""
    items.sort(key=lambda item: max((ORDER.get(mark.name, 0) for mark in item.iter_markers()), default=0))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def running() -> dict[int, str]:
    """Return the live processes that this session started, with their command lines (Linux)."""
    parents, commands, marked = {}, {}, set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            environ = (entry / "environ").read_bytes()
        except OSError:
            continue  # it ended meanwhile, or is somebody else's
        pid = int(entry.name)
        if state != "Z":
            parents[pid], commands[pid] = int(parent), command
            if MARK.encode() in environ.split(b"\0"):
                marked.add(pid)
    family = {os.getpid()}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return {pid: commands[pid] for pid in (family | marked) - {os.getpid()} if pid in commands}


def listening() -> list[str]:
    """Return the TCP and Unix sockets on which this process listens (Linux)."""
    own = {os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in own:
                found.append(f"{table} port {int(columns[1].rpartition(':')[2], 16)}")
    for line in Path("/proc/self/net/unix").read_text().splitlines()[1:]:
        columns = line.split()
        if int(columns[3], 16) & 0x10000 and f"socket:[{columns[6]}]" in own:
            found.append(f"unix {' '.join(columns[7:])}")
    return found


def stop_python_helpers() -> None:
    """Stop the two processes that multiprocessing keeps until the interpreter ends."""
    helpers = multiprocessing.forkserver._forkserver, multiprocessing.resource_tracker._resource_tracker
    for helper in helpers:
        helper._stop()  # type: ignore[attr-defined]


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(pytestconfig: pytest.Config) -> Iterator[None]:
    """Fail the session if it leaves a process, a listening socket or something temporary behind."""
    yield
    gc.collect()
    if Path("/proc/self/net/tcp").exists():
        stop_python_helpers()
        deadline = time.monotonic() + 75  # those that are just ending may end; a dead Ray's agents take a minute
        while running() and time.monotonic() < deadline:
            time.sleep(0.1)
    left = []
    if Path("/proc/self/net/tcp").exists():
        left += [f"process {pid}: {command}" for pid, command in running().items()]
        left += [f"listening socket: {where}" for where in listening()]
    left += [f"temporary: {path}" for path in sorted(pytestconfig.fedlearn_tmp.iterdir())  # type: ignore
             if not any(fnmatch(path.name, pattern) for pattern in NOT_OURS)]
    if left:
        pytest.fail("the suite left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, outside of torchrun, and leave sys.path as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A cluster that tests join because the process is connected to it; its address."""
    ray = pytest.importorskip("ray")
    from fedlearn.backends.ray import cluster

    before, folder = children(), tempfile.mkdtemp(prefix="ray-", dir="/tmp")    # short enough for Ray's sockets
    cluster.start(ray, 3, 100 * 2**20, Path(folder))
    lasting.update(children() - before)
    yield ray.get_runtime_context().gcs_address
    cluster.stop(ray)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tidy() -> Iterator[None]:
    """Fail a test that leaves a child process or a temporary folder."""
    temporary = Path(tempfile.gettempdir())
    before = children(), set(temporary.glob("fedlearn-*"))
    yield
    deadline = time.monotonic() + 5
    while any(left := (children() - before[0] - lasting, set(temporary.glob("fedlearn-*")) - before[1])):
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: processes {left[0]}, folders {left[1]}")
        time.sleep(0.05)
