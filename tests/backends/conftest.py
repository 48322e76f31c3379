"""What the tests of strangers share: a store that soon loses patience with them, and what it said of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from backends.rendezvous import TOKEN

from fedlearn.backends.torchrun.serve import Server
from fedlearn.backends.torchrun.store import serve


@pytest.fixture
def lines() -> list[str]:
    """What the store logged."""
    return []


@pytest.fixture
def server(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A store that serves on loopback."""
    monkeypatch.setattr("fedlearn.backends.torchrun.serve.PATIENCE", 0.4)
    server = serve(TOKEN, timeout=10, log=lines.append)
    yield server
    server.close()
