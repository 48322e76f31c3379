"""Updates that are refused: none of them touches the sum, the others' bits are as without them, and who is named."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from backends.unruly import Huge, poisoned
from problems import SIZES, begin, blobs, experiment, play, setup_of

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.mime import Mime
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.contracts import Stage
from fedlearn.errors import (
    BadUpdate,
    ClientError,
    ConfigError,
    FedlearnError,
    LateReply,
    NonFiniteUpdate,
    ResourceError,
    UpdateOverflow,
)
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.sampling import UniformSampling
from fedlearn.policies.weighting import SchemeTwo, UniformWeighting
from fedlearn.tasks.supervised import SupervisedTask
from fedlearn.vectors import digest, tree_flat
from fedlearn.work import SUMS, Work
from fedlearn.worker.uploads import norm_of
from fedlearn.worker.worker import Worker

N = len(SIZES)
STEPS = LocalWork(steps=3, batch_size=5)


def mislabelled(client):
    """``blobs`` with labels of one client that the model has no output for."""
    data = blobs()
    clients = [data.store.client(m) for m in range(N)]
    clients[client] = clients[client][0], clients[client][1] + 7
    return SupervisedTask(data.model, "cross_entropy", clients, data.test)


BAD = {"nan": poisoned, "raises": mislabelled}


def work_of(e, clients, weights=None, **more):
    b = e.algorithm.broadcast(e.algorithm.server_init(e.task.initial(0)))
    return Work(0, 0, b, clients, weights or [1.0] * len(clients), e.local, **more)


def summed(e, clients, asked=None):
    """Return the bits of the exact sum over clients, of the work of those that were asked, and the part."""
    total = SUMS["exact"]()
    part = Worker(setup_of(e)).reduce(work_of(e, asked or clients), clients, total)
    total.carry()
    return total.buffer, part


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize("kind", BAD)
def test_the_sum_is_that_of_the_others(kind, stack):
    e = experiment(FedAvg(lr=0.3), task=BAD[kind](3), on_bad_update="refuse", stack=stack, local=LocalWork(epochs=2))
    everybody, others = list(range(N)), [m for m in range(N) if m != 3]
    bits, part = summed(e, everybody)
    assert torch.equal(bits, summed(e, others, everybody)[0])
    assert sorted(record.client for record in part.records) == others
    assert [(error.client, error.round) for error in part.refused] == [(3, 0)]


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize("kind", BAD)
def test_by_default_the_round_ends_with_the_error(kind, stack):
    with pytest.raises(ClientError) as error:
        play(experiment(FedAvg(), 1, task=BAD[kind](3), stack=stack))
    assert (error.value.client, error.value.round) == (3, 0)


@pytest.mark.parametrize("stack", [False, True])
def test_a_round_is_the_weighted_mean_of_the_others(stack):
    e = experiment(FedAvg(lr=0.3, server_lr=0.5), 1, task=poisoned(1), on_bad_update="refuse", local=STEPS, stack=stack)
    x, (report,) = play(e)
    x0, total = e.task.initial(0).double(), 0.0
    replies = Worker(setup_of(replace(e, on_bad_update="stop"))).replies(
        work_of(e, [0, 2, 3, 4, 5]), [0, 2, 3, 4, 5])
    for m, msg, _ in replies:
        total = total + SIZES[m] * msg["dx"].double()
    by_hand = x0 + 0.5 * total / (sum(SIZES) - SIZES[1])
    assert torch.allclose(x.double(), by_hand, rtol=0, atol=1e-6)
    assert [record.client for record in report.records] == [0, 2, 3, 4, 5]
    assert list(report.cohort) == list(range(N)) and [error.client for error in report.refused] == [1]
    assert report.bytes_down == N * 4 * x.numel() and report.bytes_up == (N - 1) * 4 * x.numel()


def test_a_plain_mean_is_over_the_accepted_and_a_fixed_denominator_is_not():
    choices = {"task": poisoned(2), "on_bad_update": "refuse", "local": STEPS, "stack": False}
    e = experiment(Scaffold(lr=0.2), 1, **choices)
    loop, _ = begin(e)
    loop.round(0)
    good = [m for m in range(N) if m != 2]
    replies = {m: {name: v.clone() for name, v in msg.items()}
               for m, msg, _ in Worker(setup_of(e)).replies(work_of(e, good), good)}
    dc = sum(msg["dc"].double() for msg in replies.values()) / len(good)
    assert torch.allclose(loop.server.c.double(), dc * len(good) / N, rtol=0, atol=1e-6)    # |S|/N of their mean
    assert sorted(loop.accepted_versions) == good

    e = experiment(FedAvg(lr=0.2), 1, weighting=SchemeTwo(), sampling=UniformSampling(), **choices)
    x, _ = play(e)
    replies = {m: msg["dx"].clone() for m, msg, _ in Worker(setup_of(e)).replies(work_of(e, good), good)}
    # A missing update counts as zero: n_m / n * N / S, S the clients that were asked.
    mean = sum(SIZES[m] / sum(SIZES) * replies[m].double() for m in good)
    assert torch.allclose(x.double(), e.task.initial(0).double() + mean, rtol=0, atol=1e-6)


def test_a_refused_clients_state_is_that_of_before():
    """SCAFFOLD with a client whose upload is too long in one round: its control variate stays, to the bit."""
    e = experiment(Scaffold(lr=0.2), 3, local=STEPS, stack=False)
    loop, workers = begin(e)
    loop.round(0)
    held = {m: loop.accepted_versions[m] for m in range(N)}
    x, c = (t.clone() for t in tree_flat(loop.server).values())
    work = Work(1, 1, {"x": x, "c": c}, [4], [1.0], e.plan(1), held)

    def next_upload(versions):
        ((_, msg, _),) = workers.worker.replies(replace(work, round=2, key=2, versions=versions), [4])
        return digest({name: v.clone() for name, v in msg.items()})

    before = next_upload({4: 0})
    strict = Worker(replace(setup_of(e), on_bad_update="refuse", max_update_norm=1e-9))
    strict.states = workers.worker.states
    part = strict.reduce(work, [4], SUMS["exact"]())
    assert not part.records and isinstance(part.refused[0], BadUpdate)
    assert 1 not in strict.states.held[4]       # nothing was put
    assert next_upload({4: 0}) == before


def test_the_norm_is_that_of_all_vectors_of_an_upload():
    e = experiment(Scaffold(lr=0.2), 1, local=STEPS, stack=False)
    norms = {m: (msg["dx"].double().square().sum() + msg["dc"].double().square().sum()).sqrt().item()
             for m, msg, _ in Worker(setup_of(e)).replies(work_of(e, list(range(N))), list(range(N)))}
    ordered = sorted(norms, key=norms.__getitem__)
    bound = (norms[ordered[3]] + norms[ordered[4]]) / 2
    _, (report,) = play(replace(e, on_bad_update="refuse", max_update_norm=bound))
    assert sorted(error.client for error in report.refused) == sorted(ordered[4:])
    assert all(isinstance(error, BadUpdate) and "max_update_norm" in error.what for error in report.refused)
    with pytest.raises(BadUpdate, match=r"its upload has norm [\d.e-]+; allowed: at most 1e-09"):
        play(replace(e, max_update_norm=1e-9))


def test_a_norm_has_the_same_bits_wherever_its_row_stands():
    v = torch.randn(70_001, dtype=torch.float32)
    rows = torch.zeros(3, 70_001)
    rows[2] = v
    assert norm_of({"dx": v.unsqueeze(0)}, 0) == norm_of({"dx": rows}, 2)
    assert norm_of({"a": torch.tensor([[3.0]]), "b": torch.tensor([[4.0]])}, 0) == 5


@dataclass(frozen=True)
class Odd(FedAvg):
    """Sends something else where it moved far."""

    kind: str = "name"

    def local_finish(self, y, b, c, info):
        msg, c = super().local_finish(y, b, c, info)
        if msg["dx"].abs().max() > 0.5:
            msg = {"name": {"dx": msg["dx"], "more": msg["dx"]}, "dtype": {"dx": msg["dx"].double()},
                   "shape": {"dx": msg["dx"][:3]}, "kind": {"dx": msg["dx"].int()}}[self.kind]
        return msg, c


@pytest.mark.parametrize("kind", ["name", "dtype", "shape", "kind"])
def test_a_bad_first_client_does_not_say_what_the_others_are_to_send(kind):
    task = blobs()
    task.store.client(0)[0][:] *= 10
    e = experiment(Odd(lr=0.3, kind=kind), 1, task=task, on_bad_update="refuse", stack=False, local=STEPS)
    _, (report,) = play(e)
    assert [error.client for error in report.refused] == [0] and isinstance(report.refused[0], BadUpdate)
    assert len(report.records) == N - 1
    with pytest.raises(BadUpdate, match=r"client 0, round 0: (its )?upload"):
        play(replace(e, on_bad_update="stop"))


@dataclass(frozen=True)
class Grows(FedAvg):
    """Asks for another upload in later rounds."""

    def local_finish(self, y, b, c, info):
        msg, c = super().local_finish(y, b, c, info)
        return msg | ({"more": torch.ones_like(msg["dx"][..., :2])} if info.round else {}), c

    def server_update(self, s, mean, info):
        assert set(mean) == ({"dx", "more"} if info.round else {"dx"})
        return super().server_update(s, mean, info)


@pytest.mark.parametrize("policy", ["stop", "refuse"])
def test_an_algorithm_may_ask_for_more_in_later_rounds(policy):
    _, reports = play(experiment(Grows(), 3, on_bad_update=policy))
    assert all(len(report.records) == N for report in reports)


@dataclass(frozen=True)
class Placeholder(FedAvg):
    """Works on nothing before its first step."""

    def local_init(self, b, c):
        return torch.zeros(1)

    def local_step(self, y, b, c, oracle, info):
        return super().local_step(b["x"].clone() if len(y) == 1 else y, b, c, oracle, info)


@dataclass(frozen=True)
class Moved(FedAvg):
    """Cannot send nothing."""

    def local_finish(self, y, b, c, info):
        assert not torch.equal(y, b["x"])
        return super().local_finish(y, b, c, info)


@pytest.mark.parametrize("policy", ["stop", "refuse"])
def test_what_is_there_only_after_a_step_is_found_with_one(policy):
    _, (report,) = play(experiment(Placeholder(), 1, on_bad_update=policy, stack=False))
    assert len(report.records) == N


def test_what_clients_are_to_send_has_to_be_known_to_leave_some_out():
    play(experiment(Moved(), 1, stack=False))
    with pytest.raises(ConfigError, match="algorithm: found 'Moved'; allowed: one whose local steps"):
        play(experiment(Moved(), 1, on_bad_update="refuse", stack=False))


def test_everybody_has_an_equal_share_of_the_exact_sum():
    share = 2.0**22 / N
    fits, _ = play(experiment(Huge(size=0.99 * share), 1, weighting=UniformWeighting(), on_bad_update="refuse"))
    assert torch.allclose(fits, torch.tensor(0.99 * share).float(), rtol=1e-5)
    _, (report,) = play(experiment(Huge(size=1.01 * share), 1, weighting=UniformWeighting(), on_bad_update="refuse"))
    assert report.void and len(report.refused) == N and isinstance(report.refused[0], UpdateOverflow)


# --- what is said ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blows(FedAvg):
    """Its clients' models are none from a local step on; from 9 on, only what they send."""

    step: int = 2

    def local_step(self, y, b, c, oracle, info):
        y = super().local_step(y, b, c, oracle, info)
        return y * float("inf") if info.k == self.step else y

    def local_finish(self, y, b, c, info):
        return ({"dx": y / 0} if self.step == 9 else {"dx": y}), c


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize(("algorithm", "task", "where"), [
    (Blows(step=2), blobs, "the model became so at local step 3 of 4"),
    (Blows(step=0), blobs, "the model became so at local step 1 of 4"),
    (Blows(step=9), blobs, "all its local steps were finite"),
    (FedAvg(lr=0.1), lambda: poisoned(0), "the (loss|gradient) became so at local step 1 of 4"),
], ids=["later", "first", "finish", "data"])
def test_a_number_that_is_none_is_followed_to_its_step(stack, algorithm, task, where):
    e = experiment(algorithm, 1, task=task(), stack=stack, local=LocalWork(steps=4, batch_size=None))
    with pytest.raises(NonFiniteUpdate, match=rf"client \d, round 0: \d+ of 43 entries of upload 'dx' are NaN or "
                       rf"infinite \({where}[^)]*\); lower the client step size"):
        play(e)


