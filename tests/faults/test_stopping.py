"""Signals: a round is finished or given up, nothing is torn, nobody is left behind, resume ends in the same bits."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from problems import experiment

from fedlearn.algorithms.dsgd import DSGD
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedbuff import FedBuff
from fedlearn.algorithms.mime import Mime
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.errors import Stopped
from fedlearn.policies.local_work import LocalWork
from fedlearn.protocols.asynchronous import Asynchronous
from fedlearn.protocols.gossip import Gossip
from fedlearn.running.execute import checkpoint_of, execute
from fedlearn.running.stopping import HEARD, GivenUp, Stopping
from fedlearn.tracking.run_folder import RunFolder

SENT: list[tuple[int, int]] = []     # (round from 0, signal) that clients still have to send, one at a step


def send(round: int) -> None:
    """Send this process the next signal, if it is due, as something outside would: in the middle of local work."""
    if SENT and SENT[0][0] == round:
        os.kill(os.getpid(), SENT.pop(0)[1])
        time.sleep(0.02)             # the handler has run, and a timer of no seconds is over


class Signals:
    """An algorithm whose clients, or nodes, send the signals that are due before they step."""

    def local_step(self, *args: Any) -> Any:
        """Step after sending what is due; the last argument says in which round."""
        send(args[-1].round)
        return super().local_step(*args)    # type: ignore[misc]


@dataclass(frozen=True)
class SignalledFedAvg(Signals, FedAvg):
    """FedAvg."""


@dataclass(frozen=True)
class SignalledScaffold(Signals, Scaffold):
    """SCAFFOLD, with its states."""


@dataclass(frozen=True)
class SignalledMime(Signals, Mime):
    """Mime, whose server moves twice a round."""


@dataclass(frozen=True)
class SignalledFedBuff(Signals, FedBuff):
    """FedBuff, without rounds of a cohort."""


@dataclass(frozen=True)
class SignalledDSGD(Signals, DSGD):
    """D-SGD, without a server."""


def new(algorithm: Any = None, **choices: Any) -> Any:
    """Return an experiment of six rounds whose clients are not stacked, so that signals come between their steps."""
    return experiment(algorithm or SignalledScaffold(), rounds=6, stack=False, checkpoint_every=2,
                      local=LocalWork(epochs=1, batch_size=8), **choices)


@contextmanager
def sending(*signals: tuple[int, int]):
    """Let clients send these signals, each when its round (from 0) has come."""
    before = {number: signal.getsignal(number) for number in HEARD}
    SENT[:] = signals
    try:
        yield
    finally:
        left, SENT[:] = list(SENT), []
    assert left == [], "not all signals were sent"
    assert {number: signal.getsignal(number) for number in HEARD} == before, "handlers are put back"


def went_on(e: Any, folder: RunFolder) -> str:
    """Go on with a run and return the SHA-256 of its model."""
    return execute(e, folder, start=checkpoint_of(e, folder)).sha256


CTRL_C, TERM, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1


def test_ctrl_c_finishes_the_round_and_keeps_it(tmp_path, capfd):
    whole = execute(new()).sha256
    folder = RunFolder(tmp_path)
    with sending((2, CTRL_C)), pytest.raises(Stopped, match="by Ctrl-C after 3 of 6 rounds; .*resume=True") as e:
        execute(new(), folder)
    assert e.value.code == 130
    assert [line["round"] for line in e.value.history.metrics] == [0, 1, 2, 3]
    assert "finishing round 3, then stopping; Ctrl-C again stops now" in capfd.readouterr().err
    assert (tmp_path / "checkpoints" / "round-00000003").is_dir()
    assert not (tmp_path / "model.safetensors").exists(), "that is the final model's place"
    assert went_on(new(), folder) == whole
    stopped, resumed = folder.events()
    assert {**stopped, "time": 0} == {"event": "stopped", "round": 3, "by": "Ctrl-C", "checkpoint": 3, "time": 0}
    assert {**resumed, "time": 0} == {"event": "resumed", "round": 3, "backend": "one process", "time": 0}


def test_ctrl_c_twice_stops_now(tmp_path):
    whole = execute(new()).sha256
    folder = RunFolder(tmp_path)
    with sending((3, CTRL_C), (3, CTRL_C)), pytest.raises(KeyboardInterrupt):
        execute(new(), folder)
    assert [line["round"] for line in folder.metrics()] == [0, 1, 2, 3]
    assert went_on(new(), folder) == whole


@pytest.mark.parametrize("number", [TERM, USR1])
def test_a_round_that_ends_within_the_grace_period_counts(tmp_path, number, capfd):
    whole = execute(new()).sha256
    folder = RunFolder(tmp_path)
    with sending((2, number)), pytest.raises(Stopped, match="after 3 of 6 rounds") as e:
        execute(new(), folder, grace=30)
    assert e.value.code == 75
    assert "finishing round 3 within 30 s, then stopping" in capfd.readouterr().err
    assert folder.events()[-1]["checkpoint"] == 3
    assert went_on(new(), folder) == whole


@pytest.mark.parametrize(("grace", "signals"), [(0, [TERM]), (30, [TERM, TERM]), (30, [USR1, TERM]),
                                                (30, [CTRL_C, TERM, TERM])])
def test_a_round_that_takes_longer_is_given_up_whole(tmp_path, grace, signals):
    """The state of the last complete round is kept, though no checkpoint was due there."""
    whole = execute(new()).sha256
    folder = RunFolder(tmp_path)
    with sending(*[(3, number) for number in signals]), pytest.raises(Stopped, match="after 3 of 6 rounds") as e:
        execute(new(), folder, grace=grace)
    assert e.value.code == 75
    assert [line["round"] for line in e.value.history.metrics] == [0, 1, 2, 3]
    assert folder.events()[-1] | {"time": 0} == {"event": "stopped", "round": 3, "by": e.value.args[0].split()[2],
                                                 "checkpoint": 3, "time": 0}
    assert went_on(new(), folder) == whole


def test_the_first_round_can_be_given_up(tmp_path):
    whole = execute(new()).sha256
    folder = RunFolder(tmp_path)
    with sending((0, TERM)), pytest.raises(Stopped, match="after 0 of 6 rounds"):
        execute(new(), folder, grace=0)
    assert went_on(new(), folder) == whole


TORN = [(SignalledMime(), {}), (SignalledDSGD(), {"protocol": Gossip()}),
        (SignalledFedBuff(buffer=3), {"protocol": Asynchronous(), "cohort": 4})]


@pytest.mark.parametrize(("algorithm", "choices"), TORN, ids=lambda value: type(value).__name__)
def test_a_round_that_cannot_be_undone_leads_back_to_the_checkpoint(tmp_path, algorithm, choices):
    whole = execute(new(algorithm, **choices))
    folder = RunFolder(tmp_path)
    with sending((3, TERM)), pytest.raises(Stopped, match="after 2 of 6 rounds") as e:
        execute(new(algorithm, **choices), folder, grace=0)
    assert [line["round"] for line in e.value.history.metrics] == [0, 1, 2]
    assert went_on(new(algorithm, **choices), folder) == whole.sha256
    assert [line["train_loss"] for line in folder.metrics()[1:]] == [line["train_loss"] for line in whole.metrics[1:]]


@pytest.mark.parametrize(("algorithm", "choices"), TORN, ids=lambda value: type(value).__name__)
def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path, algorithm, choices):
    whole = execute(new(algorithm, **choices)).sha256
    folder = RunFolder(tmp_path)
    with sending((0, TERM)), pytest.raises(Stopped, match="in the middle of round 1, which cannot be undone") as e:
        execute(new(algorithm, **choices), folder, grace=0)
    assert e.value.history is None and e.value.code == 75
    assert went_on(new(algorithm, **choices), folder) == whole


def test_a_run_without_a_folder_stops_too():
    with sending((1, TERM)), pytest.raises(Stopped, match="a run with a folder could be resumed") as e:
        execute(new(), grace=0)
    first = execute(experiment(SignalledScaffold(), rounds=1, stack=False, local=LocalWork(epochs=1, batch_size=8)))
    assert e.value.history.sha256 == first.sha256, "the model is that of the last complete round"


def test_the_last_round_ends_the_run_as_ever():
    with sending((5, CTRL_C)):
        assert len(execute(new()).metrics) == 7


@pytest.mark.parametrize("grace", [0.0, 30.0])
def test_a_stop_while_a_server_update_is_under_way(tmp_path, grace):
    """The update is finished, whatever the clock says: the round counts."""

    @dataclass(frozen=True)
    class Slow(SignalledFedAvg):
        def server_update(self, s: Any, mean: Any, info: Any) -> Any:
            send(-1 - info.round)
            return super().server_update(s, mean, info)

    whole = execute(new(FedAvg())).sha256
    folder = RunFolder(tmp_path)
    with sending((-4, TERM)), pytest.raises(Stopped, match="after 4 of 6"):
        execute(new(Slow()), folder, grace=grace)
    e = new(Slow())
    assert went_on(e, folder) == whole


def test_a_signal_before_the_rounds_ends_the_run_at_once(monkeypatch):
    e = new()
    monkeypatch.setattr(type(e.protocol), "start", lambda *args: os.kill(os.getpid(), TERM))
    with sending(), pytest.raises(Stopped, match="stopped by SIGTERM outside of the rounds") as stopped:
        execute(e)
    assert stopped.value.code == 75


def test_who_ignores_a_signal_goes_on_ignoring_it():
    before = signal.signal(CTRL_C, signal.SIG_IGN)
    try:
        with sending((1, CTRL_C), (1, CTRL_C)):
            assert len(execute(new()).metrics) == 7
    finally:
        signal.signal(CTRL_C, before)


def test_an_evaluation_beside_the_rounds_is_not_waited_for(tmp_path, monkeypatch):
    """It would outlast the grace period: its line goes without metrics, and the checkpoint is kept."""
    from fedlearn.running import evaluation

    true, release, waited = evaluation.measure, threading.Event(), []

    def slow(task, x, aside=False):
        if aside:
            waited.append(release.wait(60))
        return true(task, x, aside)

    monkeypatch.setattr(evaluation, "measure", slow)
    folder = RunFolder(tmp_path)
    try:
        with sending((1, TERM)), pytest.raises(Stopped, match="after 1 of 6 rounds"):
            execute(new(evaluate_aside=True), folder, grace=0)
        assert not waited, "nobody waited for it"
    finally:
        release.set()
    assert folder.events()[-1]["checkpoint"] == 1
    assert "test_loss" not in folder.metrics()[1]


@pytest.mark.parametrize(("raised", "heard"), [(GivenUp(), GivenUp), (KeyboardInterrupt(), KeyboardInterrupt),
                                               (ValueError(), SystemError)])
def test_what_compiled_code_makes_of_a_handlers_exception_comes_through(raised, heard):
    def compiled():
        try:
            raise raised
        except BaseException as error:
            raise SystemError("<cyfunction wait> returned a result with an exception set") from error

    with Stopping(1.0) as stopping, pytest.raises(heard):
        stopping.heed(compiled)
