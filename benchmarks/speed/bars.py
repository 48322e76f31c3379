"""What fedlearn is held to: ratios of medians of one run, each with its bar and whether it was reached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.speed.contestants import BARE, MINE
from benchmarks.speed.studies import BETWEEN, MAPPED, SCAFFOLD, of
from benchmarks.speed.summary import number, rows

Races = Mapping[str, Sequence[Mapping[str, Any]]]
HEAD = ["what", "measured", "bar", "verdict"]
MEANING = """Ratios of medians of this run; *over* means times as fast. fedlearn stands with its fastest placement,
named in brackets, in float32 unless said; so does the other side. A bar of - is none. *Outside the oracle* is all of a
round's time in one process but the gradients; *of the framework* what is left of it without the algorithm's own
arithmetic on the clients, which bare PyTorch's optimizer does too."""
ALGORITHMS = ("scaffold", "fedprox", "fedadam")
BF16 = "precision=bf16"
# workload -> (over the fastest peer, over it in bf16, over bare PyTorch, over Flower); None: no bar
FASTER: dict[str, tuple[float | None, ...]] = {
    "W1L": (10, None, 6, 50), "W1M": (4, None, None, None), "W2": (1.3, 2.5, None, None)}
NO_SLOWER = {"W1L": 1.5, "W1M": 1.5, "W2": 1.1}    # than FedAvg, for other algorithms
WHOLE = 0.6             # of the fastest peer's wall time on W3
AUTOGRAD = 1.03         # of bare PyTorch's time on W2
# of the round time and of the memory with the smaller population
POPULATION, MORE_MB = 1.1, 200
OUTSIDE = {"W1L": 0.25, "W2": 0.05}
REDUCE = {"W2": 0.03}


@dataclass(frozen=True)
class Line:
    """One quantity: ``value`` is None where its contestants were not in the run; ``detail`` says which they were."""

    what: str
    value: float | None
    least: float | None = None
    most: float | None = None
    form: str = "{}"
    detail: str = ""

    def cells(self) -> list[str]:
        """Return measured value, bar and verdict."""
        bar = self.least if self.least is not None else self.most
        said = "-" if bar is None else ("at least " if self.most is None else "at most ") + self._said(bar)
        if self.value is None:
            return [self.what, "not measured", said, ""]
        reached = self.value >= bar if self.most is None and bar is not None else bar is None or self.value <= bar
        measured = self._said(self.value) + (f" ({self.detail})" if self.detail else "")
        return [self.what, measured, said, "" if bar is None else "reached" if reached else "**not reached**"]

    def _said(self, x: float) -> str:
        return f"{x:.1%}" if self.form == "%" else self.form.format(number(x))


def cells(races: Races) -> list[list[str]]:
    """Return the rows of the table."""
    medians = {race: {row.name: row.median for row in rows(records, "")} for race, records in races.items()}
    return [line.cells() for line in (*_faster(medians, races), *_algorithms(medians), *_population(races),
                                      *_profile(races))]


def _faster(medians: Mapping[str, Mapping[str, float]], races: Races) -> Iterator[Line]:
    for race, (peer, peer_low, bare, flower) in FASTER.items():
        times = medians.get(race, {})
        mine = _best(times, [n for n in _fedavg(times) if BF16 not in n])
        low = _best(times, [n for n in _fedavg(times) if BF16 in n])
        theirs = _best(times, [n for n in times if not n.startswith((MINE, BARE))])
        yield _over(f"{race} over the fastest peer", times, theirs, mine, peer)
        if race == "W2":
            equal = _accuracies(races.get(race, ()), low, mine)
            yield _over(f"{race} over the fastest peer, bf16{equal}", times, theirs, low, peer_low)
        yield _over(f"{race} over bare PyTorch, one thread", times, _best(times, [BARE]), mine, bare)
        if race == "W2":
            yield _over(f"{race} over bare PyTorch, one thread, bf16", times, _best(times, [BARE]), low, None)
        if flower is not None:
            yield _over(f"{race} over Flower", times, _best(times, [n for n in times if n.startswith("Flower")]), mine,
                        flower)
    times = medians.get("W3", {})
    theirs = _best(times, [n for n in times if not n.startswith((MINE, BARE))])
    mine = MINE if MINE in times else None
    yield _against("W3 wall time against the fastest peer", times, mine, theirs, WHOLE)
    yield _against("W3 wall time against bare PyTorch", times, mine, _best(times, [BARE]), None)
    times = medians.get("W2", {})
    autograd = _best(times, [f"{MINE}, oracle=autograd"])
    yield _against("W2 autograd oracle, time against bare PyTorch", times, autograd, _best(times, [BARE]), AUTOGRAD)


