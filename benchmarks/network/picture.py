"""The picture: seconds to the target by the speed of the links, one line for each method, legible on light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.network.plan import DDP

if TYPE_CHECKING:
    from benchmarks.network.report import Cell

INK = "#7d8590"     # of text and axes: about as far from white as from black
COLOURS = {DDP: "#e5534b", "Local SGD, K=1": "#79b3f2", "Local SGD, K=4": "#5199ea", "Local SGD, K=16": "#317fdc",
           "Local SGD, K=64": "#1f66c1", "DiLoCo, K=64": "#2da44e", "Local AC-SA, K=16": "#bf8418"}
OTHER = "#a371f7"
APART = 0.16        # between labels, in decades


def draw(records: Sequence[Mapping[str, Any]], cells: Mapping[tuple[str, float], Cell], path: Path) -> None:
    """Draw the methods that have a label; a white point was extrapolated."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullLocator

    about = next(r for r in records if r["kind"] == "machine")
    mbits = sorted({mbit for _, mbit in cells})
    style = {"svg.fonttype": "path", "svg.hashsalt": "fedlearn", "font.family": "DejaVu Sans", "font.size": 11,
             "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK}
    with plt.rc_context(style):
        figure, axis = plt.subplots(figsize=(9.2, 5.2), layout="constrained")
        ends = {}
        for method in (r for r in records if r["kind"] == "method" and r["label"]):
            mine = [(mbit, cells[method["name"], mbit]) for mbit in mbits if (method["name"], mbit) in cells]
            if not mine:
                continue
            colour, bold = COLOURS.get(method["name"], OTHER), method["name"] == DDP
            times = [median(cell.seconds) for _, cell in mine]
            axis.plot([mbit for mbit, _ in mine], times, color=colour, linewidth=4.5 if bold else 2.2,
                      zorder=3 if bold else 2, solid_capstyle="round")
            for (mbit, cell), seconds in zip(mine, times, strict=True):
                axis.plot(mbit, seconds, "o", markersize=9 if bold else 6.5, markeredgewidth=2, zorder=4,
                          markeredgecolor=colour, markerfacecolor=colour if cell.whole else "white")
            over = "" if bold or not mine[0][1].faster else f"   {median(mine[0][1].faster):.2g}x"
            ends[method["label"] + over] = times[0], colour, bold
        for label, (level, (seconds, colour, bold)) in zip(ends, _apart(ends), strict=True):
            axis.annotate(label, (mbits[0], seconds), (mbits[0] / 1.22, 10**level), color=colour, ha="right",
                          va="center", fontsize=12 if bold else 11, fontweight="bold" if bold else "normal",
                          arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "alpha": 0.6,
                                      "shrinkA": 1, "shrinkB": 4})
        axis.set(xscale="log", yscale="log", xticks=mbits, xlim=(mbits[0] / 6.8, mbits[-1] * 1.25),
                 xlabel="link of each of three hosts, Mbit/s")
        axis.set_title(f"Seconds to a test loss of {about['problem']['target']:.2f}", loc="left", fontsize=14,
                       fontweight="bold", color=INK, pad=12)
        axis.set_title(f"x: times as fast as DDP at {mbits[0]:g} Mbit/s;  white points: extrapolated", loc="right",
                       fontsize=9, color=INK, pad=12)
        axis.xaxis.set_minor_locator(NullLocator())
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.grid(axis="y", which="major", color=INK, alpha=0.28, linewidth=0.8)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="both", which="both", length=0)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(figure)


def _apart(ends: Mapping[str, tuple[float, str, bool]]) -> list[tuple[float, tuple[float, str, bool]]]:
    """Return for every line's label its height, as a logarithm, so that no two overlap, and what it belongs to."""
    from math import log10

    order = sorted(ends, key=lambda label: ends[label][0])
    heights = [log10(ends[label][0]) for label in order]
    for _ in range(200):    # neighbours that are too near push each other away
        for i in range(len(heights) - 1):
            if (gap := APART - (heights[i + 1] - heights[i])) > 1e-6:
                heights[i] -= gap / 2
                heights[i + 1] += gap / 2
    level = dict(zip(order, heights, strict=True))
    return [(level[label], ends[label]) for label in ends]
