"""The rendezvous store stands where a TCPStore of torch stands."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from backends.rendezvous import ROOT, TOKEN, free_port, ranks, together, until

from fedlearn.backends.torchrun.serve import Server
from fedlearn.backends.torchrun.store import Client, connect, living, serve
from fedlearn.errors import ConfigError

pytestmark = pytest.mark.usefixtures("tidy")


@pytest.fixture
def server() -> Iterator[Server]:
    before = len(living)
    server = serve(TOKEN, timeout=10)
    yield server
    server.close()
    server.close()
    assert not server.thread.is_alive() and len(living) == before


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    client = connect(TOKEN, "127.0.0.1", server.port, 10)
    yield client
    client.close()
    client.close()


def questions(store: dist.Store) -> list[object]:
    """Ask a store all that can be asked."""
    store.set_timeout(timedelta(seconds=5))
    return [store.set("a", "1"), store.get("a"), store.set("a", "two\0\xff"), store.get("a"), store.set("", ""),
            store.get(""), store.check(["a"]), store.check(["a", "nobody"]), store.check([]),
            store.add("n", 5), store.add("n", -7), store.get("n"), store.add("n", 0),
            store.compare_set("c", "", "1"), store.compare_set("c", "2", "3"), store.compare_set("c", "1", "3"),
            store.compare_set("d", "x", "y"), store.check(["d"]), store.delete_key("c"), store.delete_key("c"),
            store.append("l", "1"), store.append("l", "2"), store.get("l"), store.multi_set(["x", "y"], ["1", "2"]),
            store.multi_get(["y", "x"]), store.num_keys(), store.wait(["x", "y"]),
            store.wait(["x"], timedelta(seconds=1)), store.has_extended_api(), store.timeout]


@pytest.mark.parametrize("who", ["own", "client", "prefixed", "cloned"])
def test_it_answers_as_torchs_own_store(server: Server, client: Client, who: str) -> None:
    store = {"own": server.store, "client": client, "prefixed": dist.PrefixStore("p", client),
             "cloned": dist.PrefixStore("p", client).clone()}[who]
    assert questions(store) == questions(dist.HashStore())


def test_all_see_the_same_keys(server: Server, client: Client) -> None:
    client.set("a", "b")
    with_prefix = dist.PrefixStore("", server.store)
    assert server.store.get("a") == b"b" and not with_prefix.check(["a"])
    with_prefix.set("k", b"\0\xff")
    assert client.get("/k") == b"\0\xff" and client.num_keys() == 2


def test_what_is_wrong_is_said_and_the_client_goes_on(server: Server, client: Client) -> None:
    for store in (server.store, client):
        store.set("word", "x")
        with pytest.raises(dist.DistStoreError, match="the value of word is no number"):
            store.add("word", 1)
        with pytest.raises(dist.DistStoreError, match="600000 bytes are too many"):
            store.set("", "x" * 600_000)
        store.set("long", "x" * 500_000)
        with pytest.raises(dist.DistStoreError, match="the value of long gets too long"):
            store.append("long", "x" * 500_000)
        assert len(store.get("long")) == 500_000
    with pytest.raises(dist.DistStoreError, match="a frame of"):
        client.multi_get(["long"] * 3)
    assert client.get("word") == b"x" and server.refused.count == 0


@pytest.mark.parametrize("who", ["own", "client", "prefixed"])
def test_a_wait_ends_in_time(server: Server, client: Client, who: str) -> None:
    store = {"own": server.store, "client": client, "prefixed": dist.PrefixStore("p", client)}[who]
    start = time.monotonic()
    with pytest.raises(dist.DistStoreError, match=r"wait timeout after 0.2 s, keys: .*never"):
        store.wait(["never"], timedelta(seconds=0.2))
    store.set_timeout(timedelta(seconds=0.2))
    with pytest.raises(dist.DistStoreError, match="never"):
        store.get("never")
    assert 0.4 <= time.monotonic() - start < 9
    assert not server.table.waiting and not server.parked
    store.set("now", "1")
    assert store.get("now") == b"1"


def test_who_waits_is_woken_and_holds_up_nobody(server: Server, client: Client) -> None:
    other = connect(TOKEN, "127.0.0.1", server.port, 10)

    def late() -> str:
        time.sleep(0.2)
        for store, key in ((client, "a"), (other, "b"), (server.store, "c"), (client, "d")):
            assert store.add(key, 1) == 1   # also over stores in which somebody waits
        return "set"

    keys = list("dcba")
    start = time.monotonic()
    results = together(lambda: client.multi_get(keys), lambda: server.store.multi_get(keys), lambda: client.get("d"),
                       lambda: other.wait(keys), late)
    other.close()
    assert results == [[b"1"] * 4, [b"1"] * 4, b"1", None, "set"]
    assert 0.2 <= time.monotonic() - start < 9


def test_many_threads_may_share_a_store(server: Server, client: Client) -> None:
    def count() -> None:
        for _ in range(50):
            client.add("n", 1)
            server.store.add("n", 1)

    assert together(*[count] * 4) == [None] * 4
    assert client.get("n") == b"400"


def test_a_client_that_goes_while_it_waits_is_forgotten(server: Server) -> None:
    code = f"""
