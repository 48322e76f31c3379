"""The IDX format of the MNIST family: unsigned bytes behind a big-endian header.

LeCun, Cortes, Burges: The MNIST database of handwritten digits, 1998. Header: two zero bytes, 0x08
for unsigned bytes, the number of dimensions; then each dimension as a 32-bit big-endian integer.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from ..errors import DataError


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the uint8 array in an IDX file, gzipped if its name ends with .gz.

    Raises:
        DataError: if it cannot be read, has another header, or is cut short or too long.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); allowed: an IDX file, plain or .gz; get it "
                        "again.") from error
    magic = bytes([0, 0, 8, dimensions])
    if content[:4] != magic:
        raise DataError(f"{path}: found the magic number {content[:4].hex()}; allowed: {magic.hex()} "
                        f"(unsigned bytes, {dimensions} dimension(s)); get the file again.")
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataError(f"{path}: found {len(content)} bytes; allowed: a header of {header} and the data; "
                        "get the file again.")
    shape = [int(d) for d in np.frombuffer(content, dtype=">u4", count=dimensions, offset=4)]
    if len(content) != header + math.prod(shape):
        raise DataError(f"{path}: found {len(content)} bytes; allowed: {header + math.prod(shape)} ({header} "
                        f"of header + {' x '.join(map(str, shape))}); get the file again.")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
