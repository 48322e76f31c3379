"""A file of records for one who looks on while it is written: each there as a whole, or not at all.

tensorboard's own writer of files hands records to a thread, and gives up for good when a disk is full.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from time import time

log = logging.getLogger("fedlearn")


class EventFile:
    """The only event file of a folder, which takes the place of earlier ones; every record is written at once.

    Its name is new: a TensorBoard that looks on would keep on reading an old file otherwise. Records for which the
    disk has no room wait in memory (``unwritten``), and are written before the next one as soon as it has.

    Raises:
        OSError: if it cannot be made with the first records.
    """

    def __init__(self, folder: Path, records: Iterable[bytes]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = list(folder.glob("events.out.tfevents.*"))
        self.path = folder / f"events.out.tfevents.{int(time()):010d}.{socket.gethostname()}.{token_hex(3)}"
        self.unwritten = b""
        hidden = folder / ".writing"
        self.file = hidden.open("wb", buffering=0)
        try:
            self._write(b"".join(records))
            hidden.rename(self.path)
            for path in earlier:
                path.unlink()
        except OSError:
            self.file.close()
            hidden.unlink(missing_ok=True)
            raise

    def add(self, record: bytes) -> None:
        """Add a record, now or as soon as there is room."""
        data = self.unwritten + record
        end = self.file.seek(0, os.SEEK_END)
        try:
            self._write(data)
        except OSError as error:
            if not self.unwritten:
                log.warning("%s cannot be written (%s): its rounds wait in memory until there is room",
                            self.path, error.strerror)
            with suppress(OSError):
                self.file.truncate(end)
            self.unwritten = data
        else:
            self.unwritten = b""

    def close(self) -> None:
        """Close the file; what found no room is lost."""
        self.file.close()

    def _write(self, data: bytes) -> None:
        while data:
            data = data[self.file.write(data):]
