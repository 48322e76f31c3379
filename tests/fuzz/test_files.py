"""Files of a run and of a data set, damaged in thousands of ways: each is refused with one line, or means the same."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import damaged, many, mixed
from problems import experiment

from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.checkpoint import Checkpoints, Snapshot, load_model, save_model
from fedlearn.data.idx import read_idx
from fedlearn.data.store import ClientStore
from fedlearn.errors import CheckpointError, DataError, FedlearnError
from fedlearn.running.execute import checkpoint_of, execute
from fedlearn.tracking.run_folder import RunFolder
from fedlearn.vectors import digest, tree_flat
from fedlearn.worker.state_files import StateFiles

TENSORS = {"x": torch.arange(40, dtype=torch.float32), "limbs": torch.tensor([[-(2**62), 2**62]]),
           "count": torch.tensor(7)}
META = {"loop": {"versions": {"1": 2}, "simulated": 1.5}, "states": [[1, 2]], "identity": {"seed": "0"}}


def test_checkpoints(room: Path, examples: int) -> None:
    checkpoints = Checkpoints(room, 3)
    folders = [checkpoints.save(round, Snapshot(TENSORS | {"x": TENSORS["x"] + round}, META)) for round in (3, 4)]
    whole = {path: path.read_bytes() for folder in folders for path in folder.iterdir()}
    right = {round: (digest(s.tensors), s.meta) for round in (3, 4) for _, s in [checkpoints.load(round)]}

    def test(r: random.Random) -> None:
        path = r.choice(list(whole))
        same_kind = [data for other, data in whole.items() if other.suffix == path.suffix]
        path.write_bytes(mixed([whole[path], *same_kind], r))
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                round, snapshot = checkpoints.load()
            assert (digest(snapshot.tensors), snapshot.meta) == right[round]
            altered = path.read_bytes() != whole[path]
            assert round == (3 if altered and path.parent == folders[1] else 4)
            assert bool(caught) == (round == 3)
            with pytest.raises(CheckpointError) if altered else warnings.catch_warnings():
                checkpoints.load(int(path.parent.name[-1]))
            checkpoints.rounds()
        finally:
            path.write_bytes(whole[path])

    many(examples, test)


def test_models(room: Path, examples: int) -> None:
    save_model(room, TENSORS, META)
    whole = {path: path.read_bytes() for path in room.iterdir()}

    def test(r: random.Random) -> None:
        path = r.choice(list(whole))
        path.write_bytes(mixed(list(whole.values()), r) if r.random() < 0.2 else damaged(whole[path], r))
        try:
            tensors, about = load_model(room)
            assert digest(tensors) == digest(TENSORS) and about == META
        except CheckpointError as error:
            assert path.name in str(error) and path.read_bytes() != whole[path]
        finally:
            path.write_bytes(whole[path])

    many(examples, test)


def test_client_states(room: Path, examples: int) -> None:
    template = {"c": torch.zeros(25), "n": torch.tensor(0)}
    files = StateFiles(room, template)
    states = [(3, 7), (3, 8), (4, 7)]
    for i, (client, version) in enumerate(states):
        files.write(client, version, {"c": torch.full((25,), i + 0.5), "n": torch.tensor(i)})
    whole = {state: files.path(*state).read_bytes() for state in states}
    right = {state: digest(tree_flat(files.read(*state))) for state in states}

    def test(r: random.Random) -> None:
        state = r.choice(states)
        path = files.path(*state)
        path.write_bytes(mixed([whole[state], *whole.values()], r))
        try:
            assert digest(tree_flat(files.read(*state))) == right[state]
            assert path.read_bytes() == whole[state]
        except CheckpointError as error:
            assert f"client {state[0]} as of work {state[1]}" in str(error) and str(path) in str(error)
            assert path.read_bytes() != whole[state]
        finally:
            path.write_bytes(whole[state])

    many(examples, test)


def test_lines_of_metrics_and_ledger(room: Path, examples: int) -> None:
    folder = RunFolder(room)
    for round in range(4):
        folder.append_metrics({"round": round, "loss": 0.5 / (round + 1), "norm": float("inf")})
        folder.append_ledger({"round": round, "cohort": [1, 2], "accepted": [1], "sha256": "ab" * 32})
        folder.append_event({"event": "worker lost", "round": round, "worker": 2})
    paths = [room / "metrics.jsonl", room / "ledger.jsonl"]
    whole = {path: path.read_bytes() for path in paths}

    def test(r: random.Random) -> None:
        path = r.choice(paths)
        path.write_bytes(mixed([whole[path], *whole.values()], r))
        try:
            for read in (folder.metrics, folder.ledger, folder.events):
                assert all(isinstance(line, dict) for line in read())
            folder.truncate(2)
            assert all("event" in line or line["round"] <= 2 for line in folder.metrics())
        except FedlearnError as error:
            assert path.name in str(error) and "\n" not in str(error)
        finally:
            path.write_bytes(whole[path])
            for other in paths:
                other.write_bytes(whole[other])

    many(examples, test)


def idx(array: np.ndarray) -> bytes:
    """Return an array as an IDX file holds it."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def test_idx_files(room: Path, examples: int) -> None:
    images = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    plain, packed = room / "images", room / "images.gz"
    whole = {plain: idx(images), packed: gzip.compress(idx(images))}

    def test(r: random.Random) -> None:
        path = r.choice((plain, packed))
        path.write_bytes(gzip.compress(damaged(whole[plain], r), 1) if path is packed and r.random() < 0.5
                         else damaged(whole[path], r))
        try:
            read = read_idx(path, 3)
        except DataError as error:
            assert path.name in str(error) and "\n" not in str(error)
            return
        # The format has no checksum: what is accepted is what the file holds, all of it.
        content = path.read_bytes() if path is plain else gzip.decompress(path.read_bytes())
        assert content == idx(read)

    many(examples, test)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(2**31, 28, 28), (2**32 - 1,) * 3, (0, 2**32 - 1, 2**32 - 1)])
