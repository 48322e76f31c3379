"""Ray's clusters: closed to strangers, left as found, and errors instead of silence when they are lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from backends.unruly import Slow
from problems import begin, experiment, play

from fedlearn.backends.parcel import sweep
from fedlearn.backends.ray.backend import RayActors
from fedlearn.backends.ray.cluster import join, start
from fedlearn.errors import ConfigError
from fedlearn.vectors import digest

pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("tidy")]
HERE = Path(__file__).parent
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}   # or Ray looks for 127.0.0.1 at the address of the network
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def drive(seconds: float, rounds: int, timeout: float = 4.0, orphan: bool = False, **settings: Any) -> subprocess.Popen:
    shell = ["sh", "-c", '"$@" &', "sh"] if orphan else []
    command = [sys.executable, str(HERE / "ray_driver.py"), str(seconds), str(rounds), str(timeout)]
    return subprocess.Popen([*shell, *command, json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=PLAIN | LOCAL, start_new_session=True)


@pytest.fixture
def driver() -> Iterator[Callable[..., tuple[subprocess.Popen, dict]]]:
    """A function that starts a run and returns its process and what it prints of itself when its actors are up."""
    started = []

    def run(*args: Any, **settings: Any) -> tuple[subprocess.Popen, dict]:
        started.append(process := drive(*args, **settings))
        line = process.stdout.readline()
        assert line.startswith("{"), line + process.communicate()[1]
        orphans.append((target := json.loads(line))["driver"])
        return process, target

    orphans: list[int] = []
    yield run
    for process in started:
        process.kill()
    for pid in filter(alive, orphans):
        os.kill(pid, signal.SIGKILL)
    for process in started:
        process.communicate()


def ended(target: dict, seconds: float = 8.0) -> bool:
    """Return whether all of Ray's processes are gone, or are soon."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in [*target["pids"].values(), *target["actors"]] if alive(pid)]:
        if time.monotonic() > deadline:
            pytest.fail(f"still there: {left}")
        time.sleep(0.05)
    return True


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def listening(pids: list[int]) -> list[tuple[str, int]]:
    """Return the addresses, in hexadecimal, and ports on which processes listen."""
    own = {os.readlink(fd) for pid in pids for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in own:
                address, _, port = columns[1].partition(":")
                found.append((address, int(port, 16)))
    return found


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {pid}
    while grown := {child for child, parent in parents.items() if parent in found} - found:
        found |= grown
    return sorted(found)


@pytest.mark.slow
def test_strangers_are_refused_and_change_nothing(driver: Callable) -> None:
    process, target = driver(0.4, 12, wait=True)
    sockets = listening(family(process.pid))
    assert len(sockets) > 3
    assert {address for address, _ in sockets} <= LOOPBACK
    [(_, port)] = listening(target["actors"][:1])
    strangers = [subprocess.Popen([sys.executable, str(HERE / "ray_stranger.py"), target["gcs"], f"127.0.0.1:{port}"],
                                  env=PLAIN | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                 for more in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})]
    for stranger in strangers:
        said, cried = stranger.communicate(timeout=90)
        lines = said.splitlines()
        assert [line.split()[:2] for line in lines] == [[name, "refused"] for name in
                                                        ("join", "read", "nodes", "kill", "fetch")], cried
        assert all(float(line.split()[3]) < 10 for line in lines)
        assert all("token" in line for line in lines[1:])
    assert process.poll() is None       # it was there all the time
    out, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (0, "")
    assert out.strip() == digest(play(experiment(Slow(), rounds=12, cohort=4))[0])
    assert ended(target) and not Path(target["folder"]).exists()


