"""What the tests of backends share: a look at what a test leaves behind."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def children() -> set[int]:
    """Return the live direct children of this process (Linux)."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.add(int(stat.parent.name))
    return found


@pytest.fixture
def tidy() -> Iterator[None]:
    """Fail a test that leaves a child process or a temporary folder."""
    temporary = Path(tempfile.gettempdir())
    before = children(), set(temporary.glob("fedlearn-*"))
    yield
    deadline = time.monotonic() + 5
    while (left := (children() - before[0], set(temporary.glob("fedlearn-*")) - before[1])) != (set(), set()):
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: processes {left[0]}, folders {left[1]}")
        time.sleep(0.05)
