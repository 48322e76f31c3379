"""Every error that fedlearn raises on purpose.

    FedlearnError
    |-- ConfigError         2   a key, a value or a combination that cannot be run
    |-- DataError           2   a data set that is missing, unreadable or impossible to split as asked
    |-- ModelError          2   a model that cannot be trained federatedly as it is
    |-- ClientError         3   something wrong with one client's work (names client and round)
    |   |-- NonFiniteUpdate     its upload holds NaN or infinity
    |   |-- UpdateOverflow      its upload is too large for the exact sum
    |   |-- BadUpdate           its upload has other names, shapes or dtypes than asked, or a norm above the bound
    |   `-- LateReply           its reply did not come within the round's deadline
    |-- WorkerError         4   a process that died, froze or could not start, and could not be replaced
    |-- CheckpointError     5   a checkpoint that is missing, cut short, altered or cannot be written
    |-- ResourceError       6   memory or disk that does not suffice
    `-- Stopped            75   a run that was asked to stop (130 after Ctrl-C), and can be resumed

The number is the exit code of the command line, ``code``; FedlearnError's own is 1. Each message is one line that
says what was found, what is allowed and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, ClassVar


class FedlearnError(Exception):
    """The root of fedlearn's errors; the command line prints its message as one line and exits with ``code``."""

    code: ClassVar[int] = 1


class ConfigError(FedlearnError):
    """A configuration key, value or combination that cannot be run.

    ``key`` is the dotted key, ``found`` the offending value, ``allowed`` a description of what is
    accepted and ``hint`` what to do about it.
    """

    code = 2

    def __init__(self, key: str, found: object, allowed: str, hint: str = "") -> None:
        self.key, self.found, self.allowed, self.hint = key, found, allowed, hint
        super().__init__(f"{key}: found {found!r}; allowed: {allowed}." + (f" {hint}" if hint else ""))

    def __reduce__(self) -> tuple:
        return type(self), (self.key, self.found, self.allowed, self.hint)


class DataError(FedlearnError):
    """A data set that is missing, unreadable or impossible to split as asked."""

    code = 2


class ModelError(FedlearnError):
    """A model that cannot be trained federatedly as it is."""

    code = 2


class ClientError(FedlearnError):
    """Something wrong with one client's work in one round."""

    code = 3

    def __init__(self, client: int, round: int, what: str) -> None:
        self.client, self.round, self.what = client, round, what
        super().__init__(f"client {client}, round {round}: {what}")

    def __reduce__(self) -> tuple:
        return type(self), (self.client, self.round, self.what)


class NonFiniteUpdate(ClientError):
    """A client's upload holds NaN or infinity."""


class UpdateOverflow(ClientError):
    """A client's upload, or the sum with it, is too large for the exact sum."""


class BadUpdate(ClientError):
    """A client's upload has other names, shapes or dtypes than the algorithm asks for, or too large a norm."""


class LateReply(ClientError):
    """A client's reply did not come within the round's deadline."""


class WorkerError(FedlearnError):
    """A worker process that died, froze or could not start, and could not be replaced."""

    code = 4


class CheckpointError(FedlearnError):
    """A checkpoint that is missing, cut short, altered or cannot be written."""

    code = 5


class ResourceError(FedlearnError):
    """Memory or disk that does not suffice."""

    code = 6


class Stopped(FedlearnError):
    """A run that was asked to stop; ``history`` is that of the rounds that are done, ``code`` the exit code."""

    code = 75

    def __init__(self, message: str, history: Any = None, code: int = 75) -> None:
        super().__init__(message)
        self.history, self.code = history, code    # type: ignore[misc]


def one_of(names: Iterable[str], found: str = "") -> str:
    """List the allowed ``names`` in a sentence, with the nearest to ``found`` first if one is near."""
    names = sorted(names)
    near = get_close_matches(found, names, n=1)
    return f"one of {', '.join(names)}" + (f" (did you mean {near[0]}?)" if near else "")


def in_range(key: str, value: float, *, above: float | None = None, least: float | None = None,
             below: float | None = None, most: float | None = None, whole: bool = False) -> None:
    """Check that ``value`` is a number, if ``whole`` an integer, in a range.

    ``above`` and ``below`` are open ends, the others closed.

    Raises:
        ConfigError: naming ``key`` if it is not (NaN never is).
    """
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise ConfigError(key, value, "a whole number" if whole else "a number")
    ends = [(above, ">", above is None or value > above), (least, ">=", least is None or value >= least),
            (below, "<", below is None or value < below), (most, "<=", most is None or value <= most)]
    if not all(held for _, _, held in ends):
        allowed = " and ".join(f"{sign} {end}" for end, sign, _ in ends if end is not None)
        raise ConfigError(key, value, f"a number {allowed}")
