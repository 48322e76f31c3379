"""Every error that fedlearn raises on purpose.

    FedlearnError
    |-- ConfigError         a key, a value or a combination that cannot be run
    |-- DataError           a data set that is missing, unreadable or impossible to split as asked
    |-- ModelError          a model that cannot be trained federatedly as it is
    |-- ClientError         something wrong with one client's work (names client and round)
    |   |-- NonFiniteUpdate     its upload holds NaN or infinity
    |   `-- UpdateOverflow      its upload is too large for the exact sum
    |-- WorkerError         a process that died, froze or could not start
    `-- CheckpointError     a checkpoint that is missing, cut short or altered

Each message is one line that says what was found, what is allowed and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real


class FedlearnError(Exception):
    """The root of fedlearn's errors; the command line prints its message as one line."""


class ConfigError(FedlearnError):
    """A configuration key, value or combination that cannot be run.

    ``key`` is the dotted key, ``found`` the offending value, ``allowed`` a description of what is
    accepted and ``hint`` what to do about it.
    """

    def __init__(self, key: str, found: object, allowed: str, hint: str = "") -> None:
        self.key, self.found, self.allowed, self.hint = key, found, allowed, hint
        super().__init__(f"{key}: found {found!r}; allowed: {allowed}." + (f" {hint}" if hint else ""))

    def __reduce__(self) -> tuple:
        return type(self), (self.key, self.found, self.allowed, self.hint)


class DataError(FedlearnError):
    """A data set that is missing, unreadable or impossible to split as asked."""


class ModelError(FedlearnError):
    """A model that cannot be trained federatedly as it is."""


class ClientError(FedlearnError):
    """Something wrong with one client's work in one round."""

    def __init__(self, client: int, round: int, what: str) -> None:
        self.client, self.round, self.what = client, round, what
        super().__init__(f"client {client}, round {round}: {what}")

    def __reduce__(self) -> tuple:
        return type(self), (self.client, self.round, self.what)


class NonFiniteUpdate(ClientError):
    """A client's upload holds NaN or infinity."""


class UpdateOverflow(ClientError):
    """A client's upload, or the sum with it, is too large for the exact sum."""


class WorkerError(FedlearnError):
    """A worker process that died, froze or could not start."""


class CheckpointError(FedlearnError):
    """A checkpoint that is missing, cut short or altered."""


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