def test_nobody_is_blamed_for_a_server_that_went_astray():
    class Astray(FedAvg):
        def server_update(self, s, mean, info):
            return super().server_update(s, {"dx": mean["dx"] * float("nan")}, info)

    with pytest.raises(NonFiniteUpdate, match=r"round 1: .* \(the broadcast that it began from is so already\)"):
        play(experiment(Astray(), 2, on_bad_update="drop"))


def test_who_is_asked_twice_is_not_run_twice_without_need(monkeypatch):
    steps = []

    class Counts(FedAvg):
        def local_step(self, y, b, c, oracle, info):
            steps.append(info.k)
            return super().local_step(y, b, c, oracle, info)

    play(experiment(Counts(), 2, on_bad_update="refuse", local=STEPS, stack=False))
    assert len(steps) == 2 * N * 3


@pytest.mark.parametrize("stack", [False, True])
def test_an_exception_names_the_step(stack):
    e = experiment(FedAvg(), 1, task=mislabelled(4), stack=stack, local=STEPS)
    with pytest.raises(ClientError, match=r"client 4, round 0: its local work failed with \w+ (at local step \d of 3|"
                       r"before its first local step): "):
        play(e)


class Raises(FedAvg):
    """Fails at the third step of every client."""

    def local_step(self, y, b, c, oracle, info):
        if info.k == 2:
            raise KeyError("gone")
        return super().local_step(y, b, c, oracle, info)


