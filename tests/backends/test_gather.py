"""What a coordinator makes of parts: order, the error to raise, the range of the sum."""

from __future__ import annotations

import json

import pytest

from fedlearn.backends.gather import agree, check_bound, decode, encode, first, in_order
from fedlearn.errors import (
    CheckpointError,
    ClientError,
    ConfigError,
    FedlearnError,
    NonFiniteUpdate,
    UpdateOverflow,
    WorkerError,
)
from fedlearn.policies.local_work import LocalWork
from fedlearn.reducers.exact import LIMIT
from fedlearn.reducers.layout import Layout
from fedlearn.work import Record, Work

WORK = Work(4, 4, {}, [5, 2, 9], [1.0, 1.0, 1.0], LocalWork(steps=1))


class OwnError(NonFiniteUpdate):
    """A user's own kind of client error."""


def test_records_come_in_the_order_of_the_cohort() -> None:
    records = [Record(m, 1, 1, 1.0, 0.0, 4, False) for m in (9, 5, 2)]
    assert [r.client for r in in_order(records, WORK)] == [5, 2, 9]


def test_the_earliest_clients_error_is_raised() -> None:
    failures = [ClientError(9, 4, "a"), ClientError(5, 4, "b"), ClientError(2, 4, "c")]
    assert first(failures, WORK) is failures[1]
    worker = WorkerError("x")
    assert first([*failures, worker], WORK) is worker


@pytest.mark.parametrize("error", [
    NonFiniteUpdate(3, 1, "what"), UpdateOverflow(3, 1, "what"), ClientError(3, 1, "what"),
    ConfigError("key", "found", "allowed", "hint"), CheckpointError("gone"), WorkerError("dead")])
def test_errors_survive_json(error: FedlearnError) -> None:
    back = decode(json.loads(json.dumps(encode(error, "rank 1"))))
    assert type(back) is type(error)
    assert str(back) == str(error)


def test_unknown_errors_become_known_ones() -> None:
    assert type(decode(encode(OwnError(3, 1, "what"), "rank 1"))) is NonFiniteUpdate
    assert str(decode(encode(KeyError("x"), "rank 1"))) == "rank 1 failed with KeyError: 'x'"
    assert type(decode(["os.system", "true"])) is WorkerError


def test_partial_sums_may_not_leave_the_range_together() -> None:
    check_bound([LIMIT / 2, LIMIT / 4], [[5], [2, 9]], WORK)
    with pytest.raises(UpdateOverflow, match="client 5, round 4"):
        check_bound([LIMIT / 2, LIMIT / 2], [[5], [2, 9]], WORK)


def test_layouts_must_agree_and_idle_workers_have_none() -> None:
    a, b = Layout((("dx", 3, "float32"),)), Layout((("dx", 4, "float32"),))
    assert agree([None, a, a], [[], [5], [2]], WORK) == a
    with pytest.raises(ClientError, match="client 2, round 4"):
        agree([a, None, b], [[5], [], [2]], WORK)
