"""Data that stays on its machines: the same bits as in one place, and nobody else's samples anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedlearn import cli
from fedlearn.backends.torchrun.agree import fingerprint
from fedlearn.config.assemble import experiment
from fedlearn.config.compose import compose
from fedlearn.data.deal import deal, federation, hold
from fedlearn.data.federation import Federation
from fedlearn.data.held import HeldStore
from fedlearn.data.store import ClientStore
from fedlearn.errors import ClientError, ConfigError, DataError
from fedlearn.running.execute import execute, setup_of
from fedlearn.tracking.run_folder import RunFolder

SPLIT = ["task=digits", "clients=9", "heterogeneity.alpha=0.3"]
RUN = ["algorithm=scaffold", "cohort=5", "rounds=3", "local.steps=4", "progress=none"]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "--no-python",
          "sh", "-c"]


def samples(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 3)).astype(np.float32), rng.integers(0, 4, n)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, split over three machines and a coordinator."""
    out = tmp_path_factory.mktemp("split") / "data"
    assert cli.main(["split", str(out), "--machines", "3", *SPLIT]) == 0
    return out


@pytest.fixture(scope="module")
def everywhere() -> str:
    """The hash of the same run with all data in one place."""
    return execute(experiment(compose([*SPLIT, *RUN]))).sha256


def test_a_machine_that_holds_everybody_ends_in_the_same_model(tmp_path: Path, everywhere: str) -> None:
    assert cli.main(["split", str(tmp_path / "data"), "--machines", "1", *SPLIT]) == 0
    private = experiment(compose(["task=private", f"task.folder={tmp_path / 'data/1'}", *RUN]))
    assert setup_of(private).stack == setup_of(experiment(compose([*SPLIT, *RUN]))).stack
    assert execute(private).sha256 == everywhere


@pytest.mark.torchrun
def test_machines_that_hold_some_each_end_in_the_same_model(split: Path, everywhere: str, tmp_path: Path) -> None:
    command = (f'cd {split} && exec {sys.executable} -m fedlearn run backend=torchrun backend.dedicated=true '
               f'task=private task.folder=$([ $RANK = 0 ] && echo coordinator || echo $RANK) runs={tmp_path} '
               + " ".join(RUN))
    done = subprocess.run([*LAUNCH, command], check=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True)
    assert f"sha256 {everywhere}" in done.stdout
    assert RunFolder.open("latest", tmp_path).metrics()[-1]["test_samples"] > 300    # the coordinator's test set


def test_each_holds_its_own_and_the_coordinator_nobody(split: Path) -> None:
    everybody = experiment(compose([*SPLIT, "cohort=null"])).task.store
    stores = {name: HeldStore.open(split / name) for name in ("1", "2", "3", "coordinator")}
    assert [stores[name].holds.tolist() for name in stores] == [[0, 3, 6], [1, 4, 7], [2, 5, 8], []]
    for store in stores.values():
        assert store.sizes.tolist() == everybody.sizes.tolist()
        assert len(store.features) == everybody.sizes[store.holds].sum()
        for m in store.holds:
            assert all(map(torch.equal, store.client(int(m)), everybody.client(int(m))))
    assert {path.name for path in (split / "coordinator").iterdir()} == {
        "federation.json", "test_features.npy", "test_labels.npy"}


def test_all_machines_have_the_same_fingerprint(split: Path, tmp_path: Path) -> None:
    def of(folder: Path) -> str:
        return fingerprint(setup_of(experiment(compose(["task=private", f"task.folder={folder}", *RUN]))))

    found = {of(split / name) for name in ("1", "2", "coordinator")}
    assert len(found) == 1
    deal(experiment(compose([*SPLIT, "seed=1", "cohort=null"])).task.store, 1, tmp_path / "other", 10)
    assert of(tmp_path / "other/1") not in found


def test_a_client_whose_data_is_elsewhere_is_named(split: Path) -> None:
    with pytest.raises(ClientError, match="client 0: .*its data is not here: found 3 of 9 clients in .*/2; allowed"):
        execute(experiment(compose(["task=private", f"task.folder={split / '2'}", *RUN, "cohort=null"])))
    with pytest.raises(ConfigError, match="heterogeneity: found 'Dirichlet'; allowed: natural with task Private"):
        experiment(compose(["task=private", f"task.folder={split / '2'}", "heterogeneity=dirichlet"]))