@pytest.mark.slow
def test_a_cluster_that_asks_for_a_token_is_joined_with_it(tmp_path: Path) -> None:
    host = subprocess.Popen([sys.executable, "-c", HOST, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                            env=PLAIN | LOCAL)
    try:
        gcs = host.stdout.readline().strip()
        (tmp_path / "wrong").write_text("1" * 64 + "\n")
        paths = [None, str(tmp_path / "wrong"), str(tmp_path / "token")]
        runs = [drive(0, 2, 30.0, workers=1, address=gcs, token=path) for path in paths]
        for run, said in zip(runs, ("none", "another"), strict=False):
            out, err = run.communicate(timeout=90)
            assert (run.returncode, err) == (4, "")
            assert f"wants its token and got {said}; name the file" in out and "backend.token" in out
            assert len(out.splitlines()) == 1
        out, err = runs[2].communicate(timeout=90)
        assert (runs[2].returncode, err) == (0, "")
        assert out.splitlines()[1] == digest(play(experiment(Slow(), rounds=2, cohort=4))[0])
    finally:
        host.terminate()
        host.wait()


HOST = """
import os, shutil, sys, time, tempfile, signal
from pathlib import Path
import ray
from fedlearn.backends.ray import cluster
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
draw = cluster.secrets.token_hex
cluster.secrets.token_hex = lambda n: Path(sys.argv[1], "token").write_text("%s" % (t := draw(n))) and t
try:
    cluster.start(ray, 2, 100 * 2**20, folder)
    print(ray.get_runtime_context().gcs_address, flush=True)
    time.sleep(120)
finally:
    cluster.stop(ray)
    shutil.rmtree(folder, ignore_errors=True)
"""


@pytest.mark.parametrize(("victim", "said", "orphan"), [
    ("raylet", "its raylet on this machine is gone", True),
    pytest.param("gcs_server", "its GCS at 127.0.0.1:", False, marks=pytest.mark.slow)])
def test_a_lost_cluster_is_an_error_and_nothing_is_left(driver: Callable, victim: str, said: str,
                                                        orphan: bool) -> None:
    process, target = driver(6.0, 3, orphan=orphan)     # an orphan's parent is nobody, which Ray takes for its raylet
    time.sleep(0.5)
    os.kill(target["pids"][victim], signal.SIGKILL)
    began = time.monotonic()
    line = process.stdout.readline()
    assert time.monotonic() - began < 20
    assert said in line and "the Ray cluster is lost" in line and "fedlearn resume" in line
    out, err = process.communicate(timeout=90)
    assert (process.returncode, out, err) == (0 if orphan else 4, "", "")
    assert ended(target) and not Path(target["folder"]).exists()


def test_a_killed_coordinator_leaves_a_folder_that_the_next_start_removes(driver: Callable) -> None:
    process, target = driver(6.0, 3)
    folder = Path(target["folder"])
    assert folder not in sweep(folder.parent)    # not while it lives
    process.kill()
    process.communicate()
    assert ended(target)
    assert folder.exists()
    assert folder in sweep(folder.parent)
    assert not folder.exists()


@pytest.mark.slow
def test_ctrl_c_twice_leaves_nothing(driver: Callable) -> None:
    process, target = driver(6.0, 3)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=90)
    assert process.returncode != 0 and "KeyboardInterrupt" in err
    assert ended(target)
    sweep(Path(target["folder"]).parent)
    assert not Path(target["folder"]).exists()


def test_nobody_at_the_address() -> None:
    with socket.socket() as nobody:     # bound, and deaf
        nobody.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{nobody.getsockname()[1]}"
        out, err = (alone := drive(0, 1, address=where)).communicate(timeout=90)
    assert alone.returncode == 4 and err == ""
    assert out.startswith(f"no Ray cluster at {where}: ") and len(out.splitlines()) == 1


def test_a_token_for_nothing() -> None:
    with pytest.raises(ConfigError, match="^backend.token: found '/nowhere'; .*unless backend.address names"):
        begin(experiment(Slow(), backend=RayActors(token="/nowhere")))


def test_a_token_from_nowhere() -> None:
    import ray
    with pytest.raises(ConfigError, match="^backend.token: found '/nowhere'; .*path of a readable file"):
        join(ray, "127.0.0.1:1", "/nowhere")


def test_a_ray_that_knows_no_tokens() -> None:
    class Old:
        __version__, _raylet = "2.51.0", object()

    for use in (lambda: join(Old, "127.0.0.1:1", None), lambda: start(Old, 1, 0, Path("/nowhere"))):
        with pytest.raises(ConfigError, match="^backend: found 'Ray 2.51.0'; .*2.52 or newer"):
            use()


def test_a_hang_below_zero() -> None:
    with pytest.raises(ConfigError, match="^backend.hang: "):
        RayActors(hang=-1)
