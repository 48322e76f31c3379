"""Which reproductions there are, how one is run, and how its result is printed, drawn and kept."""

from __future__ import annotations

import json
import re
import textwrap
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .paper import About, Result

HERE = Path(__file__).parent


def found() -> dict[str, Any]:
    """Return id -> module of every reproduction, in the order of the ids, those on real data last."""
    paths = [path for path in sorted(HERE.glob("[rd]*.py")) if re.match(r"[rd]\d", path.stem)]
    named = {module.ABOUT.id: module for module in (import_module(f"{__package__}.{path.stem}") for path in paths)}
    return dict(sorted(named.items(), key=lambda item: (item[0][0] != "R", int(re.sub(r"\D", "", item[0])), item[0])))


def one(name: str, seeds: int, out: Path) -> tuple[str, dict[str, Any]]:
    """Reproduce one result, write its record and its plot, and return what to print and the record."""
    torch.set_num_threads(1)
    module = found()[name]
    about = module.ABOUT
    began = time.perf_counter()
    result = module.reproduce(seeds)
    kept = record(about, result, seeds, round(time.perf_counter() - began, 1))
    plot(about, result, out / f"{name}.png")
    (out / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    head = f"\n{name}: {about.claim}\n{' ' * len(name)}  {about.paper}"
    return "\n".join([head, table(result.columns, result.rows), verdicts(result), f"  {kept['seconds']} s"]), kept


def seconds_before(path: Path) -> float:
    """Return how long a reproduction took when it was last recorded; one that was not counts as long."""
    return float(json.loads(path.read_text()).get("seconds", "inf")) if path.exists() else float("inf")


def table(columns: Any, rows: Any) -> str:
    """Return rows as aligned text."""
    cells = [[str(c) for c in columns], *([entry(c) for c in row] for row in rows)]
    wide = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return "\n".join("  " + "  ".join(f"{c:<{w}}" for c, w in zip(row, wide, strict=True)).rstrip() for row in cells)


def entry(value: Any) -> str:
    """Return a cell as text: numbers with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def verdicts(result: Result) -> str:
    """Return the criteria, one line each, and the finding."""
    lines = [f"  {'holds      ' if c.holds else 'falls short'}  {c.says}: {c.found}" for c in result.criteria]
    if result.finding:
        lines += textwrap.wrap(result.finding, 116, initial_indent="  finding: ", subsequent_indent="  ")
    return "\n".join(lines)


def overview(records: Sequence[dict[str, Any]]) -> str:
    """Return one line for each reproduction and criterion."""
    rows = [(r["id"] if i == 0 else "", "holds" if c["holds"] else "falls short", c["says"], c["found"],
             f"{r['seconds']} s" if i == 0 else "") for r in records for i, c in enumerate(r["criteria"])]
    return table(("result", "", "criterion", "found", "time"), rows)


def record(about: About, result: Result, seeds: int, seconds: float) -> dict[str, Any]:
    """Return what is kept of a result as JSON."""
    return {"id": about.id, "claim": about.claim, "paper": about.paper, "seeds": seeds, "seconds": seconds,
            "columns": list(result.columns), "rows": [[entry(c) for c in row] for row in result.rows],
            "criteria": [{"says": c.says, "found": str(c.found), "holds": bool(c.holds)} for c in result.criteria],
            "finding": result.finding}


def plot(about: About, result: Result, path: Path) -> None:
    """Draw a result into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    result.draw(axes)
    axes.set_title("\n".join(textwrap.wrap(f"{about.id}: {about.claim}", 70)), fontsize=10)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def write(out: Path) -> None:
    """Write papers.md beside the folder, from the records of all results that are there."""
    records = [json.loads((out / f"{name}.json").read_text()) for name in found() if (out / f"{name}.json").exists()]
    text = ["# Results of papers, reproduced", "",
            "Made by `make papers`: every training run goes through `fedlearn.run`. Intervals are 95% over the seeds.",
            "", "| | criterion | found | |", "|---|---|---|---|"]
    for r in records:
        text += [f"| [{r['id']}](#{r['id'].lower()}) | {c['says']} | {c['found']} | "
                 f"{'holds' if c['holds'] else '**falls short**'} |" for c in r["criteria"]]
    for r in records:
        text += ["", f"## {r['id']}", "", f"{r['claim']} {r['paper']} `python -m benchmarks.papers {r['id']}`, "
                 f"{r['seeds']} seeds, {r['seconds']:.0f} s.", "",
                 "| " + " | ".join(r["columns"]) + " |", "|---" * len(r["columns"]) + "|",
                 *("| " + " | ".join(row) + " |" for row in r["rows"]), "", f"![{r['id']}]({out.name}/{r['id']}.png)"]
        if r["finding"]:
            text += ["", r["finding"]]
    (out.parent / f"{out.name}.md").write_text("\n".join(text) + "\n")
