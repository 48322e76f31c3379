"""Runs side by side: a table for the terminal, curves as a PNG."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from itertools import accumulate
from pathlib import Path
from typing import Any

from . import human_bytes

Metrics = Sequence[Mapping[str, Any]]  # the lines of a metrics.jsonl
Runs = Sequence[tuple[str, Metrics]]

# Okabe and Ito's colours, which the colour-blind can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")


def table(runs: Runs, colour: bool | None = None) -> str:
    """Return a table that compares runs: rounds, accuracy, losses, bytes and seconds.

    The seconds are those of the rounds, then those that the rounds waited for evaluations, then those
    of evaluations beside them. The best accuracy is among those on the most test samples.
    The best of a column stands out. ``colour`` None means: if standard output is a terminal;
    without it the text is plain Markdown. Columns that no run has are left out.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    colour = sys.stdout is not None and sys.stdout.isatty() if colour is None else colour
    made = Table(box=box.SIMPLE_HEAD if colour else box.MARKDOWN, header_style="bold",
                 padding=(0, 0) if colour else (0, 1))
    made.add_column("run", no_wrap=True)
    rows: list[list[str]] = [[name] for name, _ in runs]
    for title, read, show, best in COLUMNS:
        values = [read(metrics) for _, metrics in runs]
        if all(value is None for value in values):
            continue
        made.add_column(title, justify="right", no_wrap=True)
        finite = [v for v in values if v is not None and math.isfinite(v)]
        for row, value in zip(rows, values, strict=True):
            text = "-" if value is None else show(value)
            winner = best and len(runs) > 1 and finite and value == best(finite)
            row.append(f"[bold green]{text}[/]" if winner and colour else text)
    for row in rows:
        made.add_row(row[0].replace("[", r"\["), *row[1:])
    console = Console(file=StringIO(), force_terminal=colour, width=400,  # never cut; a narrow terminal wraps
                      color_system="standard" if colour else None)
    console.print(made)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines() if line.strip())


def curves(runs: Runs, path: Path) -> None:
    """Draw test accuracy and loss over the rounds and over the bytes sent, both ways, into a PNG.

    The loss is the test loss if there is one, else the training loss; accuracy and bytes only if there
    are any.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = [key for key in ("test_accuracy", "test_loss") if any(_points(m, key)[1] for _, m in runs)]
    if "test_loss" not in keys:
        keys.append("train_loss")
    columns = 2 if any(_total("bytes_up")(m) or _total("bytes_down")(m) for _, m in runs) else 1
    figure = Figure(figsize=(1 + 4.25 * columns, 0.9 + 2.9 * len(keys)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(keys), columns, squeeze=False, sharex="col", sharey="row")
    for row, key in enumerate(keys):
        for column in range(columns):
            _panel(axes[row][column], runs, key, by_bytes=column == 1)
        axes[row][0].set_ylabel({"test_accuracy": "test accuracy (%)", "test_loss": "test loss",
                                 "train_loss": "training loss"}[key])
        _scale(axes[row][0], runs, key)
    axes[-1][0].set_xlabel("communication rounds")
    if columns == 2:
        axes[-1][1].set_xlabel("sent, up and down")
    handles, labels = axes[0][0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def refusals(events: Sequence[Mapping[str, Any]], most: int = 10) -> str:
    """Return a line that says whose updates were refused, how often and why at first; "" if nobody's was.

    ``events`` are those of the ledger. What was refused in rounds that ran again counts once.
    """
    seen = {(e["round"], e["client"], e["why"]): int(e.get("times", 1))
            for e in events if e["event"] == "update refused"}
    counts, why = Counter[int](), dict[int, str]()
    for (_, client, what), times in seen.items():
        counts[client] += times
        why.setdefault(client, what)
    if not counts:
        return ""
    ordered = sorted(counts, key=lambda m: (-counts[m], m))
    named = [f"client {m}: {counts[m]} ({_short(why[m])})" for m in ordered[:most]]
    others = ordered[most:]
    rest = [f"{len(others)} more clients: {sum(counts[m] for m in others)}"] if others else []
    return f"refused updates: {', '.join(named + rest)}"


def _short(text: str, most: int = 120) -> str:
    """Return the first clause of a text, or as much of it as fits."""
    text = text.split(";")[0]
    return text if len(text) <= most else f"{text[:most - 3]}..."


def _panel(axis: Any, runs: Runs, key: str, by_bytes: bool) -> None:
    """Draw one metric of every run."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for i, (name, metrics) in enumerate(runs):
        where, values = _points(metrics, key, by_bytes)
        scale = 100 if key == "test_accuracy" else 1
        axis.plot(where, [scale * v for v in values], LINES[i // len(COLOURS) % len(LINES)], label=name,
                  color=COLOURS[i % len(COLOURS)], linewidth=1.8, marker="o" if len(values) <= 12 else None,
                  markersize=3.5)
    axis.margins(x=0.02)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#888888")
    axis.tick_params(color="#888888")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=not by_bytes))
    if by_bytes:
        axis.xaxis.set_major_formatter(FuncFormatter(lambda n, _: human_bytes(n).replace(".0 ", " ")))


