"""Lines of strict JSON in a file: each there as a whole, or not at all.

JSON has no NaN and no infinity: they are written as texts, and become floats again when they are read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FedlearnError

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _plain(value: Any) -> Any:
    """Return what strict JSON can hold: scalars of NumPy and torch unwrapped, non-finite numbers as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _restored(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_restored(child) for child in value]
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def dumps(line: Mapping[str, Any]) -> str:
    """Return a line of strict JSON."""
    return json.dumps(_plain(line), allow_nan=False) + "\n"


def write_lines(path: Path, data: bytes) -> None:
    """Add whole lines to a file: all of them, or, where there is no room for them, nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end and (file.seek(end - 1), file.read(1))[1] != b"\n":
            file.seek(0)
            end = file.readall().rfind(b"\n") + 1
            file.truncate(end)  # what a killed writer began
        try:
            while data:
                data = data[file.write(data):]
        except OSError:
            file.truncate(end)
            raise


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file, none where there is no file.

    Raises:
        FedlearnError: if one is not JSON about a round or an event, naming it.
    """
    data = path.read_bytes() if path.exists() else b""
    lines = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):  # the last part is empty, or was cut short
        try:
            read = _restored(json.loads(line))
        except (ValueError, RecursionError):
            read = None
        if not isinstance(read, dict) or not ("event" in read or type(read.get("round")) is int):
            raise FedlearnError(f"{path}, line {number}: found {line[:40]!r}, which is not JSON about a round or an "
                                "event; remove this line, or put the file back from a copy")
        lines.append(read)
    return lines
