"""The clients whose updates were refused in a run: how often each, and who is not asked again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ClientError, FedlearnError


class Refused:
    """Counts refusals by client; with ``on_bad_update=drop`` whoever was refused is not asked again in the run."""

    def __init__(self, policy: str) -> None:
        self.drop = policy == "drop"
        self.counts: dict[int, int] = {}

    def note(self, errors: Iterable[ClientError]) -> None:
        """Count what was refused."""
        for e in errors:
            self.counts[e.client] = self.counts.get(e.client, 0) + 1

    def asked(self, client: int) -> bool:
        """Say whether a client that was sampled is asked."""
        return not (self.drop and client in self.counts)

    @property
    def dropped(self) -> int:
        """How many clients are not asked again."""
        return len(self.counts) if self.drop else 0

    def check(self, clients: int, round: int) -> None:
        """Check that somebody is left to be asked.

        Raises:
            FedlearnError: if every client was dropped.
        """
        if self.dropped >= clients:
            raise FedlearnError(f"round {round}: all {clients} clients were dropped, each for a bad update "
                                "(on_bad_update=drop); the ledger's events say why")

    def snapshot(self) -> dict[str, Any]:
        """Return the counts as JSON can hold them; nothing where nobody was refused."""
        return {"refused": {str(m): n for m, n in self.counts.items()}} if self.counts else {}

    def restore(self, meta: Mapping[str, Any]) -> None:
        """Continue from a snapshot."""
        self.counts = {int(m): int(n) for m, n in meta.get("refused", {}).items()}
