"""Uninvited guests at a run, and at the sockets of gloo: it goes on and ends right, or says who was refused."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from backends.rendezvous import TOKEN, end_ranks, start_ranks, together
from problems import begin, experiment, play
from processes import children

from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.backends.torchrun.mesh import confirm, deafen, listeners
from fedlearn.backends.torchrun.serve import Server
from fedlearn.backends.torchrun.store import serve
from fedlearn.backends.torchrun.table import LINES
from fedlearn.backends.torchrun.wire import Impostor
from fedlearn.vectors import digest

pytestmark = [pytest.mark.torchrun, pytest.mark.usefixtures("tidy")]


def knock(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10)


def hangs_up(sock: socket.socket) -> bool:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))   # with a reset
    return True


def test_a_run_goes_on_and_tells_nobody_its_token(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
                                                  caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("fedlearn.backends.torchrun.rendezvous.new_token", lambda: TOKEN)
    undisturbed, _ = play(experiment(Scaffold(), rounds=3))
    caplog.set_level("DEBUG")
    loop, workers = begin(experiment(Scaffold(), rounds=3, backend=Torchrun(workers=3)))
    stop, held = threading.Event(), []
    family = children() | {os.getpid()}
    found = {port for pid in family for port in ports(pid)}
    assert found
    harassing = threading.Thread(target=harass, args=(sorted(found), stop, held))
    harassing.start()
    try:
        for r in range(3):
            loop.round(r)
            time.sleep(0.2)
        for pid in family:
            for file in ("cmdline", "environ"):
                content = Path(f"/proc/{pid}/{file}").read_bytes()
                assert TOKEN not in content and TOKEN.hex().encode() not in content
        final = digest(loop.model())
    finally:
        stop.set()
        harassing.join()
        workers.close()
        for sock in held:
            sock.close()
    assert final == digest(undisturbed)
    assert "refused a connection from 127.0.0.1" in caplog.text
    out = "".join(capfd.readouterr()) + caplog.text
    assert TOKEN.decode() not in out and TOKEN.hex() not in out


RANK = """
import os, sys, time
from datetime import timedelta
import torch, torch.distributed as dist
from fedlearn.backends.torchrun import mesh
from fedlearn.backends.torchrun.store import connect
token, port, rank, world = bytes.fromhex(sys.stdin.readline()), *map(int, sys.argv[1:4])
store = connect(token, "127.0.0.1", port, 60)
look = mesh.listeners

def listeners():
    found = look()
    if found and not store.check([f"listens/{rank}"]):   # gloo listens, and no rank is connected yet
        store.set(f"listens/{rank}", "1")
        store.wait(["connect"], timedelta(seconds=60))
    return found

mesh.listeners = listeners
start = time.monotonic()
try:
    gloo = mesh.mesh(store, "gloo", rank, world, "lo", 3)
except RuntimeError as e:
    print("refused", str(e).splitlines()[0])
    sys.stdout.flush()
    os._exit(0 if time.monotonic() - start < 40 else 1)
store.set(f"met/{rank}", "1")
files, wait, total = len(os.listdir("/proc/self/fd")), timedelta(seconds=30), 0
while total == 0 or not store.check(["enough"]):
    part = torch.tensor([rank, 1])
    gloo.allreduce([part]).wait(wait)
    assert part.tolist() == [sum(range(world)), world]
    total += 1
    flag = torch.tensor([int(rank == 0 and store.check(["stop"]))])
    gloo.allreduce([flag]).wait(wait)
    if int(flag):
        break