def _algorithms(medians: Mapping[str, Mapping[str, float]]) -> Iterator[Line]:
    for race, most in NO_SLOWER.items():
        times = medians.get(race, {})
        for algorithm in ALGORITHMS:
            found = [n for n in times if n.startswith(MINE) and n.endswith(f", {algorithm}")]
            for name in found or [f"{MINE}, {algorithm}"]:
                plain = name.removesuffix(f", {algorithm}")
                where = plain.removeprefix(MINE)
                yield _against(f"{race} {algorithm}, time against FedAvg{where}", times, name, plain, most)


def _population(races: Races) -> Iterator[Line]:
    table = {row.name: row for row in rows(races.get("population", ()), "")}
    few, many = BETWEEN
    for what in ("", SCAFFOLD, MAPPED):
        small, large = table.get(of(few, what)), table.get(of(many, what))
        said = f"{many:,} clients against {few:,}" + (f", {what}" if what else "")
        yield Line(f"{said}: round time", large.median / small.median if small and large else None, most=POPULATION,
                   form="{}x")
        memory = large.memory - small.memory if small and large and small.memory and large.memory else None
        yield Line(f"{said}: memory", memory, most=MORE_MB, form="{} MB more")


def _profile(races: Races) -> Iterator[Line]:
    shares = {r["name"]: r["shares"] for r in races.get("profile", ()) if r["kind"] == "profile"}
    for name, most in OUTSIDE.items():
        found = shares.get(name)
        rest = sorted(((s, p) for p, s in found.items() if p != "oracle"), reverse=True)[:3] if found else []
        yield Line(f"{name} share of a round outside the oracle", 1 - found["oracle"] if found else None, most=most,
                   form="%", detail=", ".join(f"{p} {s:.1%}" for s, p in rest))
        own = 1 - found["oracle"] - found["local algorithm"] if found else None
        yield Line(f"{name} share of a round of the framework", own, most=most, form="%")
    for name, most in REDUCE.items():
        yield Line(f"{name} share of the exact reduction", shares[name]["reduce"] if name in shares else None,
                   most=most, form="%")


def _fedavg(times: Mapping[str, float]) -> list[str]:
    return [n for n in times if n.startswith(MINE) and not n.endswith(ALGORITHMS)]


def _best(times: Mapping[str, float], names: Sequence[str]) -> str | None:
    return min((n for n in names if n in times), key=times.__getitem__, default=None)


def _over(what: str, times: Mapping[str, float], theirs: str | None, mine: str | None, least: float | None) -> Line:
    """Return how many times as fast ``mine`` is as ``theirs``."""
    if theirs is None or mine is None:
        return Line(what, None, least, form="{}x")
    detail = mine if theirs == BARE else f"{mine}; {theirs}"
    return Line(what, times[theirs] / times[mine], least, form="{}x", detail=detail)


def _against(what: str, times: Mapping[str, float], mine: str | None, theirs: str | None, most: float | None) -> Line:
    """Return the time of ``mine`` over that of ``theirs``."""
    if theirs not in times or mine not in times:
        return Line(what, None, most=most, form="{}x")
    assert theirs is not None and mine is not None
    detail = "" if theirs.startswith((MINE, BARE)) else theirs
    return Line(what, times[mine] / times[theirs], most=most, form="{}x", detail=detail)


def _accuracies(records: Sequence[Mapping[str, Any]], *names: str | None) -> str:
    """Say which accuracies two contestants reached."""
    found = {r["name"]: r["accuracy"] for r in records if r["kind"] == "final"}
    both = [f"{found[n]:.4f}" for n in names if n in found]
    return f", accuracy {both[0]} against {both[1]}" if len(both) == 2 else ""
