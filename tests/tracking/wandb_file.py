"""Reading the file that an offline wandb run leaves, without wandb's own process and without a network.

It is a log of LevelDB's format behind seven bytes of wandb: blocks of 32 KiB, in which every piece of a record has
a checksum, a length and a type (whole, first, middle, last). A record is a message of wandb's protobuf.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
WHOLE, FIRST, MIDDLE, LAST = range(1, 5)


def records(path: Path) -> Iterator[Any]:
    """Return the whole records of a file."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, record = HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:     # filled up with zeros
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        at += HEADER
        record = (b"" if kind in (WHOLE, FIRST) else record) + data[at:at + length]
        at += length
        if kind in (WHOLE, LAST):
            yield Record.FromString(record)


def history(path: Path) -> list[dict[str, Any]]:
    """Return what was logged, one dict a step, with nested names as ``seconds/work``."""
    return [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for record in records(path) if record.WhichOneof("record_type") == "history"]
