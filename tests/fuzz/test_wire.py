"""What crosses between processes, damaged in thousands of ways: it is noticed, or it is what was sent."""

from __future__ import annotations

import json
import random

import pytest
import torch
from damage import BATCH, damaged, many, mixed

from fedlearn import errors
from fedlearn.backends.gather import decode, encode
from fedlearn.backends.torchrun.bundle import Altered, bundle, length, unbundle
from fedlearn.errors import (
    BadUpdate,
    CheckpointError,
    ClientError,
    ConfigError,
    FedlearnError,
    NonFiniteUpdate,
    ResourceError,
    WorkerError,
)

HEADER = {"round": 3, "key": 3, "clients": [0, 4], "weights": [0.25, 0.75], "plan": [[20, 2, 10]], "versions": [[0, 1]],
          "shares": [[0], [4]], "before": 6, "local": [3, 1.0], "prelude": False, "deadline": None, "room": 4096}
ERRORS = [ClientError(3, 1, "broke"), NonFiniteUpdate(4, 2, "NaN"), BadUpdate(1, 0, "shape"), WorkerError("died"),
          ConfigError("a.b", 3, "more", "Do."), CheckpointError("cut"), ResourceError("full"), ValueError("x"),
          FedlearnError("root")]


def said(data: bytes) -> torch.Tensor:
    """Return bytes as they lie in a block of a collective."""
    return torch.frombuffer(bytearray(data.ljust(4096, b"\0")), dtype=torch.uint8)


def test_payloads(examples: int) -> None:
    vectors = [torch.arange(30, dtype=torch.float32), torch.tensor([1, -2])]
    sent = [bundle(HEADER, vectors).numpy().tobytes(), bundle({"error": None, "records": [[1], [2]]}).numpy().tobytes(),
            bundle([1, "ä"], vectors[:1]).numpy().tobytes()]
    meant = {one: (words, part.numpy().tobytes()) for one in sent for words, part in [unbundle(said(one))]}

    def test(r: random.Random) -> None:
        data = mixed(sent, r)
        try:
            words, part = unbundle(said(data))
        except Altered:
            assert not any(data.startswith(one) for one in sent)
            return
        assert any((words, part.numpy().tobytes()) == right and said(data)[:len(one)].numpy().tobytes() == one
                   for one, right in meant.items())
        assert length(said(data)) in map(len, sent)

    many(examples, test)


def test_encoded_errors(examples: int) -> None:
    sent = [json.dumps(encode(error, "rank 1")).encode() for error in ERRORS]
    names = [name for name in vars(errors)] + ["eval", "__builtins__", "one_of", "FedlearnError.__init__"]

    def test(r: random.Random) -> None:
        if r.random() < 0.5:
            words = json.loads(r.choice(sent))
            words[r.randrange(len(words))] = r.choice([*names, None, 3, [], {}, -1, "x" * 50])
            del words[r.randrange(len(words) + 1):]
        else:
            try:
                words = json.loads(damaged(r.choice(sent), r))
            except (ValueError, RecursionError):
                return
        error = decode(words)
        assert isinstance(error, FedlearnError)
        assert type(error).__module__ == errors.__name__

    many(examples, test)


def test_every_error_comes_back_as_it_was() -> None:
    for error in ERRORS[:7] + ERRORS[8:]:
        other = decode(json.loads(json.dumps(encode(error, "rank 1"))))
        assert type(other) is type(error) and str(other).replace("'3'", "3") == str(error)
    assert "rank 1 failed with ValueError: x" in str(decode(encode(ERRORS[7], "rank 1")))


def test_a_failure_would_be_seen() -> None:
    """The tests of this folder stand on ``many``: it must run as often as asked, and pass failures on."""
    seen: list[float] = []
    many(10 * BATCH, lambda r: seen.append(r.random()))
    assert len(seen) >= 9 * BATCH and len(set(seen)) > len(seen) // 2
    with pytest.raises(ZeroDivisionError):
        many(BATCH, lambda r: 1 // 0)   # type: ignore[arg-type, return-value]
