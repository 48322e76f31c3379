"""A partition to look at: counts per client and class, as a table and as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from .store import ClientStore, DatasetStore

WHOLE = 20  # the most clients whose rows are all shown
WIDE = 20  # the most classes that get a column each
ORDERED = 100  # the most clients that a heat map shows in the order of their ids
CELL_TEXT = 300  # the most cells of a heat map with their numbers in them


def counts(store: ClientStore | DatasetStore, classes: int) -> np.ndarray:
    """Return the labels per client and class, int64 [clients, classes].

    Of sequences every position counts.

    Raises:
        DataError: if the labels are not classes from 0 to classes - 1, naming the client.
    """
    table = np.zeros((len(store), classes), dtype=np.int64)
    for m in range(len(store)):
        y = store.client(m)[1].numpy().reshape(-1)
        if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= classes:
            raise DataError(f"client {m}: found labels from {y.min()} to {y.max()} of type {y.dtype}; "
                            f"allowed: whole numbers from 0 to {classes - 1}.")
        table[m] = np.bincount(y, minlength=classes)
    return table


def counts_table(counts: np.ndarray, names: Sequence[str] | None = None) -> str:
    """Return ``counts`` [clients, classes] as text; with many clients a summary and the extremes.

    ``names`` are those of the clients.
    """
    clients, classes = counts.shape
    sizes, present = counts.sum(axis=1), (counts > 0).sum(axis=1)
    top = counts.max(axis=1) / np.maximum(sizes, 1)
    lines = [f"{clients:,} clients, {sizes.sum():,} labels, {classes} classes"]
    if clients > WHOLE:
        lines += ["", f"{'':28}{'least':>9}{'quarter':>9}{'median':>9}{'3/4':>9}{'most':>9}",
                  _quantiles("labels per client", sizes, "{:,.0f}"),
                  _quantiles("classes per client", present, "{:,.0f}"),
                  _quantiles("share of its main class", top, "{:.0%}")]
        by_size = np.argsort(-sizes, kind="stable")
        blocks = [("largest", by_size[: WHOLE // 2]), ("smallest", by_size[-(WHOLE // 2):])]
    else:
        blocks = [("", np.arange(clients))]
    rows = np.concatenate([block for _, block in blocks])
    width = max([6, *(min(len(_name(m, names)), 40) for m in rows)])
    cells = max([5, *(len(f"{n:,}") + 2 for n in counts.sum(axis=0))])
    header = f"{'client':<{width}}{'labels':>10}{'classes':>9}{'main':>10}"
    if classes <= WIDE:
        header += "  " + "".join(f"{c:>{cells}}" for c in range(classes))
    for title, block in blocks:
        lines += ["", *([f"the {len(block)} {title} clients"] if title else []), header]
        for m in block:
            main = f"{counts[m].argmax()}: {top[m]:.0%}"
            line = f"{_name(m, names)[:40]:<{width}}{sizes[m]:>10,}{present[m]:>9}{main:>10}"
            if classes <= WIDE:
                line += "  " + "".join(f"{n or '.':>{cells}}" for n in counts[m])
            lines.append(line)
    total = f"{'all':<{width}}{sizes.sum():>10,}{(counts.sum(axis=0) > 0).sum():>9}{'':>10}"
    if classes <= WIDE:
        total += "  " + "".join(f"{n:>{cells}}" for n in counts.sum(axis=0))
    return "\n".join([*lines, "", total])


def heat_map(counts: np.ndarray, path: str | Path, title: str) -> None:
    """Draw ``counts`` [clients, classes] as a PNG: clients across, classes up, sizes above.

    The colours are logarithmic where the counts span more than a factor of 20. More than 100 clients
    are ordered by their main class, then by size, so that the structure shows.
    """
    # Figure instead of pyplot: no display, no global state. Imported here: it takes half a second.
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap, LogNorm, Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    clients, classes = counts.shape
    if clients > ORDERED:
        counts = counts[np.lexsort((-counts.sum(axis=1), counts.argmax(axis=1)))]
    sizes = counts.sum(axis=1)
    positive = counts[counts > 0]
    logarithmic = positive.size > 0 and positive.max() > 20 * positive.min()
    norm = LogNorm(1, positive.max()) if logarithmic else Normalize(0, max(1, counts.max()))
    figure = Figure(figsize=(10 if clients <= 200 else 14, 5.5 if classes <= 40 else 8), layout="constrained")
    FigureCanvasAgg(figure)
    bars, cells = figure.subplots(2, 1, sharex=True, height_ratios=[1, 4])

    bars.bar(np.arange(clients), sizes, width=0.8 if clients <= 60 else 1.0, color="#4c6a92", linewidth=0)
    bars.set_ylabel("labels")
    bars.spines[["top", "right"]].set_visible(False)
    bars.set_title(f"{title}\n", loc="left", fontsize=13, fontweight="bold")
    spread = f"per client {sizes.min():,} to {sizes.max():,}, median {np.median(sizes):,.0f}"
    bars.text(0, 1.06, f"{clients:,} clients, {sizes.sum():,} labels; {spread}", transform=bars.transAxes,
              fontsize=10, color="#555555")

    colours = ListedColormap(colormaps["YlGnBu"](np.linspace(0.2, 1, 256)))  # its palest look like none
    image = cells.imshow(np.ma.masked_equal(counts.T, 0), aspect="auto", interpolation="nearest",
                         origin="lower", cmap=colours, norm=norm)
    cells.set_xlabel("client" if clients <= ORDERED else "clients, ordered by main class and size")
    cells.set_ylabel("class")
    cells.xaxis.set_major_locator(MaxNLocator("auto" if clients > 20 else clients, integer=True))
    cells.yaxis.set_major_locator(MaxNLocator("auto" if classes > 20 else classes, integer=True))
    if counts.size <= CELL_TEXT and clients <= 30:
        for (m, c), n in np.ndenumerate(counts):
            if n:
                cells.text(m, c, f"{n}", ha="center", va="center", fontsize=8,
                           color="white" if norm(n) > 0.5 else "black")
    figure.colorbar(image, ax=cells, label="labels (log scale)" if logarithmic else "labels", pad=0.01,
                    format="{x:,.0f}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")


def _name(m: int, names: Sequence[str] | None) -> str:
    return str(m) if names is None else f"{m} {names[m]}"


def _quantiles(what: str, values: np.ndarray, form: str) -> str:
    quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    return f"{what:28}" + "".join(f"{form.format(q):>9}" for q in quantiles)