print("done", total, len(os.listdir("/proc/self/fd")) - files)
sys.stdout.flush()
os._exit(0)
"""


def ports(pid: int) -> list[int]:
    """Return the ports at which a process listens."""
    own = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            own.add(os.readlink(fd))
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return [int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own]


def harass(where: list[int], stop: threading.Event, held: list[socket.socket]) -> int:
    """Knock at ports in many ways until told to stop; return how often."""
    n = 0
    while not stop.is_set():
        for port in where:
            with suppress(OSError):
                sock = socket.create_connection(("127.0.0.1", port), 0.05)
                match n % 5:
                    case 0:
                        sock.close()
                    case 1:
                        hangs_up(sock)
                        sock.close()
                    case 2:
                        sock.sendall(os.urandom(3000))
                        sock.close()
                    case _:
                        sock.sendall(b"\xff" * (n % 3000))
                        held.append(sock)
            n += 1
        time.sleep(0.005)
    return n


def test_a_group_at_work_is_not_disturbed(server: Server, lines: list[str]) -> None:
    children = start_ranks(RANK, server, 3)
    stop, held = threading.Event(), []
    harassing: list[threading.Thread] = []

    def at(where: list[int]) -> None:
        harassing.append(threading.Thread(target=harass, args=(where, stop, held)))
        harassing[-1].start()

    try:
        server.store.wait([f"listens/{rank}" for rank in range(3)], timedelta(seconds=60))
        gloo = [port for child in children for port in ports(child.pid)]
        assert len(gloo) == 3
        at(gloo)   # while they connect
        at([server.port])
        time.sleep(0.2)
        server.store.set("connect", "1")
        server.store.wait([f"met/{rank}" for rank in range(3)], timedelta(seconds=30))
        at(gloo)   # and while they work
        time.sleep(1.0)
        server.store.set("stop", "1")
        said = [child.communicate(timeout=60)[0].split() for child in children]
    finally:
        stop.set()
        for thread in harassing:
            thread.join()
        end_ranks(children)
        for sock in held:
            sock.close()
    assert [child.returncode for child in children] == [0] * 3
    assert [words[0] for words in said] == ["done"] * 3 and len({words[1] for words in said}) == 1
    assert int(said[0][1]) >= 5
    assert all(int(words[2]) <= 3 for words in said), said   # strangers take no files of theirs
    assert server.refused.count > 10 and len(lines) == LINES


def test_who_takes_a_ranks_place_at_gloo_is_found_out(server: Server) -> None:
    children = start_ranks(RANK, server, 3)
    held = []
    try:
        server.store.wait([f"listens/{rank}" for rank in range(3)], timedelta(seconds=60))
        for child in children:
            for port in ports(child.pid):
                for number in range(40):   # with which gloo tells its connections apart
                    held.append(knock(port))
                    held[-1].sendall(struct.pack("<q", number))
        time.sleep(0.2)
        server.store.set("connect", "1")
        said = [child.communicate(timeout=60)[0] for child in children]
    finally:
        end_ranks(children)
        for sock in held:
            sock.close()
    assert [child.returncode for child in children] == [0] * 3
    assert [words.split()[0] for words in said] == ["refused"] * 3, said


def test_every_pair_of_ranks_proves_itself_over_gloo() -> None:
    server = serve(TOKEN)
    guest = serve(b"another token, a wrong one")

    def take_part(name: str, rank: int, prover: Server) -> None:
        kind = dist.ProcessGroupGloo
        options = kind._Options()
        options._devices = [kind.create_device(interface="lo")]
        options._timeout = timedelta(seconds=20)
        group = kind(dist.PrefixStore(name, server.store), rank, 3, options)

        class Other(dist.PrefixStore):
            underlying_store = prover.store

        confirm(group, Other(name, server.store), "gloo", rank, 3, 20)

    assert together(*(lambda r=r: take_part("a", r, server) for r in range(3))) == [None] * 3
    first, second, third = together(lambda: take_part("b", 0, server), lambda: take_part("b", 1, guest),
                                    lambda: take_part("b", 2, server))
    for e, who in ((first, "rank 1"), (second, "rank 0, 2"), (third, "rank 1")):
        assert isinstance(e, Impostor) and f"took the place of {who} and was refused" in str(e)
    server.close()
    guest.close()


def test_a_deaf_socket_takes_no_more_and_what_is_connected_goes_on() -> None:
    before = listeners()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as other:
        other.bind("")
        other.listen()
        assert listeners() - before == {listener.fileno()}
        with knock(listener.getsockname()[1]) as there, listener.accept()[0] as here:
            deafen([listener.fileno()])
            with pytest.raises(TimeoutError):
                socket.create_connection(listener.getsockname(), 0.2)
            there.sendall(b"on")
            here.sendall(b"and on")
            assert (here.recv(9), there.recv(9)) == (b"on", b"and on")
