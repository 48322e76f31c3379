"""The IDX format of the MNIST family: unsigned bytes behind a big-endian header.

LeCun, Cortes, Burges: The MNIST database of handwritten digits, 1998. Header: two zero bytes, 0x08
for unsigned bytes, the number of dimensions; then each dimension as a 32-bit big-endian integer.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError

PIECE = 1 << 20  # bytes that are read at a time


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the uint8 array in an IDX file, gzipped if its name ends with .gz.

    Raises:
        DataError: if it cannot be read, has another header, or is cut short or too long.
    """
    header = 4 + 4 * dimensions
    try:
        if not path.is_file():      # to open something else might wait for ever
            raise FileNotFoundError(2, "No such file", str(path))
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = bytearray()
            _fill(content, file, header)
            magic = bytes([0, 0, 8, dimensions])
            if content[:4] != magic:
                raise DataError(f"{path}: found the magic number {content[:4].hex()}; allowed: {magic.hex()} "
                                f"(unsigned bytes, {dimensions} dimension(s)); get the file again.")
            if len(content) < header:
                raise DataError(f"{path}: found {len(content)} bytes; allowed: a header of {header} and the data; "
                                "get the file again.")
            shape = [int(d) for d in np.frombuffer(bytes(content), dtype=">u4", count=dimensions, offset=4)]
            # No more than the header asks for, nor more than is there: neither may lie about what it takes.
            whole = header + math.prod(shape)
            _fill(content, file, whole + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); allowed: an IDX file, plain or .gz; get it "
                        "again.") from error
    except MemoryError as error:
        raise DataError(f"{path}: does not fit into memory; get the file again.") from error
    if len(content) != whole or math.prod(shape) == 0 and any(d > 2**31 for d in shape):
        found = f"more than {whole}" if len(content) > whole else len(content)
        raise DataError(f"{path}: found {found} bytes; allowed: {whole} ({header} of header + "
                        f"{' x '.join(map(str, shape))}); get the file again.")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _fill(content: bytearray, file: Any, most: int) -> None:
    """Read up to so many bytes in all; memory grows with what is there, not with ``most``."""
    while len(content) < most and (piece := file.read(min(PIECE, most - len(content)))):
        content += piece
