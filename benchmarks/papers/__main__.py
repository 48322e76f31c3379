"""Reproduce the results of papers: `python -m benchmarks.papers R1a R4b`, or all of them; D1, D2, ... on real data.

Prints for each a table beside the expected figures and whether its criteria hold, with 95% intervals over the seeds,
and writes docs/results/papers.md with a plot of each.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .paper import SEEDS, About, Result

HERE = Path(__file__).parent
OUT = HERE.parents[1] / "docs" / "results" / "papers"


def found() -> dict[str, Any]:
    """Return id -> module of every reproduction, in the order of the ids, those on real data last."""
    paths = [path for path in sorted(HERE.glob("[rd]*.py")) if re.match(r"[rd]\d", path.stem)]
    named = {module.ABOUT.id: module for module in (import_module(f"{__package__}.{path.stem}") for path in paths)}
    return dict(sorted(named.items(), key=lambda item: (item[0][0] != "R", int(re.sub(r"\D", "", item[0])), item[0])))


def main() -> int:
    """Run the asked reproductions; exit with 1 if a criterion does not hold."""
    modules = found()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.papers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"some of {', '.join(modules)}; without: all R")
    parser.add_argument("--data", action="store_true", help="without an ID: those on real data (D), too")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds of each ({SEEDS})")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of results and plots (docs/results/papers)")
    args = parser.parse_args()
    wrong = [name for name in args.ids if name not in modules]
    if wrong or args.seeds < 2:
        parser.error(f"found {wrong[0]!r}; allowed: {', '.join(modules)}" if wrong else "--seeds must be at least 2")
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    summary = []
    for name in args.ids or [name for name in modules if args.data or name.startswith("R")]:
        about = modules[name].ABOUT
        print(f"\n{name}: {about.claim}\n{' ' * len(name)}  {about.paper}", flush=True)
        began = time.perf_counter()
        result = modules[name].reproduce(args.seeds)
        seconds = time.perf_counter() - began
        print(table(result.columns, result.rows))
        print(verdicts(result), f"\n  {seconds:.1f} s", sep="", flush=True)
        plot(about, result, args.out / f"{name}.png")
        (args.out / f"{name}.json").write_text(json.dumps(record(about, result, args.seeds), indent=1) + "\n")
        summary.append((name, about, result, seconds))
    print("\n" + overview(summary))
    write(args.out)
    return int(not all(c.holds for _, _, result, _ in summary for c in result.criteria))


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


def overview(summary: Any) -> str:
    """Return one line for each reproduction and criterion."""
    rows = [(name if i == 0 else "", "holds" if c.holds else "falls short", c.says, str(c.found),
             f"{seconds:.1f} s" if i == 0 else "")
            for name, _, result, seconds in summary for i, c in enumerate(result.criteria)]
    return table(("result", "", "criterion", "found", "time"), rows)


def record(about: About, result: Result, seeds: int) -> dict[str, Any]:
    """Return what is kept of a result as JSON."""
    return {"id": about.id, "claim": about.claim, "paper": about.paper, "seeds": seeds, "columns": list(result.columns),
            "rows": [[entry(c) for c in row] for row in result.rows],
            "criteria": [{"says": c.says, "found": str(c.found), "holds": c.holds} for c in result.criteria],
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
                 f"{r['seeds']} seeds.", "", "| " + " | ".join(r["columns"]) + " |", "|---" * len(r["columns"]) + "|",
                 *("| " + " | ".join(row) + " |" for row in r["rows"]), "", f"![{r['id']}]({out.name}/{r['id']}.png)"]
        if r["finding"]:
            text += ["", r["finding"]]
    (out.parent / f"{out.name}.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    sys.exit(main())