import os, sys
from fedlearn.backends.torchrun.store import connect
store = connect({TOKEN!r}, "127.0.0.1", {server.port}, 30)
store.set("here", "1")
store.get("never")
"""
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    server.store.wait(["here"], timedelta(seconds=60))
    until(lambda: bool(server.parked))
    child.kill()
    child.wait()
    until(lambda: not server.parked and not server.table.waiting)
    assert server.refused.count == 0   # it was one of ours


def test_a_store_that_ends_is_missed(server: Server, client: Client) -> None:
    results = together(lambda: client.get("never"), lambda: (time.sleep(0.2), server.close()))
    assert isinstance(results[0], dist.DistStoreError) and "lost the rendezvous store at 127.0.0.1" in str(results[0])
    for store in (client, server.store):
        with pytest.raises(dist.DistStoreError):
            store.set("a", "b")
    with pytest.raises(dist.DistStoreError, match=r"cannot reach .* within 0.2 s"):
        connect(TOKEN, "127.0.0.1", server.port, 0.2)
    client.close()
    with pytest.raises(dist.DistStoreError, match="closed"):
        client.set("a", "b")


def test_a_store_may_be_served_later_than_it_is_looked_for() -> None:
    port = free_port()
    later: list[Server] = []

    def serve_it() -> None:
        time.sleep(0.3)
        later.append(serve(TOKEN, port=port))

    found, _ = together(lambda: connect(TOKEN, "127.0.0.1", port, 10), serve_it)
    assert isinstance(found, Client)
    found.close()
    with pytest.raises(ConfigError, match=f"backend.port: found {port}; .*0 takes any free one"):
        serve(TOKEN, port=port)
    later[0].close()


def test_it_listens_at_its_own_address_only(server: Server) -> None:
    line = next(line for line in Path("/proc/self/net/tcp").read_text().splitlines()
                if line.split()[1].endswith(f":{server.port:04X}") and line.split()[3] == "0A")
    assert line.split()[1] == f"0100007F:{server.port:04X}"
    with pytest.raises(ConfigError, match="an address of this machine"):
        serve(TOKEN, "192.0.2.77")


def test_torch_keeps_it_alive(server: Server) -> None:
    prefixed = dist.PrefixStore("p", connect(TOKEN, "127.0.0.1", server.port, 10))
    gc.collect()
    prefixed.set("a", "1")   # torch's C++ alone does not hold the Python half
    assert prefixed.get("a") == b"1"
    prefixed.underlying_store.close()


RANK = """
import sys, threading
from datetime import timedelta
import torch, torch.distributed as dist
from torch.distributed.distributed_c10d import AllgatherOptions
from fedlearn.backends.torchrun.mesh import mesh
from fedlearn.backends.torchrun.store import connect
token, port, rank, world = bytes.fromhex(sys.stdin.readline()), *map(int, sys.argv[1:])
store = connect(token, "127.0.0.1", port, 60)
store.set(f"beat/{rank}", "0")
store.wait([f"beat/{r}" for r in range(world)], timedelta(seconds=60))
stop = threading.Event()

def beat():
    n = 0
    while not stop.wait(0.002):
        n += 1
        store.set(f"beat/{rank}", str(n))
        assert int(store.get("beat/0")) >= 0

beater = threading.Thread(target=beat)
beater.start()
gloo = mesh(store, "gloo/0", rank, world, "lo", 60)
wait, everybody = timedelta(seconds=30), list(range(world))
block = torch.full((3,), rank)
gloo.broadcast([block], dist.BroadcastOptions()).wait(wait)
assert block.tolist() == [0] * 3
rows = [torch.zeros(1) for _ in range(world)]
gloo.allgather([rows], [torch.tensor([float(rank)])], AllgatherOptions()).wait(wait)
assert [int(row) for row in rows] == everybody
rows = [torch.zeros(1) for _ in range(world)]
gloo.gather([rows] if rank == 0 else [], [torch.tensor([float(rank)])], dist.GatherOptions()).wait(wait)
assert rank or [int(row) for row in rows] == everybody
total = torch.tensor([rank], dtype=torch.int64)
gloo.reduce([total], dist.ReduceOptions()).wait(wait)
assert rank or int(total) == sum(everybody)
some = [0, world - 1]
if rank in some and world > 2:
    part = mesh(store, "hosts/0", some.index(rank), 2, "lo", 60)
    block = torch.full((1,), rank)
    part.broadcast([block], dist.BroadcastOptions()).wait(wait)
    assert int(block) == 0
again = mesh(store, "gloo/1", (rank + 1) % world, world, "lo", 60)
block = torch.full((1,), rank)
again.broadcast([block], dist.BroadcastOptions()).wait(wait)
assert int(block) == world - 1
stop.set()
beater.join()
store.close()
print("done")
"""


@pytest.mark.torchrun
@pytest.mark.parametrize("world", [1, 2, 4])
def test_gloo_works_on_it(server: Server, world: int) -> None:
    assert ranks(RANK, server, world) == [(0, "done")] * world
    assert server.refused.count == 0 and not server.parked
