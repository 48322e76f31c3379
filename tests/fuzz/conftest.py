"""How many damaged inputs a test makes, and what notices if one of them is executed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

QUICK, FULL = 500, 10_000


@pytest.fixture(params=[QUICK, pytest.param(FULL, marks=pytest.mark.slow)])
def examples(request: pytest.FixtureRequest) -> int:
    """The number of inputs."""
    return request.param


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the system has one: on a disk, writing takes longer than all the reading."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="fedlearn-fuzz-") as folder:
        yield Path(folder)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that appears if anything is executed: in an own folder, with modules and commands that would make it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    mark = tmp_path / "executed"
    (tmp_path / "canary.py").write_text(f"open({str(mark)!r}, 'w').close()\ndef sing(*_, **__): pass\n")
    yield mark
    assert not mark.exists(), "something that was read has been executed"
