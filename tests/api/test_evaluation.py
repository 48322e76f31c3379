"""Evaluation: on a sample or on all, in line or beside the next round, with the same figures and no line lost."""

from __future__ import annotations

import json
import time
from threading import Condition, Event, Thread, current_thread, main_thread

import numpy as np
import pytest
import torch
from problems import SIZES, blobs, experiment
from torch import nn

import fedlearn
from fedlearn import cli
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.checkpoint import Checkpoints
from fedlearn.errors import ClientError, ConfigError, ModelError
from fedlearn.running.execute import checkpoint_of, execute
from fedlearn.running.profile import Profile
from fedlearn.seeds import generator
from fedlearn.tasks.logistic import Logistic
from fedlearn.tasks.quadratic import Quadratic
from fedlearn.tasks.supervised import SupervisedTask
from fedlearn.tracking.run_folder import RunFolder

RNG = np.random.default_rng(0)
CLIENTS = [(RNG.standard_normal((n, 4)).astype("float32"), np.arange(n) % 2) for n in (9, 30, 14)]
TEST = RNG.standard_normal((50, 4)).astype("float32"), np.arange(50) % 2


def figures(lines: list[dict]) -> list[dict]:
    """The lines without their seconds."""
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def dropout() -> SupervisedTask:
    """A task whose clients draw from torch's global stream in every step."""
    torch.manual_seed(0)
    return SupervisedTask(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 2)), "cross_entropy", CLIENTS,
                          TEST)


class Watched(SupervisedTask):
    """Blobs that call ``hook`` in every evaluation, and ``step`` when a client of a round begins."""

    def __init__(self, hook=lambda: None, step=lambda: None) -> None:
        given = blobs()
        super().__init__(given.model, "cross_entropy", given.store, given.test)
        self.hook, self.step = hook, step

    def evaluate(self, x):
        self.hook()
        return super().evaluate(x)

    def draws(self, client, rng, local):
        self.step()
        return super().draws(client, rng, local)


