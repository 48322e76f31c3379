"""What was measured as tables, in words and figures that all come from network.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

from benchmarks.network import picture
from benchmarks.network.plan import ALL_REDUCE, DDP, HOSTS
from benchmarks.speed.race import NOISY
from benchmarks.speed.report import markdown
from benchmarks.speed.summary import number, rows

Records = Sequence[Mapping[str, Any]]
Table = tuple[list[str], list[list[str]]]
EXTRAPOLATED = "\\*"
TITLES = {"fashion_mnist": "Fashion-MNIST"}
MEANING = """Three hosts, made on one machine: each is a network namespace with one process, one thread and a link of
its own to a switch, limited to the named speed each way (a token bucket; latency is that of the machine). All compute
on the same {cores} cores: computing takes longer than on three machines, for all methods alike, and counts most where
links are fast. {task}, shuffled and cut into three equal parts, one for each host; {model} ({parameters:,} parameters,
{megabytes:.2f} MB in float32); {batch} samples a step on every host; constant step sizes; one seed. The target is a
test loss of {target:.2f}, looked for every {look} steps, or after every round where a round is longer. The parts are
alike: with unlike ones many local steps may need more rounds.

*{ddp}* is torch's own, over gloo, with autograd and torch.optim.SGD: gradients are averaged at every
step, in float32 or, by a hook, in bf16. Its mini-batches are those of Local SGD with K=1. The others are `fedlearn` on
torchrun ranks, one on each host, with its own gradients (`oracle=auto`) and all three clients in every round. Without
further words they sum up exactly, the default (`reduce=exact`: the same bits on any number of hosts); *float32 sum* is
`reduce=fast`, *bf16 sum* is `reduce=fast backend.wire=bf16`. DiLoCo's moments stay on the hosts' shared disk."""
SEARCH = """The step size of each method is searched without a network, doubling or halving it for as long as that is
better. How many rounds the target takes with it is then found on the three hosts, with the method's own sum; how fast
the links are makes no difference to that. The loss fluctuates: differences in the last bits already change at which
look it is first low enough, as the rounds with different sums show. *Same bits* says whether that model has the SHA-256
with which training ended on the timed networks, where it came to its end (a sum of floats may not have). *MB a round*
is what passed host 0's link in a round of the timed training, both ways, with all overhead: it coordinates, and no host
has more to send."""
TIMES = """Seconds from the first round to the target, without evaluations and without starting up: median of {passes}
passes over all methods and networks, the least and the most in brackets. DDP's mini-batches are drawn before its clock
starts, and three more of its steps come before. In a pass a method was stopped after {limit:g} seconds and {least}
rounds or more; the rounds that are missing count as much as the mean of those that were timed, but the first. In the
last pass those went on to the end that had taken at most {whole:g} seconds. {star}: all passes are extrapolated."""
RATIOS = "The same as times as fast as {ddp} in the same pass: median, the least and the most in brackets."
SYNC = """A round of fedlearn without local work against one all_reduce of the same float32 vector by gloo, which is
what DDP does at every step: medians in milliseconds with quartiles, and the ratio of medians with a 95 % bootstrap
interval; the kinds take turns. fedlearn's round sends the model out, sums up, updates the model at host 0 and hashes
it. MB are those of host 0's link in one synchronisation, received and sent; in a ring no host sends, or receives, more
than 2 (n - 1) / n vectors, here {ring:.2f} MB."""


def load(folder: Path) -> list[dict[str, Any]]:
    """Return the records of network.jsonl."""
    with (folder / "network.jsonl").open() as file:
        return [json.loads(line) for line in file]


def write(folder: Path) -> str:
    """Write network.md and network.svg beside network.jsonl and return the text."""
    records = load(folder)
    picture.draw(records, cells(records), folder / "network.svg")
    text = "\n".join(lines(records)) + "\n"
    (folder / "network.md").write_text(text, encoding="utf-8")
    return text


def to_target(timed: Mapping[str, Any], rounds: int) -> float:
    """Return the seconds to the target: those measured, and the mean round but the first for each that is missing."""
    if timed["rounds"] >= rounds:
        return timed["seconds"]
    rest = (timed["seconds"] - timed["first"]) / (timed["rounds"] - 1)
    return timed["seconds"] + (rounds - timed["rounds"]) * rest


class Cell:
    """A method on a network: all passes of it, and DDP's of the same passes."""

    def __init__(self, mine: Sequence[Mapping[str, Any]], theirs: Mapping[int, float]) -> None:
        self.seconds = sorted(r["to_target"] for r in mine)
        whole, short = ([r["to_target"] for r in mine if (r["rounds"] >= r["of"]) == end] for end in (True, False))
        self.whole = bool(whole)
        self.foretold = median(short) / median(whole) if whole and short else None
        self.faster = sorted(theirs[r["pass"]] / r["to_target"] for r in mine if r["pass"] in theirs)
        self.megabytes = median((r["received"] + r["sent"]) / 1e6 for r in mine)
        self.hashes = {r["sha256"] for r in mine if r["rounds"] >= r["of"]}
        self.noisy = sum(r["noisy"] for r in mine)


def cells(records: Records) -> dict[tuple[str, float], Cell]:
    """Return every method on every network, by (name, Mbit/s)."""
    found: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for record in records:
        if record["kind"] == "cell":
            found.setdefault((record["name"], record["mbit"]), []).append(record)
    ddp = {mbit: {r["pass"]: r["to_target"] for r in mine} for (name, mbit), mine in found.items() if name == DDP}
    return {key: Cell(mine, ddp.get(key[1], {})) for key, mine in found.items()}


