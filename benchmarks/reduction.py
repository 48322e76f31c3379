"""What the exact sum costs and what it buys, against the fast one: ``python -m benchmarks.reduction``.

For each model size both sums take in the same uploads of ten clients, interleaved, and the ratio of the
medians is reported. The error is the largest deviation from the sum in exact arithmetic, and
"orders" how many different results ten orders of arrival gave.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table

from fedlearn.reducers.exact import ExactSum
from fedlearn.reducers.fast import FastSum
from fedlearn.vectors import digest

CLIENTS = 10
LARGE = 2 * 10**7  # parameters from which all clients send the same upload, and only times are measured
BYTES = 50  # that one parameter takes at most there: upload, sum in two limbs, result and what they are made from


def take(kind: type[ExactSum] | type[FastSum], uploads: list[torch.Tensor], order: list[int]) -> torch.Tensor:
    """Return the sum of the uploads, taken in an order."""
    total = kind()
    for m in order:
        total.add({"dx": uploads[m]}, {"dx": 1.0}, m, 0)
    return total.mean({"dx": 1.0})["dx"]


def measure(parameters: int, dtype: torch.dtype, repeats: int) -> tuple[str, ...]:
    """Return a row of the table: times per client and upload, their ratio with spread, errors, orders."""
    generator = torch.Generator().manual_seed(0)
    different = CLIENTS if parameters < LARGE else 1
    uploads = [torch.randn(parameters, generator=generator, dtype=dtype).mul_(0.01) for _ in range(different)]
    uploads *= CLIENTS // different
    forward = list(range(CLIENTS))
    seconds: dict[type, list[float]] = {ExactSum: [], FastSum: []}
    for _ in range(repeats):
        for kind, times in seconds.items():
            began = perf_counter()
            take(kind, uploads, forward)
            times.append((perf_counter() - began) / CLIENTS)
    ratios = sorted(a / b for a, b in zip(seconds[ExactSum], seconds[FastSum], strict=True))
    cells = [f"{parameters:,}", str(dtype).removeprefix("torch."), f"{1e3 * median(seconds[ExactSum]):.3f}",
             f"{1e3 * median(seconds[FastSum]):.3f}",
             f"{median(seconds[ExactSum]) / median(seconds[FastSum]):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"]
    if different < CLIENTS:
        return *cells, "-", "-", "-", "-"
    # Splitting a float in two halves of the mantissa makes the float64 sums of each half exact.
    wide = [u.double() for u in uploads]
    coarse = [(u * 2.0**30).round() / 2.0**30 for u in wide]
    true = torch.stack(coarse).sum(0) + torch.stack([u - c for u, c in zip(wide, coarse, strict=True)]).sum(0)
    for kind in (ExactSum, FastSum):
        orders = [torch.randperm(CLIENTS, generator=generator).tolist() for _ in range(10)]
        results = [take(kind, uploads, order) for order in orders]
        error = max(float((x.double() - true).abs().max()) for x in results)
        cells += [f"{error:.1e}", str(len({digest(x) for x in results}))]
    return tuple(cells)


def available() -> int:
    """Return the memory in bytes that processes can still get."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7], metavar="P")
    parser.add_argument("--large", action="store_true", help="also 10^8 parameters, times only (5 GB of memory)")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title=f"Summing the uploads of {CLIENTS} clients, one thread")
    for name in ("parameters", "dtype", "exact ms/client", "fast ms/client", "ratio (range)", "exact error",
                 "exact orders", "fast error", "fast orders"):
        table.add_column(name, justify="right")
    for size in [*args.sizes, *([10**8] if args.large else [])]:
        if size >= LARGE and (free := available()) < size * BYTES:
            parser.error(f"found {free / 1e9:.1f} GB of free memory; {size:,} parameters take {size * BYTES / 1e9:.1f}")
        for dtype in (torch.float32, torch.float64):
            table.add_row(*measure(size, dtype, args.repeats))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
