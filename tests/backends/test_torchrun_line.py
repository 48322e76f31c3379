"""Ranks in a line: what is sent along it arrives, what is added up is the sum, and every link carries it once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from backends.rendezvous import on_hosts

from fedlearn.backends.torchrun import line
from fedlearn.backends.torchrun.group import Group
from fedlearn.backends.torchrun.lost import Lost

pytestmark = pytest.mark.torchrun
LENGTHS = (0, 1, line.LEAST // 8, line.LEAST // 8 + 1, 123_457)    # one piece, nearly one, two, and many


def vector(rank: int, n: int) -> torch.Tensor:
    """Return integers [n] that wrap around when they are added up."""
    return torch.randint(-1 << 63, (1 << 63) - 1, (n,), generator=torch.Generator().manual_seed(n + rank))


@pytest.mark.parametrize("hosts", ["a", "aa", "ab", "abc", "abab", "abcde"])
def test_every_link_carries_every_vector_once(hosts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def do(group: Group) -> tuple[int, list[int]]:
        crossed, begin, way = Counter[Any](), group.begin, group.host.line

        def cross(t: torch.Tensor, among: Any, root: int = 0) -> Any:
            crossed[among] += t.nbytes
            return begin(t, among, root)

        group.begin = cross  # type: ignore[method-assign]
        for n in LENGTHS:
            group.rate = 1.0    # a slow link, so that pieces are as small as they get
            v = vector(group.rank, n)
            way.sum(v, v.dtype)
            if group.rank == 0:
                assert torch.equal(v, sum(vector(r, n) for r in range(len(hosts))) + torch.zeros(n, dtype=v.dtype))
            v = vector(0, n) if group.rank == 0 else torch.zeros_like(v)
            way.send(v)
            assert torch.equal(v, vector(0, n))
        return sum(link is not None for link in (way.up, way.down)), list(crossed.values())

    found = on_hosts(hosts, monkeypatch, do)
    bytes_of_all = 2 * 8 * sum(LENGTHS)    # up and down
    assert all(crossed == links * [bytes_of_all] for links, crossed in found)
    assert sorted(links for links, _ in found) == [1, 1, *(len(hosts) - 2) * [2]] if len(hosts) > 1 else [0]


def test_every_rank_cuts_pieces_as_rank_0_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes by how fast the last sum came; ranks with pieces of their own would end in nonsense."""
    def do(group: Group) -> list[tuple[float, int]]:
        seen = []
        for r, rate in enumerate((None, None, 1e5, 3e7, 1e10)):
            if group.rank == 0:
                group.rate = rate or group.rate
                group.send({}, {"x": vector(r, 70_000)})
            else:
                assert torch.equal(group.receive()[1]["x"], vector(r, 70_000))
            seen.append((group.rate, len(group.host.line._pieces(vector(0, 70_000), 8))))
            total = group.reduce(vector(group.rank, 70_000))
            if group.rank == 0:
                assert torch.equal(total, vector(0, 70_000) + vector(1, 70_000) + vector(2, 70_000))
            group.barrier()
        return seen

    one, *others = on_hosts("abc", monkeypatch, do)
    assert others == [one, one]
    assert one[0][0] == line.RATE != one[1][0] > 0
    assert [pieces for _, pieces in one[2:]] == [9, 4, 1]


def test_a_line_goes_from_host_to_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks of one host are neighbours, however they are numbered: every network link is crossed once."""
    joined: dict[int, list[list[int]]] = {}
    connect = Group.connect

    def note(group: Group, name: str, ranks: Any) -> Any:
        joined.setdefault(group.rank, []).append(list(ranks)) if name.startswith("line") else None
        return connect(group, name, ranks)

    monkeypatch.setattr(Group, "connect", note)
    on_hosts("abab", monkeypatch, lambda group: None)
    assert joined == {0: [[0, 2]], 2: [[0, 2], [2, 1]], 1: [[1, 3], [2, 1]], 3: [[1, 3]]}


@pytest.mark.parametrize("hosts", ["aaa", "abc"])
def test_a_sum_in_bf16_is_rounded_where_it_crosses(hosts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.rand(3, 100_000, generator=torch.Generator().manual_seed(0)) - 0.5
    total = on_hosts(hosts, monkeypatch, lambda group: group.reduce(own[group.rank].clone(), "bf16"))[0]
    assert torch.equal(total, own[0] + (own[1] + own[2].bfloat16()).bfloat16())
    assert float((total - own.sum(0)).abs().max()) < 2 * 2**-8


def test_who_is_lost_ends_it_for_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = []

    def do(group: Group) -> None:
        groups.append(group)
        if group.rank < 3:     # the last one leaves without a word
            with pytest.raises(Lost):
                group.reduce(torch.ones(1_000_000, dtype=torch.int64))

    on_hosts("abcd", monkeypatch, do)
    assert not any(group.stuck for group in groups)
