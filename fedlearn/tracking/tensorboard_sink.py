"""TensorBoard: the metrics of a run as an event file in its folder; the only importer of tensorboard.

It is imported when a run starts. One round is one record, on disk before the next round begins. A run that goes on
gets a new file with all its rounds, made from metrics.jsonl: none is there twice, and none is missing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from time import time
from typing import Any

from ..errors import ConfigError, ResourceError
from .event_file import EventFile
from .replay import flat, told_before

log = logging.getLogger("fedlearn")


@dataclass(frozen=True)
class TensorBoard:
    """Write the metrics as TensorBoard reads them, to the folder ``tensorboard`` of the run folder."""

    def tracker(self) -> TensorBoardTracker:
        """Return the tracker that does it."""
        return TensorBoardTracker()


class TensorBoardTracker:
    """One event file, from ``started`` to ``finished``."""

    def __init__(self) -> None:
        self.file: EventFile | None = None
        self.rounds: int | None = None

    def started(self, folder: Path | None, config: Mapping[str, Any]) -> None:
        """Begin the event file with the configuration and the rounds so far, in place of earlier ones.

        Raises:
            ConfigError: if tensorboard is not installed, or the run has no folder.
            ResourceError: if the file cannot be written.
        """
        try:
            import tensorboard.compat.proto.event_pb2  # noqa: F401
        except ImportError:
            raise ConfigError("tracking.tensorboard", "no tensorboard", "an installed tensorboard", "Install it: "
                              "pip install 'fedlearn[tensorboard]', or choose tracking=none.") from None
        if folder is None:
            raise ConfigError("tracking.tensorboard", "a run without a folder", "a run with one",
                              "Name it, as in folder='runs/mine'.")
        self.rounds = config.get("rounds")
        records = [_event(file_version="brain.Event:2")]
        if config:
            records.append(_event(values=[_text("config", config), _hyperparameters(config)]))
        records += [_of_round(line, ended) for line, ended in told_before(folder)]
        try:
            self.file = EventFile(folder / "tensorboard", records)
        except OSError as error:
            raise ResourceError(f"{folder / 'tensorboard'} cannot be written: found {error.strerror}; allowed: a disk "
                                "with room, and a folder that this user may write to; make room, or choose "
                                "tracking=none") from error

    def round(self, metrics: Mapping[str, Any]) -> None:
        """Write a round's metrics at its number; nested ones as ``seconds/work``."""
        if self.file is not None:
            self.file.add(_of_round(metrics))

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Write the summary and close the file; more than once is fine."""
        if self.file is None:
            return
        done = int(summary.get("round", 0))
        ended = [_end()] if done == self.rounds else []
        self.file.add(_event(done, values=[_text("summary", summary), *ended]))
        self.file.close()
        if self.file.unwritten:
            log.warning("%s lacks the last rounds, for which there was no room; once there is, `fedlearn resume` of "
                        "the run writes it anew", self.file.path)
        self.file = None


def _of_round(line: Mapping[str, Any], ended: float | None = None) -> bytes:
    """Return the event of a line of metrics.jsonl: a scalar for every number, a text for what is none."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = []
    for name, value in flat(line).items():
        if name == "round":
            continue
        try:
            values.append(Summary.Value(tag=name, simple_value=float(value)))
        except (TypeError, ValueError):
            values.append(_text(name, value))
    return _event(int(line["round"]), values=values, ended=ended)


def _event(step: int = 0, *, values: Any = None, ended: float | None = None, **more: Any) -> bytes:
    """Return an event as it lies in the file."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    content = more if values is None else {"summary": Summary(value=values)}
    event = Event(wall_time=time() if ended is None else ended, step=step, **content)
    record = BytesIO()
    RecordWriter(record).write(event.SerializeToString())
    return record.getvalue()


def _text(name: str, value: Any) -> Any:
    """Return a value that TensorBoard shows under Text: a mapping as indented JSON."""
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    shown = f"```\n{json.dumps(value, indent=2, default=str)}\n```" if isinstance(value, Mapping) else str(value)
    return _plugin_value(name, "text", b"", TensorProto(dtype=DT_STRING, string_val=[shown.encode()]))


def _hyperparameters(config: Mapping[str, Any]) -> Any:
    """Return the value from which TensorBoard's HParams table takes a run: the configuration, by dotted key."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = HParamsPluginData()
    data.session_start_info.start_time_secs = time()
    for key, value in flat(config, ".").items():
        one = data.session_start_info.hparams[key]
        if isinstance(value, bool):
            one.bool_value = value
        elif isinstance(value, int | float):
            one.number_value = value
        else:
            one.string_value = value if isinstance(value, str) else json.dumps(value, default=str)
    return _plugin_value("_hparams_/session_start_info", "hparams", data.SerializeToString())


def _end() -> Any:
    """Return the value by which the HParams table knows that a run is done."""
    from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = HParamsPluginData()
    data.session_end_info.status, data.session_end_info.end_time_secs = STATUS_SUCCESS, time()
    return _plugin_value("_hparams_/session_end_info", "hparams", data.SerializeToString())


def _plugin_value(tag: str, plugin: str, content: bytes, tensor: Any = None) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_FLOAT

    if tensor is None:  # nothing but the metadata counts
        tensor = TensorProto(dtype=DT_FLOAT, tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=0)]))
    data = SummaryMetadata.PluginData(plugin_name=plugin, content=content)
    return Summary.Value(tag=tag, tensor=tensor, metadata=SummaryMetadata(plugin_data=data))
