"""The connections that gloo makes between ranks, and who could take one.

gloo asks nobody who they are: each rank listens while a group is made, and who connects first and guesses a small
number gets another rank's place. Therefore every pair of ranks proves to each other over gloo itself that it knows the
token, before anything else crosses, and the listening sockets take no more connections afterwards: gloo would keep
every one of them, until the process may open no more files.

What crosses afterwards is neither sealed nor encrypted.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import socket
import struct
import sys
from collections.abc import Collection
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .wire import PROOF, Impostor, same

ATTACH_FILTER = 26   # SO_ATTACH_FILTER of Linux
KNOWS = "that it knows the token"


def mesh(store: dist.Store, name: str, rank: int, world: int, interface: str, timeout: float, threads: int = 2) -> Any:
    """Return a gloo group of ``world`` ranks, which meet under ``name`` in the store, a new one for every group.

    The store is ours (torchrun_store), or a PrefixStore of it.
    ``interface`` is the network interface to use (empty: gloo's choice, or GLOO_SOCKET_IFNAME).

    Raises:
        RuntimeError: if a rank does not come within ``timeout`` seconds; Impostor if somebody else came instead.
    """
    kind: Any = dist.ProcessGroupGloo
    options = kind._Options()
    before = listeners()
    options._devices = [kind.create_device(interface=interface) if interface else kind.create_default_device()]
    ours = listeners() - before
    options._timeout = timedelta(seconds=timeout)
    options._threads = threads
    group = kind(dist.PrefixStore(name, store), rank, world, options)
    deafen(ours)
    confirm(group, store, name, rank, world, timeout)
    return group


def confirm(group: Any, store: dist.Store, name: str, rank: int, world: int, timeout: float) -> None:
    """Have every pair of ranks of a gloo group prove to each other, over its own connection, that it knows the token.

    Raises:
        Impostor: naming the ranks that did not.
        RuntimeError: if one says nothing within ``timeout`` seconds.
    """
    if rank == 0:
        store.set(f"{name}/challenge", secrets.token_hex(32))
    store.wait([f"{name}/challenge"], timedelta(seconds=timeout))
    challenge = store.get(f"{name}/challenge")
    ours: Any = store
    while isinstance(ours, dist.PrefixStore):
        ours = ours.underlying_store

    def proof(giver: int, taker: int) -> bytes:
        return ours.prove("pair", name.encode(), challenge, b"%d %d" % (giver, taker))

    said = torch.frombuffer(bytearray(b"".join(proof(rank, other) for other in range(world))), dtype=torch.uint8)
    heard = torch.zeros_like(said)
    options = dist.AllToAllOptions()
    options.timeout = timedelta(seconds=timeout)
    try:
        group.alltoall_base(heard, said, [], [], options).wait(timedelta(seconds=timeout))
    except RuntimeError as e:
        raise RuntimeError(f"not every rank proved within {timeout:g} s over gloo {KNOWS}; it was lost, or somebody "
                           f"else took its place ({str(e).splitlines()[0]})") from e
    proofs = heard.numpy().tobytes()
    strange = [str(other) for other in range(world)
               if not same(proofs[other * PROOF:(other + 1) * PROOF], proof(other, rank))]
    if strange:
        raise Impostor(f"somebody else took the place of rank {', '.join(strange)} and was refused: it did not prove "
                       + KNOWS)


def listeners() -> set[int]:
    """Return the file descriptors of this process on which it listens for TCP connections (Linux; elsewhere none)."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir() if sys.platform == "linux" else ():
        with suppress(OSError):
            if os.readlink(entry).startswith("socket:"):
                with _borrowed(int(entry.name)) as sock:
                    if sock.family in (socket.AF_INET, socket.AF_INET6) and \
                            sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        found.add(int(entry.name))
    return found


def deafen(fds: Collection[int]) -> None:
    """Let listening sockets hear no more from new connections; those that were made go on (Linux).

    Where the system forbids it, as some do in containers, they go on listening: every pair of ranks is proven anyway.
    """
    nothing = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))   # a filter that lets 0 bytes through
    for fd in fds:
        with _borrowed(fd) as sock, suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(nothing)))


def _borrowed(fd: int) -> socket.socket:
    return socket.socket(fileno=os.dup(fd))
