"""The worker: pure local work, states that count only when accepted, and errors that name the client."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import SIZES, begin, blobs, experiment, play, setup_of
from torch import nn
from torch.utils.data import Dataset

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.errors import CheckpointError, ClientError, ConfigError, NonFiniteUpdate
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.schedule import Constant
from fedlearn.tasks.supervised import SupervisedTask
from fedlearn.vectors import digest
from fedlearn.work import SUMS, Work
from fedlearn.worker.states import States
from fedlearn.worker.worker import Worker


def work_of(e, clients, **more):
    loop_x = e.task.initial(0)
    return Work(0, 0, e.algorithm.broadcast(e.algorithm.server_init(loop_x)), clients, [1.0] * len(clients), e.local,
                **more)


def test_a_reply_does_not_depend_on_who_ran_before():
    e = experiment(FedAvg(lr=0.3))
    work = work_of(e, [0, 1, 2, 3])

    def replies(order):
        return {m: digest(dict(msg)) for m, msg, _ in Worker(setup_of(e)).replies(work, order)}

    assert replies([0, 1, 2, 3]) == replies([3, 1, 0, 2])
    assert replies([2]) == {2: replies([0, 1, 2, 3])[2]}


def test_dropout_is_keyed_too():
    def task():
        torch.manual_seed(0)
        data = blobs()
        return SupervisedTask(nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3)), "cross_entropy",
                              data.store, data.test)
    e = experiment(FedAvg(lr=0.3), task=task())
    torch.manual_seed(123)
    one, _ = play(e)
    torch.manual_seed(456)
    two, _ = play(e)
    assert digest(one) == digest(two)


def test_records_tell_samples_steps_and_bytes():
    e = experiment(FedAvg(), local=LocalWork(epochs=2, batch_size=10))
    _, (report, *_) = play(e)
    assert [record.samples for record in report.records] == list(SIZES)
    assert [record.steps for record in report.records] == [2 * -(-n // 10) for n in SIZES]
    assert all(record.bytes_up == 4 * e.task.initial(0).numel() for record in report.records)
    assert all(0 < record.loss < 10 for record in report.records)


@pytest.mark.parametrize("reduce", ["exact", "fast"])
def test_nan_in_one_client_is_named_with_the_round(reduce):
    task = blobs()
    x, _ = task.store.client(2)
    x[1, 1] = float("nan")
    with pytest.raises(NonFiniteUpdate, match=r"client 2, round 0: \d+ of \d+ entries of upload 'dx' are NaN"):
        play(experiment(FedAvg(), task=task, reduce=reduce))


def test_an_exception_in_local_work_names_the_client():
    data = blobs()
    clients = [data.store.client(m) for m in range(len(SIZES))]
    clients[4] = clients[4][0], clients[4][1] + 7   # class 7 to 9 of 3
    e = experiment(FedAvg(), task=SupervisedTask(data.model, "cross_entropy", clients, None))
    with pytest.raises(ClientError, match=r"client 4, round 0: its local work failed with (Index|Value)Error"):
        play(e)


def test_a_state_counts_only_once_its_version_is_accepted():
    e = experiment(Scaffold(lr=0.3))
    worker = Worker(setup_of(e))

    def upload(key, versions):
        x = e.task.initial(0)
        work = Work(0, key, {"x": x, "c": torch.zeros_like(x)}, [1], [1.0], e.local, versions)
        ((_, msg, record),) = worker.replies(work, [1])
        assert record.state
        return digest({name: v.clone() for name, v in msg.items()})

    first = upload(0, {})
    # The same work again, its first reply not accepted: the same upload.
    assert upload(0, {}) == first
    upload(5, {})
    accepted = upload(6, {1: 5})
    assert upload(6, {1: 5}) == accepted != upload(6, {})


def test_states_survive_through_their_folder(tmp_path):
    template = (torch.zeros(3), {"a": torch.zeros(2)})
    state = (torch.arange(3.0), {"a": torch.tensor([1.0, 2.0])})
    memory = States(template, tmp_path / "later")
    memory.put(4, 10, state)
    assert not list((tmp_path / "later").iterdir())
    memory.flush([(4, 10)])
    through = States(template, tmp_path / "now", through=True)
    through.put(4, 10, state)
    for folder in ("later", "now"):
        read = States(template, tmp_path / folder).get(4, 10)
        assert torch.equal(read[0], state[0]) and torch.equal(read[1]["a"], state[1]["a"])
    through.put(4, 11, state)
    through.prune([(4, 11)])
    with pytest.raises(CheckpointError, match="the state of client 4 as of work 10 cannot be read"):
        States(template, tmp_path / "now").get(4, 10)


def test_a_stack_needs_an_oracle_that_can():
    with pytest.raises(ConfigError, match="stack: found True; allowed: false"):
        begin(experiment(FedAvg(), stack=True, oracle="autograd"))


def test_the_sum_does_not_depend_on_how_clients_are_dealt_out():
    e = experiment(FedAvg(lr=0.3))
    ids = list(range(len(SIZES)))
    work = work_of(e, ids)
    one = SUMS["exact"]()
    Worker(setup_of(e)).reduce(work, ids, one)
    rng = np.random.default_rng(0)
    for parts in (2, 3):
        buffers = []
        for part in np.array_split(rng.permutation(ids), parts):
            total = SUMS["exact"]()
            Worker(setup_of(e)).reduce(work, [int(m) for m in part], total)
            buffers.append(total.buffer)
        assert torch.equal(sum(buffers), one.buffer)


class Counting(nn.Module):
    """A model whose output depends on a buffer that it counts up."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return self.body(x) * (1 + 0.1 * self.seen)