def lines(records: Records) -> Iterator[str]:
    """Yield the lines of network.md."""
    about, ready, end = (next(r for r in records if r["kind"] == kind) for kind in ("machine", "ready", "end"))
    methods = [r for r in records if r["kind"] == "method"]
    found, problem, mbits, size = cells(records), about["problem"], about["mbits"], 4e-6 * ready["parameters"]
    timed = [r for r in records if "noisy" in r]
    yield from ["# Training over slow networks", "", f"Made by `{about['command']}` in {end['minutes']:g} minutes; raw "
                "measurements in [network.jsonl](network.jsonl).", "",
                f"- machine: {about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB, "
                f"{about['system']}", f"- date: {about['date']}; commit {about['commit']}; Python {about['python']}, "
                f"torch {ready['versions']['torch']}",
                f"- {sum(r['noisy'] for r in timed)} of {len(timed)} turns began while other processes kept more than "
                f"{NOISY:g} cores busy", "",
                f"![seconds to a test loss of {problem['target']:.2f}, by the speed of the links](network.svg)", ""]
    task, model = TITLES.get(problem["task"], problem["task"]), f"an MLP with {problem['width']} hidden units"
    yield wrapped(MEANING.format(cores=about["cores"], task=task, model=model, parameters=ready["parameters"], ddp=DDP,
                                 megabytes=size, batch=problem["batch"], target=problem["target"],
                                 look=problem["look"]))
    yield from ["## Seconds to the target", ""]
    yield wrapped(TIMES.format(passes=about["passes"], star=EXTRAPOLATED, limit=about["limit"], least=about["least"],
                               whole=about["whole"]))
    head = ["", *(f"{mbit:g} Mbit/s" for mbit in mbits)]
    there = [m["name"] for m in methods if m["target_at"]]
    yield from [*markdown(head, [[name, *(_seconds(found[name, mbit]) for mbit in mbits)] for name in there]), "",
                *(f"- {m['name']} did not reach the target." for m in methods if not m["target_at"])]
    if foretold := sorted(cell.foretold for cell in found.values() if cell.foretold):
        least, most = number(foretold[0]), number(foretold[-1])
        yield wrapped(f"Where a method was stopped in some passes and came to its end in another ({len(foretold)} "
                      f"times), the extrapolated time was {least} to {most} of the whole one, "
                      f"{number(median(foretold))} in the median.")
    yield wrapped(RATIOS.format(ddp=DDP))
    yield from [*markdown(head, [[name, *(_spread(found[name, mbit].faster) for mbit in mbits)] for name in there
                                 if name != DDP]), ""]
    yield from ["## Rounds to the target", "", wrapped(SEARCH), *markdown(*_methods(methods, found, mbits)), ""]
    yield from ["## What one synchronisation costs", "", wrapped(SYNC.format(ring=size * 2 * (HOSTS - 1) / HOSTS))]
    yield from markdown(*_synchronisations([r for r in records if r["kind"] == "sync"], mbits))


def wrapped(text: str) -> str:
    """Return paragraphs in lines of 120 characters at most, with an empty line behind each."""
    return "\n\n".join(fill(p, 120, break_on_hyphens=False) for p in text.split("\n\n")) + "\n"


def _seconds(cell: Cell) -> str:
    return _spread(cell.seconds) + EXTRAPOLATED * (not cell.whole)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    middle, low, high = map(number, (median(values), values[0], values[-1]))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def _methods(methods: Records, found: Mapping[tuple[str, float], Cell], mbits: Sequence[float]) -> Table:
    head = ["", "step size", "rounds", "steps of a host", "MB a round", "same bits"]
    rows = []
    for m in methods:
        mine = [found[m["name"], mbit] for mbit in mbits if (m["name"], mbit) in found]
        hashes = set().union(*(cell.hashes for cell in mine))
        same = "not run to its end" if not hashes else "yes" if hashes == {m["sha256"]} else "no"
        there = m["target_at"]
        rows.append([m["name"], f"{m['lr']:g}", str(there or "-"), str(there * m["steps"] if there else "-"),
                     f"{median(cell.megabytes for cell in mine):.2f}" if mine else "-", same])
    return head, rows


def _synchronisations(records: Records, mbits: Sequence[float]) -> Table:
    head = ["", "ms", "quartiles", "ratio (95 %)", "MB in", "MB out"]
    out = []
    for mbit in mbits:
        mine = [r for r in records if r["mbit"] == mbit]
        single = [{"kind": "round", "name": r["name"], "round": (r["turn"], i), "seconds": lap, "noisy": r["noisy"]}
                  for r in mine for i, lap in enumerate(r["laps"])]
        for row in rows(single, ALL_REDUCE):
            bytes_in, bytes_out = (median(r[way] for r in mine if r["name"] == row.name) / 1e6
                                   for way in ("received", "sent"))
            assert row.ratio
            middle, low, high = map(number, row.ratio)
            out.append([f"{mbit:g} Mbit/s: {row.name}", number(1e3 * row.median),
                        " to ".join(number(1e3 * q) for q in row.quartiles),
                        "1" if row.name == ALL_REDUCE else f"{middle} ({low} to {high})", f"{bytes_in:.2f}",
                        f"{bytes_out:.2f}"])
    return head, out
