"""Parcels: the same thing comes out, and large arrays are shared and yet nobody's writes are seen."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
import torch

from fedlearn.backends.parcel import LARGE, LONGEST, OWNER, pack, short_folder, sweep, unpack
from fedlearn.errors import WorkerError


def test_large_arrays_lie_in_the_folder_and_small_ones_in_the_bytes(tmp_path: Path) -> None:
    large = torch.arange(LARGE // 4, dtype=torch.float32)
    thing = {"large": large, "array": large.numpy().astype(np.float64), "small": torch.arange(3)}
    parcel = pack(thing, tmp_path)
    assert len(parcel) < LARGE / 4
    assert len(list(tmp_path.iterdir())) == 2
    out = unpack(parcel)
    assert all(np.array_equal(out[name], thing[name]) for name in thing)


def test_writes_stay_with_the_writer(tmp_path: Path) -> None:
    large = torch.zeros(LARGE // 4)
    parcel = pack(large, tmp_path)
    mine, other = unpack(parcel), unpack(parcel)
    mine += 1
    assert float(other.sum()) == float(unpack(parcel).sum()) == 0


def test_mapped_arrays_outlive_their_files(tmp_path: Path) -> None:
    out = unpack(pack(torch.ones(LARGE // 4), tmp_path))
    for path in tmp_path.iterdir():
        path.unlink()
    assert float(out.sum()) == LARGE // 4


def test_functions_of_a_script_and_its_search_path_travel(monkeypatch) -> None:
    monkeypatch.syspath_prepend("/somewhere/else")
    factor = 3
    parcel = pack(lambda v: factor * v)
    monkeypatch.undo()
    assert unpack(parcel)(2) == 6
    assert sys.path.pop() == "/somewhere/else"


def test_without_a_folder_everything_is_in_the_bytes() -> None:
    large = torch.ones(LARGE // 4)
    assert torch.equal(unpack(pack(large)), large)


def test_what_cannot_be_sent_is_said_in_one_line() -> None:
    message = r"cannot be sent to other processes \(TypeError: .*lock.*inprocess"
    with pytest.raises(WorkerError, match=message) as caught:
        pack({"lock": Lock()})
    assert "\n" not in str(caught.value)


def test_a_folder_is_swept_once_its_process_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    foreign = tmp_path / "fedlearn-foreign"     # nobody claimed it with a lock
    foreign.mkdir()
    program = f"""import os, tempfile; tempfile.tempdir = {str(tmp_path)!r}
from fedlearn.backends.parcel import short_folder
print(short_folder(), flush=True); input()"""
    owner = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    folder = Path(owner.stdout.readline().strip())
    (folder / "ray").mkdir()
    assert (folder.stat().st_mode & 0o777, len(str(folder)) <= LONGEST) == (0o700, True)
    assert folder not in sweep(folder.parent)
    owner.kill()
    owner.communicate()
    fresh = short_folder()      # sweeps on the occasion
    assert not folder.exists() and foreign.exists() and (fresh / OWNER).exists()
    shutil.rmtree(fresh)


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / "fedlearn-trap").mkdir()
    (tmp_path / "fedlearn-trap" / OWNER).symlink_to(tmp_path / "elsewhere")
    assert sweep(tmp_path) == []
    assert (tmp_path / "fedlearn-trap").exists()