@pytest.mark.parametrize("stack", [False, True])
def test_an_exception_in_a_step_of_the_algorithm_names_it_too(stack):
    with pytest.raises(ClientError, match=r"client 0, round 0: .* KeyError at local step 3 of 3: 'gone'"):
        play(experiment(Raises(), 1, stack=stack, local=STEPS))


@pytest.mark.parametrize("stack", [False, True])
def test_draws_that_fail_are_their_clients(stack, monkeypatch):
    task = blobs()
    draws = task.draws

    def gone(client, rng, plan):
        if client == 2:
            raise FileNotFoundError("its disk is gone")
        return draws(client, rng, plan)

    monkeypatch.setattr(task, "draws", gone)
    e = experiment(FedAvg(), 1, task=task, stack=stack)
    with pytest.raises(ClientError, match="client 2, round 0: its local work failed with FileNotFoundError when its "
                       "mini-batches were drawn: its disk is gone"):
        play(e)
    _, (report,) = play(replace(e, on_bad_update="refuse"))
    assert [error.client for error in report.refused] == [2] and len(report.records) == N - 1


@pytest.mark.parametrize("error", [MemoryError("no more"), RuntimeError("it can't allocate memory: 9 bytes")])
def test_memory_that_does_not_suffice_is_nobodys_fault(error):
    class Large(FedAvg):
        def local_step(self, y, b, c, oracle, info):
            raise error

    with pytest.raises(ResourceError, match="memory does not suffice for the work of client 0, round 0"):
        play(experiment(Large(), 1, on_bad_update="drop"))