class Listener:
    """A tracker that notes the rounds it hears of."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def started(self, folder, config):
        pass

    def round(self, metrics):
        assert current_thread() is main_thread()
        self.heard.append(metrics["round"])

    def finished(self, summary):
        pass


def test_a_sample_is_drawn_once_by_the_seed_and_the_last_round_stands_on_all():
    task = blobs()
    lines = execute(experiment(FedAvg(), rounds=3, task=task, evaluate_samples=20, seed=5)).metrics
    assert [line["test_samples"] for line in lines] == [20, 20, 20, 60]
    index = generator(5, "evaluation").choice(60, 20, replace=False)
    by_hand = SupervisedTask(task.model, "cross_entropy", task.store, (task.test[0][index], task.test[1][index]))
    found = by_hand.evaluate(task.initial(0))
    assert lines[0]["test_loss"] == pytest.approx(found["loss"]) and lines[0]["test_accuracy"] == found["accuracy"]
    whole = execute(experiment(FedAvg(), rounds=3, seed=5)).metrics
    assert figures(whole)[3] == figures(lines)[3] and whole[0]["test_samples"] == 60
    assert whole[0]["test_loss"] != lines[0]["test_loss"]
    other = execute(experiment(FedAvg(), rounds=1, evaluate_samples=20, seed=6)).metrics
    assert other[0]["test_loss"] != lines[0]["test_loss"]


@pytest.mark.torchrun
def test_figures_and_hash_are_the_same_on_ranks():
    def run(**choices):
        return execute(experiment(FedAvg(), rounds=4, task=dropout(), evaluate_samples=20, **choices))

    here = run()
    for there in (run(backend=Torchrun(workers=2)), run(backend=Torchrun(workers=2), evaluate_aside=True)):
        assert there.sha256 == here.sha256 and figures(there.metrics) == figures(here.metrics)


@pytest.mark.parametrize(("task", "samples", "message"), [
    (Quadratic().build(4, 0, torch.float32), 5, "null with task QuadraticTask. It has no test set"),
    (Logistic().build(4, 0, torch.float32), 5, "null with task LogisticTask. Its evaluation is exact"),
    (SupervisedTask(nn.Linear(4, 2), "cross_entropy", CLIENTS), 5, "null without a test set"),
    (blobs(), 61, "null or 1 to 60, the samples of the test set"),
    (blobs(), 0, "a number >= 1"),
    (blobs(), 2.5, "a whole number"),
])
def test_a_sample_that_cannot_be_had_is_refused(task, samples, message):
    message = message.replace("LogisticTask", type(task).__name__)
    with pytest.raises(ConfigError, match=rf"^evaluate.samples: found {samples}; allowed: {message}"):
        experiment(FedAvg(), task=task, evaluate_samples=samples)


def test_evaluation_aside_is_refused_where_it_would_not_be_safe():
    with pytest.raises(ConfigError, match=r"evaluate.aside: found True; allowed: false with task QuadraticTask"):
        experiment(FedAvg(), task=Quadratic().build(4, 0, torch.float32), evaluate_aside=True)

    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.rand(2)

    task = SupervisedTask(Noisy(4, 2), "cross_entropy", CLIENTS, TEST)
    execute(experiment(FedAvg(), rounds=1, task=task))
    with pytest.raises(ConfigError, match=r"evaluate.aside: found True; allowed: .* draws random numbers"):
        execute(experiment(FedAvg(), rounds=1, task=task, evaluate_aside=True))


@pytest.mark.parametrize("every", [0, 1, 2, 3])
@pytest.mark.parametrize("task", [blobs, dropout, lambda: Logistic().build(4, 0, torch.float64)])
def test_aside_gives_the_same_lines_and_the_same_model(tmp_path, task, every):
    def run(name, **choices):
        folder, listener = RunFolder(tmp_path / name), Listener()
        e = experiment(FedAvg(), rounds=7, task=task(), evaluate_every=every, checkpoint_every=3, **choices)
        return execute(e, folder, [listener]), folder, listener

    (inline, _, _), (aside, folder, listener) = run("inline"), run("aside", evaluate_aside=True)
    assert aside.sha256 == inline.sha256 and figures(aside.metrics) == figures(inline.metrics)
    assert listener.heard == list(range(8)) and folder.metrics() == aside.metrics
    assert [line["round"] for line in folder.ledger()] == list(range(1, 8))
    evaluated = {r for r in range(1, 7) if every and r % every == 0}
    assert {line["round"] for line in aside.metrics if "aside" in line["seconds"]} == evaluated
    assert not any("aside" in line["seconds"] for line in inline.metrics)
    for line in inline.metrics:
        assert (line["seconds"]["evaluate"] > 0) == ("test_loss" in line)


def test_the_next_round_works_while_a_model_is_evaluated_with_its_own_module_and_threads():
    change, seen, begun = Condition(), [], []  # begun: one entry for every client that began to work

    def working():
        with change:
            begun.append(1)
            change.notify()

    def evaluating():
        if current_thread() is main_thread():  # elsewhere, some library asks for threads
            other = Thread(target=torch.set_num_threads, args=(3,))
            other.start()
            other.join()
            return
        done = (len(seen) + 1) * len(SIZES)
        with change:  # only a client of the next round ends this wait
            worked = change.wait_for(lambda: len(begun) > done, 10)
        seen.append((worked, torch.get_num_threads(), e.task.model.training))

    e = experiment(FedAvg(), rounds=4, task=Watched(evaluating, working), evaluate_aside=True)
    before = {name: t.clone() for name, t in e.task.model.state_dict().items()}
    assert e.evaluator().evaluate(torch.ones_like(e.task.x0))
    assert all(torch.equal(t, before[name]) for name, t in e.task.model.state_dict().items())
    execute(e)
    assert seen == [(True, 1, True)] * 3


def test_a_server_that_updates_in_place_does_not_change_the_model_under_evaluation():
    updated = Event()

    class InPlace(FedAvg):
        def server_update(self, s, mean, info):
            s.x.copy_(super().server_update(s, mean, info).x)
            updated.set()
            return s

    def evaluating():
        if current_thread() is not main_thread():
            assert updated.wait(10)

    def begin():
        updated.clear()

    inline = execute(experiment(FedAvg(), rounds=3, task=Watched()))
    aside = execute(experiment(InPlace(), rounds=3, task=Watched(evaluating, begin), evaluate_aside=True))
    assert figures(aside.metrics) == figures(inline.metrics)


def test_at_most_one_evaluation_is_behind():
    listener, begun = Listener(), []

    def evaluating():
        begun.append(list(listener.heard))
        time.sleep(0.02)

    execute(experiment(FedAvg(), rounds=6, task=Watched(evaluating), evaluate_every=2, evaluate_aside=True),
            trackers=[listener])
    # As round 2 is evaluated, 0 and 1 are told; as 4 is, 2 and 3 are.
    assert begun == [[], [0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]


def test_a_checkpoint_never_exists_without_its_line(tmp_path, monkeypatch):
    folder, saved, save = RunFolder(tmp_path), [], Checkpoints.save

    def checked(self, done, snapshot):
        assert [line["round"] for line in folder.metrics()] == list(range(done + 1))
        assert "test_loss" in folder.metrics()[-1]
        saved.append(done)
        return save(self, done, snapshot)

    monkeypatch.setattr(Checkpoints, "save", checked)
    task = Watched(lambda: time.sleep(0.02))
    execute(experiment(FedAvg(), rounds=5, task=task, evaluate_aside=True, checkpoint_every=2), folder)
    assert saved == [2, 4, 5]


@pytest.mark.parametrize(("error", "seen"), [(ZeroDivisionError, ClientError), (KeyboardInterrupt,) * 2])
def test_lines_that_are_done_stay_and_the_run_resumes_to_the_same_lines(tmp_path, error, seen):
    clients = len(SIZES)
    calls = []

    def step():
        calls.append(1)
        if len(calls) == 3 * clients + 2:  # in round 4, while round 3 is evaluated
            raise error

    def new(*hooks):
        return experiment(FedAvg(), rounds=6, task=Watched(*hooks), evaluate_aside=True, checkpoint_every=2)

    folder = RunFolder(tmp_path)
    with pytest.raises(seen):
        execute(new(lambda: time.sleep(0.05), step), folder)
    assert [line["round"] for line in folder.metrics()] == [0, 1, 2, 3] and "test_loss" in folder.metrics()[3]
    again = new()
    start = checkpoint_of(again, folder)
    assert start is not None and start[0] == 2
    history, whole = execute(again, folder, start=start), execute(new())
    assert history.sha256 == whole.sha256 and figures(history.metrics) == figures(whole.metrics)


@pytest.mark.parametrize("aside", [False, True])
def test_an_evaluation_that_fails_is_the_same_error_in_line_and_aside(tmp_path, aside):
    calls = []

    def fail():
        calls.append(1)
        if len(calls) == 3:  # of round 2
            raise RuntimeError("shapes\ndo not fit")

    folder = RunFolder(tmp_path)
    with pytest.raises(ModelError, match=r"^the evaluation failed with RuntimeError: shapes do not fit; check that"):
        execute(experiment(FedAvg(), rounds=5, task=Watched(fail), evaluate_aside=aside), folder)
    assert [line["round"] for line in folder.metrics()] == [0, 1]
    assert [line["round"] for line in folder.ledger()] == [1]


def test_a_profile_counts_evaluation_aside_apart(tmp_path):
    profile = Profile()
    task = Watched(lambda: time.sleep(0.02))
    history = execute(experiment(FedAvg(), rounds=4, task=task, evaluate_aside=True), RunFolder(tmp_path),
                      profile=profile)
    assert history.profile is profile
    assert profile.calls_aside == 3 and profile.aside >= 3 * 0.02
    assert profile.aside == pytest.approx(sum(line["seconds"].get("aside", 0.0) for line in history.metrics), rel=0.1)
    assert "evaluate, aside" in profile.table()
    written = json.loads((tmp_path / "profile.json").read_text())
    assert written["evaluate_aside"] == {"seconds": profile.aside, "calls": 3}
    # The rounds wait for the evaluations: this is a part of the whole.
    waited = sum(line["seconds"]["evaluate"] for line in history.metrics)
    assert profile.seconds["evaluate"] == pytest.approx(waited, rel=0.1)
    assert "aside" not in (quick := fedlearn.run(task=blobs(), algorithm=FedAvg(), rounds=1, progress="none",
                                                 profile=True)).profile.table()
    assert quick.profile.calls["update"] == 1


def test_the_python_face_and_the_command_line_take_the_same_choices(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    history = fedlearn.run(model=nn.Linear(4, 2), clients=CLIENTS, test=TEST, algorithm=FedAvg(), rounds=3,
                           evaluate_samples=10, evaluate_aside=True, progress="none")
    assert [line["test_samples"] for line in history.metrics] == [10, 10, 10, 50] and history.profile is None
    assert ["aside" in line["seconds"] for line in history.metrics] == [False, True, True, False]
    monkeypatch.chdir(tmp_path)
    small = ["run", "rounds=3", "clients=4", "cohort=2", "progress=none"]
    assert cli.main([*small, "evaluate.samples=10", "evaluate.aside=true", "profile=true"]) == 0
    lines = RunFolder.open("latest", tmp_path / "runs").metrics()
    assert [line["test_samples"] for line in lines][:-1] == [10] * 3 and "aside" in lines[1]["seconds"]
    shown = capsys.readouterr().out
    assert "tested on" in shown and "evaluate, aside" in shown
    assert cli.main([*small, "evaluate.samples=0"]) == 2 and "evaluate.samples: found 0" in capsys.readouterr().err
