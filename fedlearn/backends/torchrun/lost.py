"""The end of a group of ranks, as one of them sees it."""

from __future__ import annotations

from collections.abc import Sequence


class Lost(Exception):
    """A group that cannot go on; ``ranks`` are those that it was lost with, where they are known.

    ``own`` says that it was lost by this very rank.
    """

    def __init__(self, what: str, ranks: Sequence[int] = (), own: bool = False) -> None:
        super().__init__(what)
        self.ranks, self.own = list(ranks), own

    def bare(self) -> Lost:
        """Return the same without its traceback, which keeps what the connections need alive."""
        return Lost(str(self), self.ranks, self.own)


def line_of(e: Exception) -> str:
    """Return the first line of what torch says of an error; where it came from in C++ follows there."""
    return str(e).strip().split("\n")[0]