class Far(Stage):
    """Fails for one client."""

    def encode(self, msg, client, round):
        if client == 5:
            raise ValueError("too far away")
        return msg


@pytest.mark.parametrize("stack", [False, True])
def test_a_stage_that_fails_is_its_clients(stack):
    e = experiment(FedAvg(), 1, pipeline={"far": Far()}, on_bad_update="refuse", stack=stack)
    _, (report,) = play(e)
    assert [(error.client, error.what) for error in report.refused] == [
        (5, "its local work failed with ValueError: too far away")]


# --- later rounds ---------------------------------------------------------------------------------------------------


def test_refused_it_comes_again_dropped_it_does_not():
    for policy, times in (("refuse", 4), ("drop", 1)):
        _, reports = play(experiment(FedAvg(), 4, task=poisoned(3), on_bad_update=policy))
        assert sum(len(report.refused) for report in reports) == times
        assert [3 in report.cohort for report in reports] == [True, *[policy == "refuse"] * 3]
        assert all(len(report.records) == N - 1 for report in reports)


@pytest.mark.parametrize("policy", ["refuse", "drop"])
def test_a_checkpoint_remembers_who_was_refused(policy):
    e = experiment(Scaffold(), 6, task=poisoned(3), on_bad_update=policy, cohort=4, stack=False)
    whole, reports = play(e)
    loop, workers = begin(e)
    for r in range(4):
        loop.round(r)
    tensors, meta = loop.snapshot()
    tensors = {name: t.clone() for name, t in tensors.items()}
    later = e.protocol.start(e, workers)
    later.restore(tensors, meta)
    assert later.refused.counts == loop.refused.counts != {}
    rest = [later.round(r) for r in (4, 5)]
    assert digest(later.model()) == digest(whole)
    assert [report.cohort for report in rest] == [report.cohort for report in reports[4:]]


