"""How ranks that others started find each other by a token, and nobody else."""

from __future__ import annotations

import logging
import os
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from backends.rendezvous import free_port, together

from fedlearn.backends.torchrun.meet import address_for, interface_address, meet
from fedlearn.backends.torchrun.store import serve
from fedlearn.backends.torchrun.token import folder_for, forget_token, new_token, read_token, token_for, write_token
from fedlearn.errors import ConfigError, WorkerError

pytestmark = pytest.mark.usefixtures("tidy")


def environ(rank: int, world: int = 2, port: int = 29500, **more: str) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test", **more}


def test_tokens_are_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    write_token(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(read_token(path)) == 64
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="token: found .*a file that does not exist yet"):
        write_token(path)
    assert path.read_bytes() == before and len({new_token() for _ in range(100)}) == 100
    with pytest.raises(ConfigError, match="No such file"):
        write_token(tmp_path / "no" / "token")


@pytest.mark.parametrize(("content", "found"), [
    (None, "No such file or directory; `fedlearn token FILE` makes one"), (b"", "It holds nothing"),
    (b" \n", "It holds nothing"), (b"fifteen bytes!!\n", "It holds 15 bytes"), (b"x" * 4097, "It holds 4097 bytes")])
def test_a_token_that_is_no_good_is_said(tmp_path: Path, content: bytes | None, found: str) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"backend.token: found '{path}'; .*{found}") as e:
        read_token(path)
    assert content is None or content.strip() == b"" or content.strip().decode() not in str(e.value)


def test_an_open_token_file_is_used_but_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"\nsixteen bytes!!!\n")
    path.chmod(0o640)
    assert read_token(path) == b"sixteen bytes!!!" and not caplog.records
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING, "fedlearn"):
        assert read_token(path) == b"sixteen bytes!!!"
    assert "other users of this machine can read" in caplog.text and "sixteen" not in caplog.text


def test_ranks_of_one_host_find_their_token_and_nobody_else_does() -> None:
    assert token_for(environ(1), None) is None
    token = token_for(environ(0), None)
    folder = folder_for(environ(0))
    try:
        assert token is not None and len(token) == 32 and token_for(environ(1), None) == token
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert [stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()] == [0o600]
        for other in (environ(1, port=1), environ(1, TORCHELASTIC_RUN_ID="other"), environ(1, MASTER_ADDR="localhost")):
            assert token_for(other, None) is None
        again = token_for(environ(0), None)   # what an earlier attempt left behind is replaced
        assert again != token and token_for(environ(1), None) == again
        folder.chmod(0o750)
        for rank in (0, 1):
            with pytest.raises(ConfigError, match="backend.token.*only this user's.*not trusted"):
                token_for(environ(rank), None)
    finally:
        forget_token(environ(1), None)
        assert folder.exists()
        forget_token(environ(0), None)
        forget_token(environ(0), None)
    assert not folder.exists()


@pytest.mark.parametrize("what", ["link", "file", "stranger"])
def test_a_folder_that_somebody_else_made_is_not_trusted(tmp_path: Path, what: str,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_for(environ(0))
    if what == "link":
        tmp_path.chmod(0o700)
        folder.symlink_to(tmp_path)
    elif what == "file":
        folder.touch(0o600)
    else:
        folder.mkdir(0o700)
        real, mine = os.geteuid(), folder
        monkeypatch.setattr("fedlearn.backends.torchrun.token.folder_for", lambda environ: mine)
        monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    try:
        for rank in (0, 1):
            with pytest.raises(ConfigError, match="not trusted"):
                token_for(environ(rank), None)
        assert not list(tmp_path.iterdir())
    finally:
        folder.rmdir() if what == "stranger" else folder.unlink()


def test_several_hosts_need_a_token(tmp_path: Path) -> None:
    spread = environ(0, 4) | {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}
    for given_ in (spread, {k: v for k, v in spread.items() if k != "LOCAL_WORLD_SIZE"}):
        with pytest.raises(ConfigError, match=r"backend.token: found None; .*several hosts.*`fedlearn token FILE`"):
            token_for(given_, None)
    write_token(tmp_path / "token")
    assert token_for(spread, str(tmp_path / "token")) == read_token(tmp_path / "token")
    forget_token(spread, str(tmp_path / "token"))
    assert (tmp_path / "token").exists()


def test_the_address_to_serve_at() -> None:
    assert interface_address("lo") == "127.0.0.1"
    with pytest.raises(ConfigError, match=r"GLOO_SOCKET_IFNAME: found 'wg9'; allowed: one of .*\blo\b"):
        interface_address("wg9")
    assert address_for(environ(0)) == "127.0.0.1"
    spread = environ(0, 4) | {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "somewhere.invalid"}
    with pytest.raises(ConfigError, match="MASTER_ADDR: found 'somewhere.invalid'"):
        address_for(spread)
    agents = spread | {"GLOO_SOCKET_IFNAME": "lo,eth1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert address_for(agents) == "127.0.0.1"   # what is named is taken
    with pytest.raises(ConfigError, match="only this host can"):
        address_for(spread | {"MASTER_ADDR": "0.0.0.0"})
    assert address_for(spread | {"MASTER_ADDR": "0.0.0.0", "GLOO_SOCKET_IFNAME": "lo"}) == "127.0.0.1"


@pytest.fixture
def launchers() -> Iterator[list]:
    """A store as torchrun's agent runs one, and what the environment says of it."""
    store = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=10))
    both = [store, {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}]
    del store
    yield both
    both.clear()   # it ends when nobody holds it


