"""The Python face: bring your own model, loss and data."""

import numpy as np
import pytest
import torch
from problems import blobs
from torch import nn
from torch.utils.data import Dataset

import fedlearn
from fedlearn.checkpoint import load_model
from fedlearn.errors import ConfigError, DataError, ModelError
from fedlearn.policies.schedule import Cosine
from fedlearn.tracking.run_folder import RunFolder
from fedlearn.vectors import flatten

RNG = np.random.default_rng(0)
CLIENTS = [(RNG.standard_normal((n, 4)).astype("float32") + m % 2, np.full(n, m % 2))
           for m, n in enumerate((9, 30, 14))]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 2)


class Slow(Dataset):
    """A map-style data set of one client."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return self.x[i], int(self.y[i])


def train(**more):
    given = {"model": net(), "clients": CLIENTS, "algorithm": fedlearn.FedAvg(lr=0.5), "rounds": 3, "progress": "none"}
    return fedlearn.run(**(given | more))


def test_arrays_tensors_and_datasets_are_the_same_data():
    tensors = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in CLIENTS]
    hashes = {train(clients=clients).sha256 for clients in (CLIENTS, tensors, [Slow(x, y) for x, y in CLIENTS])}
    assert len(hashes) == 1


def test_history_holds_metrics_and_the_trained_model():
    x, y = (torch.as_tensor(np.concatenate(part)) for part in zip(*CLIENTS, strict=True))
    history = train(rounds=20, test=(x, y))
    assert [line["round"] for line in history.metrics] == list(range(21))
    assert history.final("test_accuracy") > 0.85 > history.metrics[0]["test_accuracy"]
    assert torch.equal(flatten(history.model.parameters()), history.x)
    assert (history.model(x).argmax(1) == y).float().mean().item() == pytest.approx(history.final("test_accuracy"))
    assert history.metrics[1]["bytes_up"] == 3 * 4 * 10


def test_a_loss_of_ones_own_and_frozen_layers():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    for p in model[0].parameters():
        p.requires_grad_(False)
    frozen = model[0].weight.clone()
    history = train(model=model, loss=lambda out, y: torch.nn.functional.multi_margin_loss(out, y))
    assert history.x.numel() == 3 * 2 + 2
    assert torch.equal(model[0].weight, frozen)


def test_a_folder_keeps_the_run_and_resume_continues_it(tmp_path):
    whole = train(rounds=6)
    train(rounds=4, folder=tmp_path / "run", checkpoint_every=2)
    with pytest.raises(ConfigError, match="folder: found .*resume=True"):
        train(rounds=6, folder=tmp_path / "run")
    history = train(rounds=6, folder=tmp_path / "run", resume=True)
    assert history.sha256 == whole.sha256
    folder = RunFolder(tmp_path / "run")
    assert [line["round"] for line in folder.ledger()] == [1, 2, 3, 4, 5, 6]
    assert [line["round"] for line in history.metrics] == list(range(7))
    named, about = load_model(tmp_path / "run")
    assert about["sha256"] == whole.sha256
    assert torch.equal(flatten(named[name] for name in ("weight", "bias")), whole.x)


@pytest.mark.parametrize("algorithm", [
    fedlearn.FedBuff(buffer=2), fedlearn.DSGD(), fedlearn.GradientCoding(replication=2), fedlearn.Scaffold(),
    fedlearn.FedAdam(), fedlearn.FedProx(), fedlearn.MinibatchSGD()], ids=lambda a: type(a).__name__)
def test_every_kind_of_algorithm_finds_its_protocol(algorithm):
    assert train(algorithm=algorithm).final("train_loss") > 0


def test_trackers_hear_everything_in_order():
    heard = []

    class Listener:
        def started(self, folder, config):
            heard.append("started")

        def round(self, metrics):
            heard.append(metrics["round"])

        def finished(self, summary):
            heard.append(summary["sha256"])

    history = train(trackers=[Listener()])
    assert heard == ["started", 0, 1, 2, 3, history.sha256]


@pytest.mark.parametrize(("given", "kind", "message"), [
    ({"model": nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))}, ModelError,
     r"1.*BatchNorm1d.*GroupNorm"),
    ({"clients": [*CLIENTS, (np.zeros((0, 4), "float32"), np.zeros(0, int))]}, DataError, r"client 3"),
    ({"cohort": 4}, ConfigError, r"cohort: found 4; allowed: 1 to 3"),
    ({"loss": "crossentropy"}, ConfigError, r"loss: found 'crossentropy'; .*did you mean cross_entropy"),
    ({"model": None}, ConfigError, r"task: found None; allowed: either task, or model and clients"),
    ({"task": blobs()}, ConfigError, r"allowed: either task, or model and clients"),
    ({"test": (np.zeros((3, 4), "float32"), np.zeros(2, int))}, DataError, r"test set: found 3 features and 2 labels"),
    ({"oracle": "magic"}, ConfigError, r"oracle: found 'magic'; allowed: one of auto, autograd"),
    ({"reduce": "median"}, ConfigError, r"reduce: found 'median'"),
])
def test_what_cannot_be_run_is_said_in_one_line(given, kind, message):
    with pytest.raises(kind, match=message) as caught:
        train(**given)
    assert "\n" not in str(caught.value)


def test_resume_refuses_another_experiment_and_names_what_differs(tmp_path):
    run = {"folder": tmp_path / "run", "checkpoint_every": 2, "cohort": 2}
    train(**run)
    again = {**run, "resume": True}
    for given, message in (({"algorithm": fedlearn.FedAvg(lr=0.1)}, r"algorithm: found .*lr=0.1.*allowed: .*lr=0.5"),
                           ({"algorithm": fedlearn.FedAdam()}, r"algorithm: found 'FedAdam"),
                           ({"seed": 1}, r"seed: found '1'; allowed: 0, as in the run"),
                           ({"clients": CLIENTS[:2]}, r"task: found .*2 clients"),
                           ({"rounds": 2}, r"rounds: found 2; allowed: >= 3, the rounds that are done")):
        with pytest.raises(ConfigError, match=message):
            train(**again, **given)
    # Whoever needs to know the length of the run cannot change it on the way.
    cosine = {"schedule": Cosine(), "folder": tmp_path / "cosine"}
    train(**cosine)
    with pytest.raises(ConfigError, match=r"rounds: found '5'; allowed: 3, as in the run"):
        train(**cosine, rounds=5, resume=True)


def test_the_callers_random_streams_and_threads_are_left_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1).item(), np.random.rand()
    model = net()
    torch.manual_seed(5)
    np.random.seed(5)
    threads = torch.get_num_threads()
    fedlearn.run(model=model, clients=CLIENTS, algorithm=fedlearn.FedAvg(), rounds=2, progress="none")
    assert (torch.rand(1).item(), np.random.rand()) == expected and torch.get_num_threads() == threads


def test_a_model_that_does_not_fit_the_test_data_is_named():
    with pytest.raises(ModelError, match=r"the evaluation failed with RuntimeError: .*shapes.*; check that"):
        train(test=(np.zeros((5, 7), "float32"), np.zeros(5, int)))


def test_a_metric_that_does_not_exist():
    with pytest.raises(ConfigError, match=r"metric: found 'test_acuracy'; .*did you mean test_accuracy"):
        train(test=CLIENTS[0]).final("test_acuracy")