def test_when_everybody_was_dropped_the_run_ends():
    class Never(FedAvg):
        def local_step(self, y, b, c, oracle, info):
            raise ValueError("never")

    with pytest.raises(FedlearnError, match=r"round 1: all 6 clients were dropped, each for a bad update"):
        play(experiment(Never(), 3, on_bad_update="drop"))


@pytest.mark.parametrize("kind", BAD)
def test_who_is_refused_in_the_prelude_does_not_take_part_in_the_round_proper(kind):
    e = experiment(Mime(), 2, task=BAD[kind](3), on_bad_update="refuse", stack=False)
    _, reports = play(e)
    for report in reports:
        assert [error.client for error in report.refused] == [3]
        assert [record.client for record in report.records] == [0, 1, 2, 4, 5]
    whole, (undisturbed, *_) = play(experiment(Mime(), 2, stack=False))
    each = undisturbed.bytes_up // N
    assert reports[0].bytes_up == (N - 1) * each
    assert 0 < undisturbed.bytes_down - reports[0].bytes_down < undisturbed.bytes_down // N


def test_late_replies_are_never_in_the_sum_whatever_the_policy():
    e = experiment(Scaffold(lr=0.1), 1, stack=False)
    worker, total = Worker(setup_of(e)), SUMS["exact"]()
    part = worker.reduce(work_of(e, [0, 1, 2], deadline=1e-9), [0, 1, 2], total)
    assert not part.records and total.layout is None and not worker.states.held
    assert [type(error) for error in part.refused] == [LateReply] * 3
    assert "only at local step 1 of" in part.refused[0].what


def test_shares_of_several_workers_add_up_to_the_same_bits():
    e = experiment(FedAvg(lr=0.3), task=poisoned(2), on_bad_update="refuse")
    everybody = list(range(N))
    one, _ = summed(e, everybody)
    for shares in ([[2], [0, 1, 3, 4, 5]], [[5, 2, 0], [1], [4, 3]]):
        parts = [summed(e, share, everybody) for share in shares]
        assert torch.equal(sum(bits for bits, part in parts if part.records), one)
        assert [error.client for _, part in parts for error in part.refused] == [2]


def test_records_stay_beside_their_uploads():
    """Bad rows of a stack take their states and losses with them."""
    e = experiment(Scaffold(lr=0.2), 1, task=poisoned(1), on_bad_update="refuse", stack=True, local=STEPS)
    worker = Worker(setup_of(e))
    part = worker.reduce(work_of(e, list(range(N))), list(range(N)), SUMS["exact"]())
    alone = Worker(setup_of(e))
    for record in part.records:
        (other,) = alone.reduce(work_of(e, [record.client]), [record.client], SUMS["exact"]()).records
        assert record.loss == pytest.approx(other.loss, rel=1e-6) and np.isfinite(record.loss)
        assert torch.allclose(worker.states.get(record.client, 0), alone.states.get(record.client, 0), atol=1e-6)
    assert 1 not in worker.states.held
