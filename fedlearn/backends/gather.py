"""What a coordinator makes of its workers' parts of a round: one sum, one error, records in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from .. import errors
from ..errors import ClientError, ConfigError, FedlearnError, UpdateOverflow, WorkerError
from ..reducers.exact import LIMIT, SCALE
from ..reducers.layout import Layout
from ..work import Record, Work


def in_order(records: Iterable[Record], work: Work) -> list[Record]:
    """Return the records in the order of the round's clients, wherever they were made."""
    place = {client: i for i, client in enumerate(work.clients)}
    return sorted(records, key=lambda record: place[record.client])


def first(failures: Iterable[Exception], work: Work) -> Exception:
    """Return the error to raise: that of the earliest client, whoever failed first in time."""
    place = {client: i for i, client in enumerate(work.clients)}
    return min(failures, key=lambda e: place.get(e.client, -1) if isinstance(e, ClientError) else -1)


def refusals(errors: Iterable[Exception], work: Work) -> list[ClientError]:
    """Return what was left out of the sum, in the order of the round's clients."""
    place = {client: i for i, client in enumerate(work.clients)}
    return sorted((e for e in errors if isinstance(e, ClientError)), key=lambda e: place[e.client])


def agree(layouts: Sequence[Layout | None], shares: Sequence[Sequence[int]], work: Work) -> Layout | None:
    """Return the layout of all partial sums; ``shares`` are the clients of each.

    Raises:
        ClientError: naming a client whose upload differs from the others'.
    """
    known: Layout | None = None
    for layout, share in zip(layouts, shares, strict=True):
        if layout is not None and known is not None:
            known.same(layout, share[0], work.round)
        known = known or layout
    return known


def check_bound(bounds: Sequence[float], shares: Sequence[Sequence[int]], work: Work) -> None:
    """Check that partial sums may be added without leaving the range of int64.

    Raises:
        UpdateOverflow: naming a client of the largest part.
    """
    if sum(bounds) >= LIMIT:
        largest = max(range(len(bounds)), key=bounds.__getitem__)
        raise UpdateOverflow(shares[largest][0], work.round, f"the clients' largest entries add up to "
                             f"{sum(bounds) / 2.0**SCALE:.3g}, out of range of the exact sum (allowed: "
                             f"{LIMIT / 2.0**SCALE:.3g}); lower the client step size, clip the updates, "
                             "or use reduce=fast")


def versions(work: Work) -> dict[str, int]:
    """Return by name how often each broadcast vector was written to."""
    return {name: 0 if v.is_inference() else v._version for name, v in work.broadcast.items()}


def check_untouched(before: Mapping[str, int], work: Work, clients: Sequence[int]) -> None:
    """Check that nobody wrote to the broadcast, of which a host has one copy, since ``versions`` returned ``before``.

    Raises:
        ClientError: naming the first of the clients that were worked on.
    """
    for name, version in versions(work).items():
        if version != before[name]:
            raise ClientError(clients[0], work.round, f"its local work changed the broadcast {name!r}, which all "
                              "workers of a host share; let the algorithm's local_init clone it")


def encode(error: Exception, where: str) -> list:
    """Return an error as JSON can carry it: the name of its class in ``errors`` and its arguments."""
    if isinstance(error, ClientError):
        known = next(c for c in type(error).__mro__ if c.__module__ == errors.__name__)
        return [known.__name__, error.client, error.round, error.what]
    if isinstance(error, ConfigError):
        return ["ConfigError", error.key, str(error.found), error.allowed, error.hint]
    if isinstance(error, FedlearnError):
        known = next(c for c in type(error).__mro__ if c.__module__ == errors.__name__)
        return [known.__name__, str(error)]
    return ["WorkerError", f"{where} failed with {type(error).__name__}: {error}"]


def decode(error: Sequence) -> FedlearnError:
    """Rebuild an error from what ``encode`` made of it."""
    kind = getattr(errors, str(error[0]), None) if isinstance(error, list | tuple) and error else None
    if isinstance(kind, type) and issubclass(kind, FedlearnError) and len(error) > 1:
        with suppress(TypeError):
            return kind(*error[1:])
    return WorkerError(f"a worker failed: {error}")