def _scale(axis: Any, runs: Runs, key: str) -> None:
    """Give a loss that spans two decades a logarithmic axis; an accuracy ends at 100 at most."""
    values = [v for _, metrics in runs for v in _points(metrics, key)[1]]
    if key == "test_accuracy":
        axis.set_ylim(top=min(axis.get_ylim()[1], 101))
    elif values and min(values) > 0 and max(values) > 100 * min(values):
        axis.set_yscale("log")


def _points(metrics: Metrics, key: str, by_bytes: bool = False) -> tuple[list[float], list[float]]:
    """Return where a metric was taken (round, or bytes sent so far) and its finite values."""
    sent = accumulate(line.get("bytes_up", 0) + line.get("bytes_down", 0) for line in metrics)
    points = [(total if by_bytes else line["round"], line[key])
              for line, total in zip(metrics, sent, strict=True) if key in line and math.isfinite(line[key])]
    return [where for where, _ in points], [value for _, value in points]


def _last(key: str) -> Callable[[Metrics], float | None]:
    return lambda metrics: next((line[key] for line in reversed(metrics) if key in line), None)


def _best(key: str) -> Callable[[Metrics], float | None]:
    """Read the best value among the evaluations that stand on the most test samples."""
    def best(metrics: Metrics) -> float | None:
        there = [line for line in metrics if key in line]
        most = max((line.get("test_samples", 0) for line in there), default=0)
        return max((line[key] for line in there if line.get("test_samples", 0) == most), default=None)
    return best


def _total(key: str) -> Callable[[Metrics], float | None]:
    def total(metrics: Metrics) -> float | None:
        values = [line[key] for line in metrics if key in line]
        return sum(values) if values else None
    return total


def _seconds(kind: str) -> Callable[[Metrics], float | None]:
    """Read the seconds of one kind; ``rounds`` are all but those of evaluations."""
    def seconds(metrics: Metrics) -> float | None:
        found = [s for line in metrics for name, s in line.get("seconds", {}).items()
                 if name == kind or (kind == "rounds" and name not in ("evaluate", "aside"))]
        return sum(found) if found else None
    return seconds


def _number(value: float) -> str:
    return f"{value:.4g}"


# (title, what is read, how it is shown, which value is best)
COLUMNS: tuple[tuple[str, Callable[[Metrics], float | None], Callable[[float], str], Any], ...] = (
    ("rounds", _last("round"), "{:.0f}".format, None),
    ("accuracy", _last("test_accuracy"), "{:.1%}".format, max),
    ("best", _best("test_accuracy"), "{:.1%}".format, max),
    ("test loss", _last("test_loss"), _number, min),
    ("tested on", _last("test_samples"), "{:.0f}".format, None),
    ("train loss", _last("train_loss"), _number, min),
    ("up", _total("bytes_up"), human_bytes, min),
    ("down", _total("bytes_down"), human_bytes, min),
    ("seconds", _seconds("rounds"), "{:.1f}".format, min),
    ("evaluation", _seconds("evaluate"), "{:.1f}".format, min),
    ("aside", _seconds("aside"), "{:.1f}".format, None),
)
