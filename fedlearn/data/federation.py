"""What all machines know of a federation whose data stays where it is: ``federation.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DataError
from .store import require_data

FEDERATION = "federation.json"
Look = tuple[Sequence[int], str]    # the shape of a sample and its type, as in ([1, 8, 8], "float32")


@dataclass(frozen=True)
class Federation:
    """What everybody may know: the ``sizes`` of all clients, what a sample looks like, and its ``classes``.

    ``features`` and ``labels`` are (shape of one sample, type), as in ([1, 8, 8], "float32").
    """

    sizes: Sequence[int]
    features: Look
    labels: Look
    classes: int
    class_names: Sequence[str] | None = None

    def write(self, folder: Path) -> None:
        """Write it into a folder, atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{FEDERATION}.{os.getpid()}.part"
        part.write_text(json.dumps(asdict(self)))
        part.replace(folder / FEDERATION)

    @classmethod
    def read(cls, folder: Path) -> Federation:
        """Read it from a folder.

        Raises:
            DataError: if it is missing, or not what ``write`` writes.
        """
        try:
            found = json.loads((folder / FEDERATION).read_text())
            sizes = np.array(found["sizes"], dtype=np.int64)
            features, labels = look(found["features"]), look(found["labels"])
            classes, names = int(found["classes"]), found.get("class_names")
            if sizes.ndim != 1 or sizes.tolist() != found["sizes"] or classes < 1:
                raise ValueError("sizes are whole numbers, one for each client, and classes is one from 1")
            require_data(sizes)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise DataError(f"{folder / FEDERATION}: found {why}; allowed: what "
                            "`fedlearn split` or fedlearn.data.deal.federation writes, the same file on every machine."
                            ) from error
        return cls(sizes.tolist(), features, labels, classes, None if names is None else tuple(map(str, names)))


def look(found: Any) -> Look:
    """Return the shape and type of a sample.

    Raises:
        ValueError: if that is something else.
    """
    shape, kind = found
    known = isinstance(getattr(torch, str(kind), None), torch.dtype)
    if not known or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"{found} is no shape and type of a sample")
    return list(shape), str(kind)