class Noisy(Dataset):
    """A data set that augments with NumPy's and Python's global streams."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + float(np.random.randn()) + random.random(), int(self.y[i])


@pytest.mark.parametrize("case", ["buffer", "augmentation"])
def test_nothing_leaks_from_one_client_to_the_next(case):
    data = blobs()
    torch.manual_seed(0)
    if case == "buffer":
        task = SupervisedTask(Counting(), "cross_entropy", data.store, None)
    else:
        task = SupervisedTask(nn.Linear(6, 3), "cross_entropy", [Noisy(*data.store.client(m)) for m in range(6)], None)
    e = experiment(FedAvg(lr=0.3), task=task)
    work = work_of(e, [0, 1, 2])
    one = {m: digest(dict(msg)) for m, msg, _ in Worker(setup_of(e)).replies(work, [0, 1, 2])}
    other = {m: digest(dict(msg)) for m, msg, _ in Worker(setup_of(e)).replies(work, [2, 1])}
    assert other == {m: one[m] for m in (1, 2)}


def test_memory_for_states_is_bounded_and_old_versions_are_forgotten(tmp_path):
    state = torch.zeros(1000)
    states = States(state, tmp_path, memory=10 * 4000)
    for m in range(50):
        states.put(m, 0, state + m)
    assert sum(map(len, states.held.values())) <= 10
    assert [states.get(m, 0)[0].item() for m in (0, 25, 49)] == [0, 25, 49]
    for version in range(1, 100):
        states.put(49, version, state)
        states.settle({49: version})
    assert len(states.held[49]) == 1
    unbounded = States(state)
    for version in range(100):
        unbounded.put(1, version, state)
        unbounded.settle({1: version})
    assert len(unbounded.held[1]) == 1


class Rising(Constant):
    """A step size that is another one at every local step."""

    def factor(self, round: int, rounds: int, k: int = 0, t: int = 0) -> float:
        return k + 0.5


@pytest.mark.parametrize("stack", [False, True])
def test_a_step_is_told_the_sum_of_the_factors_before_it(stack):
    seen = []

    class Asking(FedAvg):
        def local_step(self, y, b, c, oracle, info):
            seen.append((info.k, info.lr_total))
            return super().local_step(y, b, c, oracle, info)

        def local_finish(self, y, b, c, info):
            seen.append((info.k, info.lr_total))
            return super().local_finish(y, b, c, info)

    e = experiment(Asking(), schedule=Rising())
    for _ in Worker(replace(setup_of(e), stack=stack)).replies(replace(work_of(e, [0, 1]), local=LocalWork(steps=3)),
                                                               [0, 1]):
        pass
    assert set(seen) == {(k, k * k / 2) for k in range(4)}
