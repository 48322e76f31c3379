"""Hosts on one machine: network namespaces around a switch, whose links can be cut, and slowed down (Linux, root).

The switch is a bridge in a namespace of its own: nothing appears among the machine's own interfaces, no firewall rule
of the machine applies, and all is gone with the namespaces. Every host has a name of its own, which all hosts know the
address of. The namespaces' names carry the number of this process; those of processes that were killed are removed by
the next one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from ..errors import ResourceError

INTERFACE = "eth0"      # of every host
SUBNET = "10.86.0"      # seen only inside
ETC = Path("/etc/netns")    # what lies there for a namespace lies over /etc in it
NAME = re.compile(r"fedlearn-(\d+)-\d+-(?:switch|\d+)")
made = count()          # the networks of this process


@dataclass(frozen=True)
class Network:
    """``hosts`` hosts, numbered from 0, each with one interface to the same switch."""

    name: str
    hosts: int

    def namespace(self, host: int) -> str:
        """Return the name of a host's namespace."""
        return f"{self.name}-{host}"

    def address(self, host: int) -> str:
        """Return a host's address."""
        return f"{SUBNET}.{host + 1}"

    def start(self, host: int, command: Sequence[str], environ: Mapping[str, str] | None = None,
              **more: Any) -> subprocess.Popen:
        """Start a command on a host; its process is the one that is returned."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', f"host{host}"]
        return subprocess.Popen(["ip", "netns", "exec", self.namespace(host), *named, *command], env=environ, **more)

    def cut(self, host: int) -> None:
        """Let a host's link go down: nothing gets through either way, and nobody is told."""
        _ip("-n", f"{self.name}-switch", "link", "set", f"port{host}", "down")

    def restore(self, host: int) -> None:
        """Let a host's link come up again."""
        _ip("-n", f"{self.name}-switch", "link", "set", f"port{host}", "up")

    def limit(self, host: int, mbit: float) -> None:
        """Let a host's link carry so many megabits a second each way."""
        burst = max(16_000, int(mbit * 1e6 / 8 / 100))      # bytes: what passes in 10 ms
        for namespace, interface in ((self.namespace(host), INTERFACE), (f"{self.name}-switch", f"port{host}")):
            _run("tc", "-n", namespace, "qdisc", "replace", "dev", interface, "root", "tbf", "rate", f"{mbit}mbit",
                 "burst", str(burst), "latency", "500ms")


@contextmanager
def network(hosts: int, mbit: float | None = None) -> Iterator[Network]:
    """Make hosts with links of so many megabits a second (None: as fast as they are); remove them in the end.

    Raises:
        ResourceError: if the system does not let us, saying why.
    """
    if reason := available():
        raise ResourceError(f"no network namespaces: {reason}")
    net = Network(f"fedlearn-{os.getpid()}-{next(made)}", hosts)
    switch = f"{net.name}-switch"
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in range(hosts):
            inside = net.namespace(host)
            _ip("netns", "add", inside)
            (ETC / inside).mkdir(parents=True)
            (ETC / inside / "hosts").write_text("".join([
                "127.0.0.1 localhost\n", *(f"{net.address(h)} host{h}\n" for h in range(hosts))]))
            _ip("-n", switch, "link", "add", f"port{host}", "type", "veth", "peer", "name", INTERFACE, "netns", inside)
            _ip("-n", switch, "link", "set", f"port{host}", "master", "bridge", "up")
            _ip("-n", inside, "addr", "add", f"{net.address(host)}/24", "dev", INTERFACE)
            _ip("-n", inside, "link", "set", INTERFACE, "up")
            _ip("-n", inside, "link", "set", "lo", "up")
            if mbit is not None:
                net.limit(host, mbit)
        yield net
    finally:
        for name in [*map(net.namespace, range(hosts)), switch]:
            _delete(name)


def available() -> str:
    """Return why no network can be made here; nothing if one can."""
    if sys.platform != "linux":
        return "they exist on Linux only"
    if missing := [tool for tool in ("ip", "tc", "unshare", "hostname") if shutil.which(tool) is None]:
        return f"{' and '.join(missing)} not found; install iproute2, util-linux and hostname"
    if os.geteuid() != 0:
        return "they need root"
    sweep()
    probe = f"fedlearn-{os.getpid()}-{next(made)}-0"
    try:
        _ip("netns", "add", probe)
    except ResourceError as error:
        return str(error)
    _delete(probe)
    return ""


def sweep() -> None:
    """Remove what processes left that were killed."""
    for line in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.splitlines():
        match = NAME.fullmatch(line.split()[0]) if line.split() else None
        if match and not Path(f"/proc/{match[1]}").exists():
            _delete(match[0])


def _delete(name: str) -> None:
    with suppress(ResourceError):   # it was never made
        _ip("netns", "delete", name)
    shutil.rmtree(ETC / name, ignore_errors=True)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise ResourceError(f"`{' '.join(command)}` failed: {said[-1] if said else f'exit code {done.returncode}'}")