def test_a_header_that_lies_takes_no_memory(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    path = tmp_path / f"images{suffix}"
    content = bytes([0, 0, 8, 3]) + np.array(shape, dtype=">u4").tobytes() + b"1234"
    path.write_bytes(gzip.compress(content) if suffix else content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="found .* bytes; allowed: "):
            read_idx(path, 3)
        assert tracemalloc.get_traced_memory()[1] < 3e7
    finally:
        tracemalloc.stop()


def test_a_packed_bomb_unfolds_no_further_than_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(idx(np.zeros((1, 2, 2))) + bytes(200_000_000), 1))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="found more than 20 bytes; allowed: 20"):
            read_idx(path, 3)
        assert tracemalloc.get_traced_memory()[1] < 3e7
    finally:
        tracemalloc.stop()


def test_client_stores(room: Path, examples: int) -> None:
    ClientStore.from_clients([(np.ones((4, 3), np.float32), np.arange(4) % 3) for _ in range(3)]).save(room)
    whole = {path: path.read_bytes() for path in room.iterdir()}

    def test(r: random.Random) -> None:
        path = r.choice(list(whole))
        new = room / "new"
        new.write_bytes(damaged(whole[path], r))
        new.replace(path)   # a file that is mapped must not change
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")     # of headers as Python 2 wrote them
                store = ClientStore.open(room)
            assert len(store.batch(2, [0])[0]) == 1 and int(store.sizes.sum()) == len(store.labels)
            store.expect([0, 1])
        except DataError as error:
            assert str(room) in str(error) or "client" in str(error)
        finally:
            new.write_bytes(whole[path])
            new.replace(path)

    many(examples // 10, test)


def test_a_whole_run_folder_goes_on_or_says_why_not(tmp_path: Path) -> None:
    """Any one file damaged: the run ends in the same hash, or is refused with one line."""
    e = experiment(Scaffold(lr=0.1), rounds=6, cohort=3, checkpoint_every=2)
    right = execute(e, RunFolder(tmp_path / "whole")).sha256
    shutil.rmtree(tmp_path / "whole")
    before = experiment(Scaffold(lr=0.1), rounds=4, cohort=3, checkpoint_every=2)
    execute(before, RunFolder(tmp_path / "whole"))
    r, ended = random.Random(0), 0
    for _ in range(30):
        run = Path(shutil.copytree(tmp_path / "whole", tmp_path / "run"))
        path = r.choice(sorted(p for p in run.rglob("*") if p.is_file() and p.name != "model.safetensors"))
        path.write_bytes(damaged(path.read_bytes(), r))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                folder = RunFolder(run)
                assert execute(e, folder, start=checkpoint_of(e, folder)).sha256 == right
            ended += 1
        except FedlearnError as error:
            assert "\n" not in str(error) and json.dumps(str(error))
        shutil.rmtree(run)
    assert ended > 15
