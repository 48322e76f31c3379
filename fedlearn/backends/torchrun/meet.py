"""How ranks that torchrun, Slurm or a container engine started find each other, and nobody else.

Rank 0 serves the group's own store, and all prove to each other that they know the group's token. The store that
torchrun's agent runs asks nobody who they are, so nothing but rank 0's address is looked up in it: who changes that can
keep the ranks from meeting, but cannot take part. Where there is no agent, rank 0 serves at MASTER_ADDR and
MASTER_PORT, and no open store is needed.
"""

from __future__ import annotations

import re
import socket
import sys
import time
from collections.abc import Mapping
from datetime import timedelta

import torch.distributed as dist

from ...errors import ConfigError, FedlearnError, WorkerError
from .store import Store, connect, serve
from .token import forget_token, one_host, token_for
from .wire import Impostor, prove

STALE = 5.0      # seconds in which rank 0 replaces what an earlier attempt of the same launch left behind
ATTEMPT = 2.0    # seconds of one attempt to connect
ADDRESS = re.compile(r"[0-9A-Fa-f.:]{1,64} [0-9]{1,5}")


def meet(environ: Mapping[str, str], backend_token: str | None, timeout: float, number: int = 0) -> Store:
    """Return the store of a launch when all its ranks are there; ``close`` it in the end.

    ``number`` tells the meetings of one process apart: all ranks count them alike.

    Raises:
        ConfigError: if there is no token, or no address to serve at.
        WorkerError: if a rank does not come within ``timeout`` seconds, or one that has another token, or none.
    """
    if environ["RANK"] == "0":
        return _host(environ, backend_token, timeout, number)
    return _come(environ, backend_token, timeout, number)


def interface_address(name: str, key: str = "GLOO_SOCKET_IFNAME") -> str:
    """Return the IPv4 address of a network interface of this machine.

    Raises:
        ConfigError: if there is none of that name, or it has none; ``key`` says who named it.
    """
    import fcntl

    names = [found for _, found in socket.if_nameindex()]
    if name not in names:
        raise ConfigError(key, name, f"one of this machine's interfaces: {', '.join(names)}")
    request = 0x8915 if sys.platform == "linux" else 0xC0206921   # SIOCGIFADDR
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, request, name.encode()[:15].ljust(256, b"\0"))
        except OSError as e:
            raise ConfigError(key, name, "an interface with an IPv4 address", f"{e.strerror}.") from e
    return socket.inet_ntoa(answer[20:24])


def address_for(environ: Mapping[str, str]) -> str:
    """Return the one address of this host at which rank 0 of a launch serves.

    It is loopback if all ranks are here, else that of the interface GLOO_SOCKET_IFNAME, or the one that MASTER_ADDR
    leads to: the latter first where the others go to MASTER_ADDR, because there is no agent to ask.

    Raises:
        ConfigError: if there is no such address, or other hosts could not reach it.
    """
    if one_host(environ):
        return "127.0.0.1"
    interface = environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    if _agent(environ) and interface:
        return interface_address(interface)
    master = environ["MASTER_ADDR"]
    try:
        family, kind, _, _, there = socket.getaddrinfo(master, int(environ["MASTER_PORT"]), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(there)   # nothing is sent
            address = str(probe.getsockname()[0])
    except (OSError, ValueError) as e:
        raise ConfigError("MASTER_ADDR", master, "a name or address that this host can reach", f"{e}.") from e
    if address.startswith("127.") or address == "::1":
        if interface:
            return interface_address(interface)
        raise ConfigError("MASTER_ADDR", master, "an address that the other hosts can reach",
                          f"Here it means {address}, which only this host can; give the address itself, or name the "
                          "network interface in GLOO_SOCKET_IFNAME.")
    return address


def _host(environ: Mapping[str, str], path: str | None, timeout: float, number: int) -> Store:
    try:
        token = token_for(environ, path)
        assert token is not None
        agent = _agent(environ)
        server = serve(_key(token, environ, number), address_for(environ),
                       0 if agent else int(environ["MASTER_PORT"]), timeout)
        try:
            if agent:
                _launchers(environ, timeout).set(_name(environ, number), f"{server.host} {server.port}")
            ranks = {f"met/{rank}": rank for rank in range(1, int(environ["WORLD_SIZE"]))}
            try:
                server.store.wait(list(ranks), timedelta(seconds=timeout))
            except dist.DistStoreError:
                missing = ", ".join(str(rank) for key, rank in ranks.items() if not server.store.check([key]))
                strangers = f"; {server.refused.count} connections were refused" if server.refused.count else ""
                raise WorkerError(f"rank {missing} did not come within {timeout:g} s{strangers}") from None
        except BaseException:
            server.close()
            raise
    except dist.DistError as e:
        raise _failed(environ, e) from e
    finally:
        forget_token(environ, path)
    return server.store


def _come(environ: Mapping[str, str], path: str | None, timeout: float, number: int) -> Store:
    start = time.monotonic()
    doubted, why = 0.0, "rank 0 has not made its token yet"
    launchers = None
    while (left := start + timeout - time.monotonic()) > 0:
        try:
            if (token := token_for(environ, path)) is not None:
                if _agent(environ):
                    launchers = launchers or _launchers(environ, left)
                    host, port = _look_up(launchers, environ, number, left)
                else:
                    host, port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
                store = connect(_key(token, environ, number), host, port, min(ATTEMPT, left))
                store.set_timeout(timedelta(seconds=timeout))
                store.set(f"met/{environ['RANK']}", "1")
                return store
        except Impostor as e:
            why, doubted = str(e), doubted or time.monotonic()
            if time.monotonic() - doubted > STALE:
                break
        except RuntimeError as e:
            why, doubted = str(e).split("\n")[0], 0.0
        time.sleep(0.05)
    raise _failed(environ, why)


def _look_up(launchers: dist.Store, environ: Mapping[str, str], number: int, patience: float) -> tuple[str, int]:
    key = _name(environ, number)
    launchers.wait([key], timedelta(seconds=patience))
    said = launchers.get(key)[:80].decode(errors="replace")
    if not ADDRESS.fullmatch(said):
        raise Impostor(f"the launcher's store says {said!r} where rank 0's address should be: somebody changed it")
    host, port = said.split()
    return host, int(port)


def _launchers(environ: Mapping[str, str], timeout: float) -> dist.Store:
    return dist.TCPStore(environ["MASTER_ADDR"], int(environ["MASTER_PORT"]), None, False,
                         timedelta(seconds=max(1.0, timeout)))


def _agent(environ: Mapping[str, str]) -> bool:
    return environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _name(environ: Mapping[str, str], number: int) -> str:
    return f"fedlearn/{environ.get('TORCHELASTIC_RUN_ID', '')}/{number}"


def _key(token: bytes, environ: Mapping[str, str], number: int) -> bytes:
    # Of its own for every meeting, so that nobody joins an earlier one that is just ending.
    return prove(token, "meeting", _name(environ, number).encode())


def _failed(environ: Mapping[str, str], why: object) -> FedlearnError:
    return WorkerError(f"rank {environ['RANK']} of {environ['WORLD_SIZE']} could not join at {environ['MASTER_ADDR']}:"
                       f"{environ['MASTER_PORT']}: {why}")
