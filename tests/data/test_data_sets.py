"""The real data sets: digits, Fashion-MNIST (files, formats, download) and text."""

from __future__ import annotations

import gzip
import hashlib
import re
import struct
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from fedlearn.data.idx import read_idx
from fedlearn.data.partitions import Natural
from fedlearn.errors import ConfigError, DataError
from fedlearn.tasks import fashion_mnist
from fedlearn.tasks.digits import Digits
from fedlearn.tasks.fashion_mnist import DEBIAN, FashionMNIST
from fedlearn.tasks.text import OPTIONAL, Text, read_sources

debian = pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    data = Digits().load()
    x = torch.cat([data.train_x, data.test_x]).reshape(-1, 64) * 16
    both = np.column_stack([x.numpy(), torch.cat([data.train_y, data.test_y]).numpy()])
    theirs = load_digits()
    expected = np.column_stack([theirs.data, theirs.target])
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, expected.tolist()))
    assert data.train_x.shape == (1442, 1, 8, 8) and data.train_x.dtype == torch.float32
    assert data.train_x.max() == 1 and data.train_x.min() == 0 and data.train_y.dtype == torch.int64


def test_the_test_digits_are_a_fifth_of_each_class():
    data = Digits().load()
    train, test = data.train_y.bincount(), data.test_y.bincount()
    assert (((train + test) // 5) == test).all() and len(test) == 10


def test_digits_do_not_import_scikit_learn():
    code = ("import sys; from fedlearn.tasks.digits import Digits; Digits().load(); "
            "print('sklearn' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_digits_say_what_to_install(monkeypatch):
    monkeypatch.setattr("fedlearn.tasks.digits.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        Digits().load()


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def tiny() -> dict[str, bytes]:
    """Return a data set of the same form: 12 training and 4 test images."""
    r = np.random.default_rng(0)
    return {"train-images-idx3-ubyte": idx(r.integers(0, 256, (12, 28, 28))),
            "train-labels-idx1-ubyte": idx(np.arange(12) % 10),
            "t10k-images-idx3-ubyte": idx(r.integers(0, 256, (4, 28, 28))),
            "t10k-labels-idx1-ubyte": idx(np.arange(4))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the tiny data set, two files plain and two gzipped."""
    (tmp_path / "fm").mkdir()
    for i, (name, content) in enumerate(tiny().items()):
        if i % 2:
            (tmp_path / "fm" / name).write_bytes(content)
        else:
            (tmp_path / "fm" / f"{name}.gz").write_bytes(gzip.compress(content))
    return tmp_path / "fm"


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hide Debian's folder, put the cache below tmp_path, expect the tiny data set; returns the cache."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in tiny().items()}
    monkeypatch.setattr(fashion_mnist, "SHA256", checksums)
    monkeypatch.setenv("FEDLEARN_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fashion_mnist"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Serve a folder with the packed tiny data set on loopback; returns (address, folder)."""
    served = tmp_path / "served"
    served.mkdir()
    for name, content in tiny().items():
        (served / f"{name}.gz").write_bytes(gzip.compress(content))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", served
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@debian
def test_fashion_mnist_from_debian():
    data = FashionMNIST(samples=600).load()
    assert data.train_x.shape == (600, 1, 28, 28) and data.test_x.shape == (100, 1, 28, 28)
    assert data.train_x.dtype == torch.float32 and data.train_y.dtype == torch.int64
    assert data.train_y[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert data.classes == len(data.class_names) == 10


@debian
@pytest.mark.parametrize("name", fashion_mnist.SHA256)
def test_the_checksums_are_those_of_the_data(name):
    content = gzip.decompress((DEBIAN / f"{name}.gz").read_bytes())
    assert hashlib.sha256(content).hexdigest() == fashion_mnist.SHA256[name]
    assert len(content) <= fashion_mnist.MOST_BYTES


def test_fashion_mnist_from_a_named_folder(folder):
    data = FashionMNIST(folder=str(folder)).load()
    pixels = np.frombuffer(tiny()["train-images-idx3-ubyte"], np.uint8, offset=16).reshape(12, 1, 28, 28)
    np.testing.assert_allclose(data.train_x.numpy() * 0.3530 + 0.2860, pixels / 255, atol=1e-6)
    assert data.train_y.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1] and len(data.test_x) == 4


def test_missing_data_names_the_three_ways(nowhere, tmp_path):
    for task, where in ((FashionMNIST(), str(nowhere)), (FashionMNIST(folder=str(tmp_path)), str(tmp_path))):
        with pytest.raises(DataError) as caught:
            task.load()
        for way in ("task.folder=", "apt install dataset-fashion-mnist", "task.download=true", where):
            assert way in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_named_folder_is_not_silently_replaced_by_another(nowhere, folder, tmp_path):
    folder.rename(nowhere.parent.parent / "debian")
    assert len(FashionMNIST().load().train_x) == 12
    with pytest.raises(DataError, match="found no train-images"):
        FashionMNIST(folder=str(tmp_path / "typo")).load()


def test_download_goes_to_the_cache_and_only_once(nowhere, server):
    url, served = server
    data = FashionMNIST(download=True, url=url).load()
    assert len(data.train_x) == 12
    assert sorted(p.name for p in nowhere.iterdir()) == sorted(f"{name}.gz" for name in tiny())
    for file in served.iterdir():
        file.unlink()
    assert torch.equal(FashionMNIST(download=True, url=url).load().train_x, data.train_x)
    assert torch.equal(FashionMNIST().load().train_x, data.train_x)


def test_download_fills_a_named_folder(nowhere, server, folder):
    (folder / "t10k-labels-idx1-ubyte").unlink()
    assert len(FashionMNIST(folder=str(folder), download=True, url=server[0] + "/").load().test_x) == 4
    assert (folder / "t10k-labels-idx1-ubyte.gz").is_file() and not nowhere.exists()


@pytest.mark.parametrize(("damage", "message"), [
    ("missing", "failed: HTTP Error 404"),
    ("altered", "found content with SHA-256"),
    ("cut", "failed: Compressed file ended before"),
    ("no gzip", "failed: Not a gzipped file"),
])
def test_a_bad_download_leaves_nothing_behind(nowhere, server, damage, message):
    url, served = server
    file = served / "train-images-idx3-ubyte.gz"
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        bad = {"altered": gzip.compress(b"other"), "cut": content[:-100], "no gzip": b"<html>"}
        file.write_bytes(bad[damage])
    with pytest.raises(DataError, match=message):
        FashionMNIST(download=True, url=url).load()
    assert not nowhere.exists() or not list(nowhere.iterdir())


def test_an_address_that_nobody_answers(nowhere):
    with pytest.raises(DataError, match="download of .* failed"):
        FashionMNIST(download=True, url="file:///nowhere/at/all").load()


def test_samples_out_of_range(folder):
    with pytest.raises(ConfigError, match="task.samples: found 5; allowed: a number >= 6"):
        FashionMNIST(samples=5)
    with pytest.raises(ConfigError, match="task.samples: found 13; allowed: up to the 12 train images"):
        FashionMNIST(folder=str(folder), samples=13).load()


@pytest.mark.parametrize(("content", "message"), [
    (b"", "magic number ; allowed: 00000801"),
    (idx(np.zeros((2, 2))), "found the magic number 00000802; allowed: 00000801"),
    (idx(np.zeros(5))[:6], "found 6 bytes; allowed: a header of 8"),
    (idx(np.zeros(5))[:-1], "found 12 bytes; allowed: 13"),
    (idx(np.zeros(5)) + b"x", "found more than 13 bytes; allowed: 13"),
])
def test_a_damaged_idx_file_is_refused(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        read_idx(tmp_path / "file", 1)


def test_a_damaged_gz_file_is_refused(tmp_path):
    (tmp_path / "file.gz").write_bytes(gzip.compress(idx(np.zeros(500)), mtime=0)[:-9])
    with pytest.raises(DataError, match=r"file.gz: cannot be read"):
        read_idx(tmp_path / "file.gz", 1)


def test_labels_and_images_that_do_not_belong_together(folder):
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(11) % 10))
    with pytest.raises(DataError, match="found 12 train images and 11 labels"):
        FashionMNIST(folder=str(folder)).load()
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.full(12, 10)))
    with pytest.raises(DataError, match="labels up to 10"):
        FashionMNIST(folder=str(folder)).load()


def test_text_predicts_the_next_byte_of_the_standard_library():
    data = Text(length=32, samples_per_client=16).load()
    assert data.train_x.shape[1] == 32 and data.train_x.dtype == torch.int64 and data.classes == 256
    assert torch.equal(data.train_x[:, 1:], data.train_y[:, :-1])
    m = data.group_names.index("json")
    package = Path(sysconfig.get_paths()["stdlib"]) / "json"
    source = b"".join(file.read_bytes() for file in sorted(package.rglob("*.py")))
    mine = torch.from_numpy(np.flatnonzero(data.groups == m))
    assert bytes(data.train_x[mine].flatten().tolist()) == source[: 16 * 32]


def test_text_has_a_client_per_package_with_enough_in_it():
    task = Text()
    data = task.load()
    store = Natural().split(data, None, np.random.default_rng(0), 128 // 4)
    assert len(store) == len(data.group_names) == len(set(data.group_names)) > 100
    assert store.sizes.max() == 128
    single = {name for joined in data.group_names for name in joined.split("+")}
    assert {"asyncio", "json", "argparse"} <= single and not single & OPTIONAL
    assert single == {name for name, _ in read_sources(Path(sysconfig.get_paths()["stdlib"]))}


def test_test_windows_are_no_training_windows_and_the_same_each_time():
    data, again = Text().load(), Text().load()
    assert torch.equal(data.train_x, again.train_x) and torch.equal(data.test_y, again.test_y)
    assert len(data.test_x) <= 16 * len(data.group_names)
    seen = set(map(bytes, data.train_x.tolist()))
    common = sum(bytes(row) in seen for row in data.test_x.tolist())
    assert common < len(data.test_x) / 50  # repeated lines of source only


def test_text_without_sources_says_where_it_looked(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match=f"sources in {tmp_path}"):
        Text().load()


@pytest.mark.parametrize(("make", "key"), [(lambda: Text(length=0), "task.length"),
                                           (lambda: Text(samples_per_client=3), "task.samples_per_client")])
def test_text_values_out_of_range(make, key):
    with pytest.raises(ConfigError, match=key):
        make()
