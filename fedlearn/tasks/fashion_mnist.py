"""Fashion-MNIST: Zalando's article images.

Xiao, Rasul, Vollgraf: Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms, 2017: 60,000 training and 10,000 test images of 28 x 28 grey pixels, 10 classes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.download import download_gzip
from ..data.idx import read_idx
from ..data.raw import RawData
from ..errors import ConfigError, DataError, in_range

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SHA256 = {  # of the unpacked files
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
MOST_BYTES = 48_000_000
MEAN, DEVIATION = 0.2860, 0.3530  # of the training pixels in [0, 1]
NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
         "Ankle boot")


@dataclass(frozen=True)
class FashionMNIST:
    """Classify articles of clothing; features float32 [n, 1, 28, 28] of mean 0 and deviation 1.

    ``folder`` holds the four IDX files, plain or .gz; None looks into the folder of Debian's package
    dataset-fashion-mnist and then into the cache ($FEDLEARN_DATA or ~/.cache/fedlearn). With
    ``download`` what is missing comes from ``url`` into the folder, or the cache, and is checked.
    ``samples`` takes only the first so many training images, and a sixth of it for the test.
    """

    folder: str | None = None
    download: bool = False
    url: str = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
    samples: int | None = None

    def __post_init__(self) -> None:
        if self.samples is not None:
            in_range("task.samples", self.samples, least=6)

    def load(self) -> RawData:
        """Return the data.

        Raises:
            DataError: if the files are not there (naming the three ways to get them) or not in order.
            ConfigError: if ``samples`` is more than there are.
        """
        folder = self._find()
        train_x, train_y = self._part(folder, "train", self.samples)
        test_x, test_y = self._part(folder, "t10k", None if self.samples is None else self.samples // 6)
        return RawData(train_x, train_y, test_x, test_y, classes=10, class_names=NAMES)

    def _find(self) -> Path:
        """Return the first folder with all four files, after a download if that is allowed."""
        cache = Path(os.environ.get("FEDLEARN_DATA") or Path.home() / ".cache" / "fedlearn") / "fashion_mnist"
        folders = [DEBIAN, cache] if self.folder is None else [Path(self.folder).expanduser()]
        for folder in folders:
            if all(_path(folder, name) for name in SHA256):
                return folder
        if not self.download:
            raise DataError(f"task=fashion_mnist: found no {', '.join(SHA256)} (plain or .gz) in "
                            f"{' or '.join(map(str, folders))}; allowed: task.folder=FOLDER with these "
                            "files, Debian's package (apt install dataset-fashion-mnist, without "
                            "task.folder), or task.download=true (30 MB, checked by SHA-256).")
        for name, checksum in SHA256.items():
            if not _path(folders[-1], name):
                url = f"{self.url.rstrip('/')}/{name}.gz"
                download_gzip(url, folders[-1] / f"{name}.gz", checksum, MOST_BYTES)
        return folders[-1]

    def _part(self, folder: Path, part: str, samples: int | None) -> tuple[Tensor, Tensor]:
        """Return normalised images and labels of a part, "train" or "t10k"."""
        image_file, label_file = (_path(folder, name) for name in SHA256 if name.startswith(part))
        assert image_file and label_file
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        if len(images) != len(labels) or labels.size and labels.max() > 9:
            raise DataError(f"{folder}: found {len(images)} {part} images and {len(labels)} labels up to "
                            f"{labels.max(initial=0)}; allowed: as many labels as images, 0 to 9; get the "
                            "files again.")
        if samples is not None and samples > len(images):
            raise ConfigError("task.samples", self.samples, f"up to the {len(images)} {part} images" +
                              (" x 6" if part == "t10k" else ""), "null takes all.")
        x = torch.from_numpy(images[:samples, None].copy()).float()
        return x.div_(255).sub_(MEAN).div_(DEVIATION), torch.from_numpy(labels[:samples].copy()).long()


def _path(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
