"""The TensorBoard sink, read back with TensorBoard's own reader, and without tensorboard."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from problems import experiment

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.errors import ConfigError, ResourceError
from fedlearn.running.execute import checkpoint_of, execute
from fedlearn.tracking.event_file import EventFile
from fedlearn.tracking.run_folder import RunFolder
from fedlearn.tracking.tensorboard_sink import TensorBoard

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(folder: Path) -> Any:
    """Return TensorBoard's view of a run folder, which has one event file and nothing beside it."""
    (file,) = (folder / "tensorboard").iterdir()
    assert "tfevents" in file.name
    return accumulator.EventAccumulator(str(file), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def scalars(seen: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in seen.Scalars(tag)]


def text(seen: Any, tag: str) -> str:
    (event,) = seen.Tensors(tag)
    assert seen.SummaryMetadata(tag).plugin_data.plugin_name == "text"
    return event.tensor_proto.string_val[0].decode()


def test_a_run_is_recorded(tmp_path: Path) -> None:
    config = {"rounds": 2, "algorithm": {"_target_": "a.B", "lr": 0.5}, "cohort": None, "stack": True, "sizes": [1, 2]}
    tracker = TensorBoard().tracker()
    tracker.started(tmp_path, config)
    tracker.round({"round": 0, "test_loss": math.nan, "seconds": {"evaluate": 0.25}})
    assert scalars(read(tmp_path), "seconds/evaluate") == [(0, 0.25)], "it is there while the run goes on"
    tracker.round({"round": 1, "test_loss": 0.5, "bytes_up": 2**20, "mood": "good", "seconds": {"evaluate": 0.5}})
    tracker.round({"round": 2, "bytes_up": 3, "seconds": {"evaluate": 0.125}})
    tracker.finished({"sha256": "abc", "round": 2})
    tracker.finished({})
    seen = read(tmp_path)
    assert set(seen.Tags()["scalars"]) == {"test_loss", "bytes_up", "seconds/evaluate"}
    assert scalars(seen, "seconds/evaluate") == [(0, 0.25), (1, 0.5), (2, 0.125)]
    assert scalars(seen, "bytes_up") == [(1, 2**20), (2, 3)]
    assert math.isnan(scalars(seen, "test_loss")[0][1])
    assert text(seen, "mood") == "good"
    assert json.loads(text(seen, "config").strip("`")) == config
    assert json.loads(text(seen, "summary").strip("`")) == {"sha256": "abc", "round": 2}


def test_the_configuration_is_in_the_table_of_hyperparameters(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import metadata

    tracker = TensorBoard().tracker()
    tracker.started(tmp_path, {"rounds": 1, "algorithm": {"name": "b", "lr": 0.5}, "cohort": None, "stack": True})
    start, end = (f"_hparams_/session_{edge}_info" for edge in ("start", "end"))
    seen = read(tmp_path)
    given = metadata.parse_session_start_info_plugin_data(seen.SummaryMetadata(start).plugin_data.content).hparams
    assert given["algorithm.lr"].number_value == 0.5 and given["algorithm.name"].string_value == "b"
    assert given["stack"].bool_value is True and given["cohort"].string_value == "null"
    tracker.finished({"round": 0})
    assert end not in seen.Reload().Tags()["tensors"], "it was stopped"
    tracker.started(tmp_path, {"rounds": 1})
    tracker.finished({"round": 1})
    assert end in read(tmp_path).Tags()["tensors"]


def test_a_run_that_goes_on_has_every_round_once(tmp_path: Path) -> None:
    folder, tracker = RunFolder(tmp_path), TensorBoard().tracker()

    def go_on(rounds: int, **more: Any) -> None:
        e = experiment(FedAvg(), rounds=rounds, checkpoint_every=2)
        execute(e, folder, start=checkpoint_of(e, folder), **more)

    go_on(3, trackers=[tracker])
    tracker.started(tmp_path, {})   # and is killed
    folder.append_metrics({"round": 4, "train_loss": 77.0})
    tracker.round({"round": 4, "train_loss": 77.0})
    go_on(5, trackers=[TensorBoard().tracker()])
    lines = folder.metrics()
    assert [line["round"] for line in lines] == [0, 1, 2, 3, 4, 5]
    seen = read(tmp_path)
    assert scalars(seen, "train_loss") == [(line["round"], pytest.approx(line["train_loss"])) for line in lines[1:]]
    assert [event.step for event in seen.Scalars("seconds/evaluate")] == [0, 1, 2, 3, 4, 5]
    times = [event.wall_time for event in seen.Scalars("seconds/evaluate")]
    assert times == sorted(times) and times[1] < (tmp_path / "checkpoints").stat().st_mtime
    (tmp_path / "tensorboard" / "events.out.tfevents.0.a.b").touch()    # once more, though all rounds are done
    go_on(5, trackers=[TensorBoard().tracker()])
    assert scalars(read(tmp_path), "train_loss") == scalars(seen, "train_loss")


def test_rounds_wait_for_room(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    tracker = TensorBoard().tracker()
    tracker.started(tmp_path, {})
    assert tracker.file is not None
    write = EventFile._write

    def full(self: EventFile, data: bytes) -> None:
        write(self, data[:len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(EventFile, "_write", full)
        for r in range(3):
            tracker.round({"round": r, "loss": float(r)})
    assert read(tmp_path).Tags()["scalars"] == []
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "No space left" in caplog.text
    tracker.round({"round": 3, "loss": 3.0})
    assert scalars(read(tmp_path), "loss") == [(r, r) for r in range(4)]
    monkeypatch.setattr(EventFile, "_write", full)
    tracker.finished({})
    assert "lacks the last rounds" in caplog.text
    with pytest.raises(ResourceError, match="tensorboard cannot be written: found No space left"):
        TensorBoard().tracker().started(tmp_path, {})
    assert len(read(tmp_path).Scalars("loss")) == 4, "the earlier file stays"


def test_without_tensorboard_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(ConfigError, match=r"tracking.tensorboard: .*pip install 'fedlearn\[tensorboard\]'"):
        TensorBoard().tracker().started(tmp_path, {})


def test_a_run_without_a_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match="tracking.tensorboard: found 'a run without a folder'; .*folder="):
        TensorBoard().tracker().started(None, {})
