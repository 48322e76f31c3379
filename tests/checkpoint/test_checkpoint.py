"""Checkpoints: what goes in comes out, and nothing damaged is ever taken for whole."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from fedlearn import sealed
from fedlearn.checkpoint import Checkpoints, Snapshot, load_model, save_model
from fedlearn.errors import CheckpointError, ConfigError
from fedlearn.vectors import digest

FLAT = torch.arange(6, dtype=torch.float32)
TENSORS = {
    "x": torch.tensor([1.5, -0.0, float("nan"), 1e-45]),
    "double": torch.tensor([0.1], dtype=torch.float64),
    "count": torch.tensor(7, dtype=torch.int64),
    "limbs": torch.tensor([[-(2**62), 2**62]], dtype=torch.int64),
    "half": torch.tensor([1.0, 3.0], dtype=torch.bfloat16),
    "none": torch.empty(0),
    "none2": torch.empty(3, 0, dtype=torch.float64),
    "mask": torch.tensor([True, False]),
    ".": FLAT[:3],  # views of one buffer
    "view": FLAT[3:],
    "same": FLAT[3:],
    "columns": torch.arange(6).reshape(2, 3).T,
}


def snapshot(round: int) -> Snapshot:
    return Snapshot({"x": torch.full((50,), float(round))}, {"round": round, "pairs": [[1, 2]]})


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """To the bit: digests cover names, dtypes, shapes and bytes (NaN and -0.0 too)."""
    return digest(a) == digest(b)


def test_every_kind_of_tensor_and_meta_comes_back(tmp_path: Path) -> None:
    meta = {"a": 1, "b": [1.25, None, "text ä", {"c": True}], "t": (1, (2, 3)), "n": np.int64(3),
            "f": np.float64(0.1)}
    Checkpoints(tmp_path, 1).save(4, Snapshot(TENSORS, meta))
    round, got = Checkpoints(tmp_path, 1).load()
    assert round == 4
    assert same(got.tensors, TENSORS)
    assert got.meta == {**meta, "t": [1, [2, 3]], "n": 3, "f": 0.1}
    assert Checkpoints(tmp_path, 1).meta(4) == got.meta


@pytest.mark.parametrize("meta", [{1: 2}, {"a": {None: 1}}, {"a": {1, 2}}, {"a": b"x"}, {"a": np.zeros(3)}])
def test_meta_that_json_would_change_is_refused(tmp_path: Path, meta: dict) -> None:
    with pytest.raises(ValueError, match="meta.*JSON"):
        Checkpoints(tmp_path, 1).save(1, Snapshot({}, meta))
    assert not list(tmp_path.iterdir())


def test_the_last_ones_stay(tmp_path: Path) -> None:
    c = Checkpoints(tmp_path, 2)
    for r in (5, 10, 15, 20):
        c.save(r, snapshot(r))
    assert c.rounds() == [15, 20]
    assert c.load(15)[1].meta["round"] == 15
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round-00000015", "round-00000020"]


def test_saving_a_round_again_replaces_it(tmp_path: Path) -> None:
    c = Checkpoints(tmp_path, 2)
    for value in (1.0, 2.0, 3.0):
        c.save(5, Snapshot({"x": torch.tensor([value])}, {}))
    assert c.load()[1].tensors["x"].item() == 3.0
    assert len(list(tmp_path.iterdir())) == 1


def test_the_only_good_one_is_never_removed(tmp_path: Path) -> None:
    c = Checkpoints(tmp_path, 1)
    c.save(10, snapshot(10))
    c.save(20, snapshot(20))
    later = Checkpoints(tmp_path / "later", 1).save(30, snapshot(30)).rename(tmp_path / "round-00000030")
    later.parent.joinpath("later").rmdir()
    (later / "state.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="round-00000030.*holds 0 of"):
        assert c.load()[0] == 20
    c.save(25, snapshot(25))  # the run went back to 20, then on
    assert c.rounds() == [25]
    assert c.load()[0] == 25


def test_damaged_old_ones_do_not_count_as_kept(tmp_path: Path) -> None:
    c = Checkpoints(tmp_path, 2)
    c.save(1, snapshot(1))
    c.save(2, snapshot(2))
    (tmp_path / "round-00000002" / "state.json").write_text("{}")
    c.save(3, snapshot(3))
    assert c.rounds() == [1, 3]


def test_leftovers_of_killed_writers_go(tmp_path: Path) -> None:
    c = Checkpoints(tmp_path, 1)
    c.save(1, snapshot(1))
    half = tmp_path / ".writing-abc"
    shutil.copytree(tmp_path / "round-00000001", half)
    assert c.rounds() == [1]
    c.save(2, snapshot(2))
    assert not half.exists()


@pytest.mark.parametrize("moment", ["save_file", "fsync", "rename"])
def test_a_failed_write_leaves_the_old_one(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    c = Checkpoints(tmp_path, 1)
    c.save(1, snapshot(1))

    def full(*_: object, **__: object) -> None:
        if moment == "save_file":
            raise SafetensorError("No space left on device")
        raise OSError(28, "No space left on device")

    place = {"save_file": sealed.safetensors, "fsync": os, "rename": Path}[moment]
    with monkeypatch.context() as patch:
        patch.setattr(place, moment, full)
        with pytest.raises(CheckpointError, match="round 2 cannot be written.*No space left.*make room"):
            c.save(2, snapshot(2))
    assert c.rounds() == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["round-00000001"]


FILES = ["state.json", "state.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_and_bit_flip_is_found(tmp_path: Path, name: str) -> None:
    c = Checkpoints(tmp_path, 2)
    c.save(1, snapshot(1))
    c.save(2, snapshot(2))
    path = tmp_path / "round-00000002" / name
    whole = path.read_bytes()
    damaged = [whole[:n] for n in range(0, len(whole), 7)] + [whole[:-1], whole + b"\n", whole + b"x"]
    for i in range(0, len(whole), 5):
        damaged.append(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1:])
    for data in damaged:
        path.write_bytes(data)
        with pytest.warns(UserWarning, match=f"(?s)^damaged checkpoint.*{name}.*round 1$"):
            assert c.load()[0] == 1
        with pytest.raises(CheckpointError, match=name):
            c.load(2)
    path.unlink()
    with pytest.warns(UserWarning, match=f"{name} cannot be read .No such file"):
        assert c.load()[0] == 1
    path.write_bytes(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert c.load()[0] == 2


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    Checkpoints(folder, 1).save(3, snapshot(3))
    return folder


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_other_json_is_taken_for_it(pristine: Path, data: st.DataObject) -> None:
    path = pristine / "round-00000003" / "state.json"
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(start + 20, len(whole))))
    inserted = data.draw(st.binary(max_size=20) | st.sampled_from([b"[" * 5000, b'"a":1,', b" "]))
    other = whole[:start] + inserted + whole[end:]
    try:
        path.write_bytes(other)
        if other == whole:
            assert Checkpoints(pristine, 1).load()[0] == 3
        else:
            with pytest.raises(CheckpointError, match="state.json"):
                Checkpoints(pristine, 1).load()
    finally:
        path.write_bytes(whole)


def test_another_format_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sealed, "FORMAT", 2)
        Checkpoints(tmp_path, 1).save(1, snapshot(1))
    with pytest.raises(CheckpointError, match="has format 2; this fedlearn reads 1"):
        Checkpoints(tmp_path, 1).load()


def test_none_usable_is_one_line(tmp_path: Path) -> None:
    c = Checkpoints(tmp_path / "checkpoints", 2)
    with pytest.raises(CheckpointError, match="no checkpoint in .*start it anew"):
        c.load()
    c.save(1, snapshot(1))
    c.save(2, snapshot(2))
    for r in (1, 2):
        path = c.folder / f"round-0000000{r}" / "state.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError) as error:
        c.load()
    message = str(error.value)
    assert "\n" not in message
    for part in ("00001/state.safetensors", "00002/state.safetensors", "bytes", "from a copy"):
        assert part in message
    with pytest.raises(CheckpointError, match="no checkpoint of round 7 in .*; there are: 1, 2"):
        c.load(7)


def test_keep_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="checkpoint.keep: found 0"):
        Checkpoints(tmp_path, 0)


def test_a_model_comes_back(tmp_path: Path) -> None:
    about = {"task": "digits", "shapes": [[2, 3]]}
    for _ in range(2):  # saved again after a resume
        save_model(tmp_path, TENSORS, about)
    tensors, got = load_model(tmp_path)
    assert same(tensors, TENSORS)
    assert got == about
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    assert json.loads((tmp_path / "model.json").read_text())["meta"] == about


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_damaged_model_is_refused(tmp_path: Path, name: str) -> None:
    save_model(tmp_path, {"x": torch.ones(3)}, {})
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=name):
        load_model(tmp_path)
