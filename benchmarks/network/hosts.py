"""The hosts: network namespaces with a process in each, which are asked and answer."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import Any

from benchmarks.network.plan import HOSTS, Problem
from fedlearn.chaos.network import INTERFACE, Network, network

ROOT = Path(__file__).parents[2]
PORT = 29500
PATIENCE = 600.0    # seconds for an answer


class Failed(Exception):
    """A host gave an error instead of an answer, or none; the message says which."""


class Hosts:
    """``HOSTS`` processes, each in its own network namespace, that answer questions (see ``rank``)."""

    def __init__(self, net: Network, problem: Problem, scratch: Path) -> None:
        self.net, self.ports = net, count(PORT)
        token = scratch / "token"
        token.write_text(token_hex(32))
        token.chmod(0o600)
        given = json.dumps({"problem": asdict(problem), "token": str(token), "port": next(self.ports)})
        command = [sys.executable, "-m", "benchmarks.network.rank", given]
        self.logs = [scratch / f"host-{host}.log" for host in range(HOSTS)]
        self.left = [b""] * HOSTS
        self.processes = []
        for host, path in enumerate(self.logs):
            with path.open("wb") as log:
                self.processes.append(net.start(
                    host, command, environment(net, host), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                    cwd=ROOT, start_new_session=True))

    def ready(self) -> dict[str, Any]:
        """Wait until all hosts have their data and have met; return what host 0 says of the model."""
        return self._everybody()[0]

    def together(self, **asked: Any) -> dict[str, Any]:
        """Ask all hosts the same, for which they work together, and return what host 0 answers.

        Raises:
            Failed: if one of them fails; they cannot be asked any more then.
        """
        asked["port"] = next(self.ports)
        for host in range(HOSTS):
            self._ask(host, asked)
        return self._everybody()[0]

    def apart(self, questions: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Have each question answered by one host that is free, on every core one; yield (its number, the answer).

        Raises:
            Failed: if a host fails.
        """
        free, at_work = list(range(min(HOSTS, os.cpu_count() or 1))), dict[int, int]()
        waiting = list(range(len(questions)))
        while waiting or at_work:
            while waiting and free:
                at_work[host := free.pop(0)] = waiting.pop(0)
                self._ask(host, questions[at_work[host]])
            for host in self._who(list(at_work)):
                yield at_work.pop(host), self._hear(host)
                free.append(host)

    def limit(self, mbit: float) -> None:
        """Let every host's link carry so many megabits a second each way."""
        for host in range(HOSTS):
            self.net.limit(host, mbit)

    def close(self) -> None:
        """End all processes."""
        for process in self.processes:
            with suppress(OSError):
                process.stdin.close()
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()

    def _ask(self, host: int, asked: Mapping[str, Any]) -> None:
        try:
            self.processes[host].stdin.write(json.dumps(asked).encode() + b"\n")
            self.processes[host].stdin.flush()
        except OSError:
            raise Failed(self._why(host, "it has ended")) from None

    def _everybody(self) -> list[dict[str, Any]]:
        answers, errors = [], []
        for host in range(HOSTS):
            try:
                answers.append(self._hear(host))
            except Failed as error:     # the others lose it, and end too: the first to fail may not be the first here
                errors.append(str(error))
        if errors:
            raise Failed("; ".join(errors))
        return answers

    def _who(self, hosts: Sequence[int]) -> list[int]:
        """Return which of some hosts have something to say, as soon as one has."""
        there = {self.processes[host].stdout.fileno(): host for host in hosts}
        ready, _, _ = select.select(list(there), [], [], PATIENCE)
        if not ready:
            raise Failed(f"no answer from any host within {PATIENCE:g} s")
        return [there[fd] for fd in ready]

    def _hear(self, host: int) -> dict[str, Any]:
        fd, end = self.processes[host].stdout.fileno(), time.monotonic() + PATIENCE
        while b"\n" not in self.left[host]:
            ready, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
            more = os.read(fd, 1 << 16) if ready else b""
            if not more:
                raise Failed(self._why(host, "it has ended" if ready else f"no answer within {PATIENCE:g} s"))
            self.left[host] += more
        line, self.left[host] = self.left[host].split(b"\n", 1)
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"host {host}: {answer['error']}")
        return answer

    def _why(self, host: int, what: str) -> str:
        said = self.logs[host].read_text(errors="replace").strip().splitlines()
        return f"host {host}: {what}" + (f": {said[-1][:300]}" if said else "")


def environment(net: Network, host: int) -> dict[str, str]:
    """Return the environment of a host's process, as torchrun would make it with one rank on each host."""
    return os.environ | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "RANK": str(host),
        "WORLD_SIZE": str(HOSTS), "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": net.address(0),
        "MASTER_PORT": str(PORT), "GLOO_SOCKET_IFNAME": INTERFACE}


@contextmanager
def hosts(problem: Problem, scratch: Path) -> Iterator[Hosts]:
    """Make the network and start a process on every host; end and remove them again.

    Raises:
        fedlearn.errors.ResourceError: if the system does not let us make networks, saying why.
        Failed: if a host does not come up.
    """
    with network(HOSTS) as net:
        everybody = Hosts(net, problem, scratch)
        try:
            yield everybody
        finally:
            everybody.close()
