"""The raw measurements as a table and a picture; ``python -m benchmarks.speed.report DIR`` draws them anew."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed import bars
from benchmarks.speed.contestants import BARE, MINE
from benchmarks.speed.summary import Row, number, ratio, rows

Records = Sequence[Mapping[str, Any]]
Cells = list[list[str]]
QUIET = "measured while other processes were busy"
MEANING = """Every contestant is a process of its own and reads the same prepared arrays: splits, cohorts, batch order,
initial weights. Rounds take turns: five rounds of every contestant, then the next five (one by one where few are
timed, because they take seconds). A *round* is one communication round without evaluation; the first rounds are not
timed. *Ratio* is the median time over bare PyTorch's, with a 95 % bootstrap interval over rounds. *Difference* is the
largest absolute difference of the final weights from bare PyTorch's; other algorithms than FedAvg end elsewhere.
(Through ReLU and max pooling a difference in the last bit grows: on W2 from 1e-8 after one round to 1e-4 after the
next, for every contestant.) *Memory* is the largest anonymous and shared memory of all processes of the contestant
together, between rounds; *mapped* are the pages of files that they have in memory, libraries and data, which the
system takes back when it needs room (pages that several processes share count once in both). *Start* is from the
shell to the first round."""


def load(folder: Path) -> list[dict[str, Any]]:
    """Return the records of speed.jsonl."""
    with (folder / "speed.jsonl").open() as file:
        return [json.loads(line) for line in file]


def write(folder: Path) -> str:
    """Write speed.md and speed.png beside speed.jsonl and return the text."""
    records = load(folder)
    races = _races(records)
    (machine,) = (r for r in records if r["kind"] == "machine")
    lines = ["# Speed", "", f"Made by `{machine['command']}`; raw measurements in [speed.jsonl](speed.jsonl).", "",
             *_machine(machine, records), ""]
    timed = [r for r in records if r["kind"] == "round"]
    noisy = sum(r["noisy"] for r in timed)
    if noisy > 0.1 * len(timed):
        lines += [f"> **Not to be relied on**: {noisy} of {len(timed)} timed rounds were {QUIET}.", ""]
    lines += [MEANING, "", "## Bars", "", bars.MEANING, "", *markdown(bars.HEAD, bars.cells(races)), ""]
    drawn = []
    for race, mine in races.items():
        about = next(r for r in mine if r["kind"] == "race")
        lines += [f"## {about['title']}", "", about["about"], ""]
        table = rows(mine, about["reference"])
        if about["table"] == "phases":
            lines += [*markdown(*_phases(mine)), ""]
        if table:
            head, cells = TABLES[about["table"]](table, mine)
            lines += [*markdown(head, cells), ""]
            if about["table"] in ("rounds", "whole"):
                drawn.append((race, table))
                lines += _against_peers(mine)
        for skipped in (r for r in mine if r["kind"] == "skipped"):
            lines.append(f"- {skipped['name']} was left out: {skipped['reason']}")
        lines.append("")
    if drawn:
        picture(drawn, folder / "speed.png")
        lines += ["![time over bare PyTorch](speed.png)", ""]
    text = "\n".join(lines)
    (folder / "speed.md").write_text(text, encoding="utf-8")
    return text


def _races(records: Records) -> dict[str, list[Mapping[str, Any]]]:
    races: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if "race" in record:
            races.setdefault(record["race"], []).append(record)
    return races


def _machine(machine: Mapping[str, Any], records: Records) -> list[str]:
    versions: dict[str, set[str]] = {}
    for record in records:
        for name, version in record.get("versions", {}).items():
            versions.setdefault(name, set()).add(version)
    said = ", ".join(f"{name} {'/'.join(sorted(v))}" for name, v in sorted(versions.items()))
    return [f"- machine: {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
            f"{machine['system']}", f"- date: {machine['date']}; commit {machine['commit']}",
            f"- versions: Python {machine['python']}, {said}"]


def _rounds(table: Sequence[Row], records: Records) -> tuple[list[str], Cells]:
    head = ["contestant", "ms/round", "quartiles", "ratio (95 %)", "accuracy", "difference", "memory MB", "mapped MB",
            "start s", "noisy"]
    cells = [[row.name, number(1e3 * row.median), " to ".join(number(1e3 * q) for q in row.quartiles),
              _ratio(row.ratio), _or(row.accuracy, "{:.4f}"), _or(row.difference, "{:.0e}"), _or(row.memory, "{:.0f}"),
              _or(row.mapped, "{:.0f}"), _or(row.start, "{:.1f}"), f"{row.noisy}/{row.rounds}"] for row in table]
    return head, cells


def _whole(table: Sequence[Row], records: Records) -> tuple[list[str], Cells]:
    head = ["contestant", "s", "quartiles", "ratio (95 %)", "accuracy", "difference", "noisy"]
    cells = [[row.name, f"{row.median:.2f}", " to ".join(f"{q:.2f}" for q in row.quartiles), _ratio(row.ratio),
              _or(row.accuracy, "{:.4f}"), _or(row.difference, "{:.0e}"), f"{row.noisy}/{row.rounds}"] for row in table]
    return head, cells


def _growth(table: Sequence[Row], records: Records) -> tuple[list[str], Cells]:
    head = ["", "ms/round", "quartiles", "ratio (95 %)", "memory MB", "mapped MB", "start s", "noisy"]
    cells = [[row.name, number(1e3 * row.median), " to ".join(number(1e3 * q) for q in row.quartiles),
              _ratio(row.ratio), _or(row.memory, "{:.0f}"), _or(row.mapped, "{:.0f}"), _or(row.start, "{:.1f}"),
              f"{row.noisy}/{row.rounds}"] for row in table]
    return head, cells


def _phases(records: Records) -> tuple[list[str], Cells]:
    """Return the shares of the profiled rounds by phase, a column for each workload."""
    shares = {r["name"]: r["shares"] for r in records if r["kind"] == "profile"}
    order = sorted({p for s in shares.values() for p in s}, key=lambda p: -max(s.get(p, 0) for s in shares.values()))
    return ["phase", *shares], [[p, *(f"{s.get(p, 0):.1%}" for s in shares.values())] for p in order]


TABLES = {"rounds": _rounds, "whole": _whole, "growth": _growth}


def _against_peers(records: Records) -> list[str]:
    """Say how fedlearn stands to the fastest peer and to Flower: by default, at its best, at its best in bf16."""
    times: dict[str, dict[int, float]] = {}
    for r in records:
        if r["kind"] == "round":
            times.setdefault(r["name"], {})[r["round"]] = r["seconds"]
    median = {row.name: row.median for row in rows(records, BARE)}
    others = [name for name in median if not name.startswith((MINE, BARE))]
    # FedAvg only: whose final weights were compared.
    mine = [r["name"] for r in records if r["kind"] == "final" and "difference" in r and r["name"].startswith(MINE)]
    if not others or not mine:
        return []
    fastest = min(others, key=median.__getitem__)
    kinds = ([n for n in mine if n == MINE], [n for n in mine if "precision" not in n],
             [n for n in mine if "precision" in n])
    lines = []
    for name in dict.fromkeys(min(kind, key=median.__getitem__) for kind in kinds if kind):
        against = [f"{_ratio(ratio(times[other], times[name]))} times as fast as {other}"
                   + (" (the fastest peer)" if other == fastest else "")
                   for other in dict.fromkeys([fastest, *(o for o in others if o.startswith("Flower"))])]
        lines.append(f"- {name}: {'; '.join(against)}")
    return [*lines, ""]


def _ratio(r: tuple[float, float, float] | None) -> str:
    return "-" if r is None else f"{number(r[0])} ({number(r[1])} to {number(r[2])})"


def _or(x: float | None, form: str) -> str:
    return "-" if x is None else form.format(x)


def markdown(head: Sequence[str], cells: Iterable[Sequence[str]]) -> list[str]:
    """Return a table that also reads well as plain text."""
    everything = [list(head), *map(list, cells)]
    wide = [max(len(row[i]) for row in everything) for i in range(len(head))]
    first, *rest = ("| " + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in
                                      enumerate(zip(row, wide, strict=True))) + " |" for row in everything)
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(wide)) + "|"
    return [first, rule, *rest]


def picture(races: Sequence[tuple[str, Sequence[Row]]], path: Path) -> None:
    """Draw the speed of every contestant relative to bare PyTorch, one panel per workload."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    tallest = max(len(table) for _, table in races)
    figure, axes = plt.subplots(1, len(races), figsize=(1 + 4.2 * len(races), 1.2 + 0.34 * tallest), squeeze=False,
                                layout="constrained")
    for axis, (name, table) in zip(axes[0], races, strict=True):
        for i, row in enumerate(reversed([row for row in table if row.ratio])):
            assert row.ratio
            middle, low, high = (1 / x for x in row.ratio)
            colour = "tab:orange" if row.name.startswith(MINE) else "0.35" if row.name.startswith(BARE) else "tab:blue"
            axis.errorbar(middle, i, xerr=[[max(middle - high, 0)], [max(low - middle, 0)]], fmt="o", color=colour,
                          capsize=2)
            axis.annotate(row.name, (middle, i), (0, 6), textcoords="offset points", fontsize=7, ha="center",
                          color=colour)
        axis.axvline(1, color="0.8", zorder=0)
        axis.set(xscale="log", title=name, xlabel="speed over bare PyTorch (to the right is faster)", yticks=[],
                 ylim=(-0.6, tallest - 0.2))
        axis.margins(x=0.25)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}x")
        axis.xaxis.set_minor_formatter(NullFormatter())
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/results")))
