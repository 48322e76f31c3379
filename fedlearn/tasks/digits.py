"""Handwritten digits, embedded in scikit-learn: real data on every machine.

Alpaydin and Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository 1998:
1,797 images of 8 x 8 pixels with 17 grey levels, 10 classes.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from ..data.raw import RawData
from ..errors import DataError


@dataclass(frozen=True)
class Digits:
    """Classify handwritten digits; features float32 [n, 1, 8, 8] in [0, 1], 10 classes."""

    def load(self) -> RawData:
        """Return the data; every fifth image of each class, in the order of the file, is for the test.

        Raises:
            DataError: if scikit-learn, which holds the data, is not installed.
        """
        # sklearn.datasets takes a second to import; the file alone a few milliseconds.
        spec = find_spec("sklearn")
        folders = spec.submodule_search_locations if spec else None
        path = Path(folders[0], "datasets", "data", "digits.csv.gz") if folders else None
        if path is None or not path.is_file():
            raise DataError("task=digits: found no scikit-learn with its digits.csv.gz; allowed: "
                            "scikit-learn >= 1.0; run pip install scikit-learn.")
        with gzip.open(path, "rt") as file:
            table = np.array([line.split(",") for line in file], dtype=np.float32)
        x = torch.from_numpy(table[:, :64] / 16).reshape(-1, 1, 8, 8)
        y = torch.from_numpy(table[:, 64].astype(np.int64))
        rank = np.empty(len(y), dtype=np.int64)  # of an image within its class
        for c in range(10):
            members = np.flatnonzero(y.numpy() == c)
            rank[members] = np.arange(len(members))
        test = torch.from_numpy(rank % 5 == 4)
        return RawData(x[~test], y[~test], x[test], y[test], classes=10,
                       class_names=tuple("0123456789"))