def met(ranks: Sequence[dict[str, str]], token: str | None = None, timeout: float = 20, number: int = 0) -> list:
    return together(*(lambda e=e: meet(e, token, timeout, number) for e in ranks))


def end(stores: Sequence) -> None:
    for store in reversed(stores):
        store.close()


def test_ranks_meet_under_an_agent(launchers: list) -> None:
    for number in range(2):   # twice in the same processes
        stores = met([environ(r, 3, **launchers[1]) for r in range(3)], number=number)
        stores[2].set("a", str(number))
        assert stores[0].get("a") == stores[1].get("a") == b"%d" % number
        assert [store.timeout for store in stores] == [timedelta(seconds=20)] * 3
        assert not folder_for(environ(0, 3, **launchers[1])).exists()   # they have met: nobody needs it any more
        end(stores)


def test_ranks_meet_without_an_agent(tmp_path: Path) -> None:
    port = free_port()
    write_token(tmp_path / "token")
    for number, token in enumerate([None, str(tmp_path / "token")]):
        stores = met([environ(r, port=port) for r in range(2)], token, number=number)
        assert stores[0].server.port == port
        stores[1].set("a", "1")
        assert stores[0].get("a") == b"1"
        end(stores)


def test_what_an_earlier_attempt_left_behind_is_passed_over(launchers: list) -> None:
    ours = [environ(r, **launchers[1]) for r in range(2)]
    old = serve(new_token())   # its rank 0, frozen
    launchers[0].set("fedlearn/test/0", f"127.0.0.1 {old.port}")
    assert token_for(ours[0], None) is not None

    def host() -> object:
        time.sleep(0.5)
        return meet(ours[0], None, 20)

    stores = together(host, lambda: meet(ours[1], None, 20))
    end(stores)
    old.close()
    assert old.refused.count >= 1


def test_another_token_is_refused_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlearn.backends.torchrun.meet.STALE", 0.3)
    for name in "ab":
        write_token(tmp_path / name)
    port = free_port()
    first, second = together(lambda: meet(environ(0, port=port), str(tmp_path / "a"), 2),
                             lambda: meet(environ(1, port=port), str(tmp_path / "b"), 20))
    assert isinstance(first, WorkerError) and "rank 1 did not come within 2 s; " in str(first)
    assert "connections were refused" in str(first)
    assert isinstance(second, WorkerError) and "rank 1 of 2 could not join" in str(second)
    assert "different tokens, or somebody else answers" in str(second)
    for name in "ab":
        assert read_token(tmp_path / name).decode() not in str(first) + str(second)


@pytest.mark.parametrize(("lie", "why"), [("{host} {port}", "did not prove that it knows the token"),
                                          ("__import__('os').system('true')", "somebody changed it"),
                                          ("\0" * 3000, "somebody changed it"), ("1.2 9999999", "somebody changed it")])
def test_a_launchers_store_that_was_tampered_with_leads_nobody_astray(
        launchers: list, monkeypatch: pytest.MonkeyPatch, lie: str, why: str) -> None:
    monkeypatch.setattr("fedlearn.backends.torchrun.meet.STALE", 0.3)
    fake = serve(b"the stranger's own token")
    launchers[0].set("fedlearn/test/0", lie.format(host=fake.host, port=fake.port))
    token_for(environ(0, **launchers[1]), None)
    with pytest.raises(WorkerError, match=why):
        meet(environ(1, **launchers[1]), None, 20)
    forget_token(environ(0, **launchers[1]), None)
    assert fake.store.num_keys() == 0
    fake.close()


def test_a_rank_without_the_others_says_so(launchers: list) -> None:
    with pytest.raises(WorkerError, match=r"^rank 1, 2 did not come within 0.3 s$"):
        meet(environ(0, 3, **launchers[1]), None, 0.3)
    with pytest.raises(WorkerError, match=r"rank 1 of 2 could not join at 127.0.0.1:\d+: rank 0 has not made"):
        meet(environ(1), None, 0.3)
    port = free_port()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ConfigError, match=f"backend.port: found {port}"):
        meet(environ(0, port=port), None, 0.3)
    assert not folder_for(environ(0, port=port)).exists()