def test_machines_with_data_of_their_own(tmp_path: Path) -> None:
    announced = [hold(tmp_path / "a", {0: samples(12, 0), 2: samples(5, 2)}), hold(tmp_path / "b", {1: samples(7, 1)})]
    announced = json.loads(json.dumps(announced))       # as it may travel
    known = federation(announced, classes=4)
    assert known.sizes == [12, 7, 5]
    for name in "ab":
        known.write(tmp_path / name)
    a, b = HeldStore.open(tmp_path / "a"), HeldStore.open(tmp_path / "b")
    assert a.client(2)[0].tolist() == samples(5, 2)[0].tolist() and b.client(1)[1].tolist() == samples(7, 1)[1].tolist()
    with pytest.raises(DataError, match="client 1: its data is not here"):
        a.batch(1, [0])
    with pytest.raises(DataError, match="client 1: found on machine 1 and on one before it"):
        federation([announced[1], announced[1]], 4)
    with pytest.raises(DataError, match="client 1: found on no machine, though there are 2 clients"):
        federation([announced[0]], 4)
    with pytest.raises(DataError, match="machine 1: found features of"):
        federation([announced[0], announced[1] | {"features": [[3], "float64"]}], 4)


@pytest.mark.parametrize(("name", "change", "said"), [
    ("federation.json", lambda p: p.unlink(), "federation.json: found No such file or directory; allowed"),
    ("federation.json", lambda p: p.write_text("[]"), "TypeError"),
    ("federation.json", lambda p: p.write_text(p.read_text().replace("float32", "load")), "no shape and type"),
    ("federation.json", lambda p: p.write_text(p.read_text().replace("12", "0")), "client 0 has no data"),
    ("federation.json", lambda p: p.write_text(p.read_text().replace("12", "13")), "allowed: 13 of each"),
    ("clients.npy", lambda p: p.unlink(), "No such file"),
    ("clients.npy", lambda p: np.save(p, np.array([0, 0])), "each once and in rising order"),
    ("clients.npy", lambda p: np.save(p, np.array([7])), "the numbers of some of the 1 clients"),
    ("features.npy", lambda p: np.save(p, np.zeros((12, 4), np.float32)), "features are float32 .4., and float32 .3."),
    ("features.npy", lambda p: p.write_bytes(p.read_bytes()[:-1]), "allowed: clients.npy, features.npy, labels.npy"),
])
def test_a_damaged_folder_is_refused(tmp_path: Path, name: str, change, said: str) -> None:
    federation([hold(tmp_path, {0: samples(12, 0)})], 4).write(tmp_path)
    HeldStore.open(tmp_path)
    change(tmp_path / name)
    with pytest.raises(DataError, match=said):
        HeldStore.open(tmp_path)


def test_dealing_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ClientStore.from_clients([samples(5, 0), samples(6, 1)])
    with pytest.raises(DataError, match="machines: found 3 for 2 clients"):
        deal(store, 3, tmp_path / "out", 4)
    assert cli.main(["split", "/proc/nowhere", "--machines", "2", *SPLIT]) == 2
    assert "/proc/nowhere: found No such file or directory; allowed: a folder" in capsys.readouterr().err
    (tmp_path / "old").touch()
    with pytest.raises(DataError, match="found a folder that is not empty"):
        deal(store, 2, tmp_path, 4)


def test_nobody_without_samples_is_known_to_all(tmp_path: Path) -> None:
    Federation([3, 4], ([2], "float32"), ([], "int64"), 5, ("a", "b")).write(tmp_path)
    nobody = HeldStore.open(tmp_path)
    assert len(nobody) == 2 and nobody.features.shape == (0, 2) and not len(nobody.holds)
    x, y = nobody.stand_in().client(1)
    assert x.shape == (4, 2) and x.dtype == torch.float32 and y.tolist() == [0] * 4
    assert nobody.example()[0].shape == (1, 2)
