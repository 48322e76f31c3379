"""launch/torchrun.sh on three hosts with an address and a name each, whose links can be cut (network namespaces)."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hosts import needs_hosts
from launch.conftest import LAUNCH

from fedlearn.backends.torchrun.token import write_token
from fedlearn.chaos.network import INTERFACE, Network, network
from fedlearn.errors import ConfigError
from fedlearn.tracking.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.torchrun, pytest.mark.timeout(600), needs_hosts]
HOSTS = 3
Start = Callable[..., list[subprocess.Popen]]


@pytest.fixture
def net() -> Iterator[Network]:
    """Three hosts."""
    with network(HOSTS) as made:
        yield made


@pytest.fixture
def start(net: Network, environ: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """A function that says the same on every host, as the script's how-to tells; returns the agents."""
    write_token(tmp_path / "secret")
    agents: list[subprocess.Popen] = []

    def begin(*overrides: str) -> list[subprocess.Popen]:
        command = [str(LAUNCH / "torchrun.sh"), "--host", "host0", "--nodes", f"2:{HOSTS}", "--launch", "monday",
                   "--token", str(tmp_path / "secret"), "backend.timeout=5", f"runs={tmp_path / 'runs'}", *overrides]
        for host in range(HOSTS):
            with (tmp_path / f"host{host}.log").open("wb") as log:
                agents.append(net.start(host, command, environ | {"GLOO_SOCKET_IFNAME": INTERFACE}, stdout=log,
                                        stderr=log, stdin=subprocess.DEVNULL, cwd=tmp_path, start_new_session=True))
        return agents

    yield begin
    with ExitStack() as stack:
        for agent in agents:
            stack.callback(agent.wait)
            stack.callback(agent.kill)


def rounds(tmp_path: Path) -> int:
    """Return how many rounds the run has done."""
    try:
        return RunFolder.open("latest", tmp_path / "runs").metrics()[-1]["round"]
    except (ConfigError, IndexError):
        return 0


def test_a_host_whose_link_is_cut_and_restored_changes_nothing(net, start, quick, alone, sha256, tmp_path):
    work = ["algorithm=scaffold", *quick, "rounds=400", "local.steps=20", "checkpoint.every=10"]
    coordinator, *others = start(*work)

    def said(host: int = 0) -> str:
        return (tmp_path / f"host{host}.log").read_text(errors="replace")

    def until(done: int, patience: float = 120) -> None:
        deadline = time.monotonic() + patience
        while rounds(tmp_path) < done:
            assert coordinator.poll() is None and time.monotonic() < deadline, said()[-3000:]
            time.sleep(0.05)

    until(20)
    net.cut(2)
    began = rounds(tmp_path)
    time.sleep(12)      # longer than backend.timeout and than the agents' patience
    until(began + 20)   # the other two went on without it
    net.restore(2)
    assert coordinator.wait(240) == 0, said()[-3000:]
    assert sha256(said()) == [alone(*work)]
    assert "3 ranks started by torchrun" in said() and "2 ranks started by torchrun" in said()
    for other in others:
        other.wait(60)
