"""What a user sees when something is wrong: the error's exit code and one line that says what to do."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedlearn import cli
from fedlearn.tracking.run_folder import RunFolder

QUICK = ["rounds=2", "clients=4", "cohort=2", "progress=none"]
MODULE = """
import os
import torch
from torch import nn
from fedlearn.tasks.digits import Digits

class BatchNormNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    def forward(self, x):
        return self.body(x)

class NaNDigits(Digits):
    '''Digits in which some images hold NaN.'''
    def load(self):
        raw = super().load()
        raw.train_x[:3] = float("nan")
        return raw

class Dies(nn.Linear):
    '''A model that ends every process but the one that made it, when it gets there.'''
    def __init__(self):
        super().__init__(64, 10)
        self.home = os.getpid()
    def forward(self, x):
        return super().forward(x.flatten(1))
    def __setstate__(self, state):
        super().__setstate__(state)
        if os.getpid() != self.home:
            print("no such device", flush=True)
            os._exit(7)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder with a module of the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path


def error(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    assert cli.main(list(argv)) == code
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1, message
    return message


def test_nan_from_a_client(capsys):
    message = error(capsys, "run", "task._target_=mine.NaNDigits", *QUICK, "cohort=null", code=3)
    assert "client " in message and "round 0: " in message and "are NaN or infinite" in message


@pytest.mark.parametrize(("overrides", "parts"), [
    (["cohort=9"], ["cohort: found 9", "1 to 4"]),
    (["clients=2000"], ["clients: found 2000", "20000", "1442"]),
    (["algorithm=fedavgg"], ["algorithm: found 'fedavgg'", "did you mean fedavg?"]),
    (["algorithm.lrr=0.1"], ["algorithm.lrr", "lr"]),
    (["algorithm.lr=-1"], ["algorithm.lr: found -1", "> 0"]),
    (["algorithm.lr=fast"], ["algorithm.lr: found 'fast'"]),
    (["task=fashion_mnist", "task.folder=nowhere"], ["nowhere", "dataset-fashion-mnist", "download"]),
    (["model={_target_:torch.nn.Linear,in_features:64,out_features:x}"], ["model: ", "Linear", "out_features"]),
    (["model={_target_:mine.BatchNormNet}"], ["body.2", "BatchNorm1d", "GroupNorm"]),
])
def test_one_line_for_what_cannot_run(capsys, overrides, parts):
    message = error(capsys, "run", *QUICK, *overrides)
    for part in parts:
        assert part in message
    assert not Path("runs").exists(), "a run that cannot start leaves no folder"


def test_a_checkpoint_cut_short_is_reported_and_the_one_before_used(capsys, folder):
    assert cli.main(["run", *QUICK, "rounds=4", "checkpoint.every=2"]) == 0
    sha256 = capsys.readouterr().out.split("sha256 ")[1].split()[0]
    run = RunFolder.open("latest", folder / "runs")
    newest = sorted(run.checkpoints.glob("round-*"))[-1] / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.warns(UserWarning, match="round-00000004"):
        assert cli.main(["resume", "latest"]) == 0
    assert sha256 in capsys.readouterr().out
    for path in run.checkpoints.glob("round-*/state.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    message = error(capsys, "resume", "latest", code=5)
    assert "round-00000002" in message and "bytes" in message


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(capsys, folder):
    assert cli.main(["run", *QUICK, "rounds=3", "checkpoint.keep=1"]) == 0
    capsys.readouterr()
    run = RunFolder.open("latest", folder / "runs")
    before = run.metrics()
    for path in run.checkpoints.glob("round-*/state.json"):
        path.write_bytes(path.read_bytes()[:20])
    assert "round-00000003" in error(capsys, "resume", "latest", "rounds=5", code=5)
    assert run.metrics() == before


def test_a_run_that_somebody_works_on_is_left_alone(capsys, folder):
    assert cli.main(["run", *QUICK, "checkpoint.every=0"]) == 0
    capsys.readouterr()
    run = RunFolder.open("latest", folder / "runs")
    shutil.rmtree(run.checkpoints)
    before = run.metrics(), run.config_text()
    with run.claim():
        assert "another process is working on this run" in error(capsys, "resume", "latest", code=1)
    assert (run.metrics(), run.config_text()) == before


@pytest.mark.parametrize("algorithm", ["fedbuff", "gradient_coding", "dsgd"])
def test_runs_without_rounds_of_a_server_resume_too(capsys, algorithm):
    run = ["run", f"algorithm={algorithm}", "clients=8", "cohort=null", "progress=none", "checkpoint.every=3",
           "clock=lognormal"]
    hashes = []
    for commands in ([[*run, "rounds=6"]], [[*run, "rounds=3"], ["resume", "latest", "rounds=6"]]):
        for command in commands:
            assert cli.main(command) == 0
        hashes.append(capsys.readouterr().out.rsplit("sha256 ", 1)[1].split()[0])
    assert hashes[0] == hashes[1]


@pytest.mark.torchrun
def test_a_port_in_use(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = error(capsys, "run", *QUICK, "backend=torchrun", f"backend.port={port}")
    assert "backend.port" in message and str(port) in message


@pytest.mark.torchrun
def test_a_worker_that_dies_at_start(capsys):
    began = time.monotonic()
    message = error(capsys, "run", *QUICK, "backend=torchrun", "model={_target_:mine.Dies}", code=4)
    assert "rank 1" in message and "7" in message and "no such device" in message
    assert time.monotonic() - began < 55, "it was noticed, not waited for"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["inprocess", pytest.param("torchrun", marks=pytest.mark.torchrun)])
def test_kill_9_and_resume_end_in_the_undisturbed_hash(folder, capsys, backend):
    run = ["run", "algorithm=scaffold", "clients=12", "cohort=6", "rounds=400", "local.epochs=2", "checkpoint.every=5",
           "evaluate.every=0"]
    assert cli.main([*run, "progress=none", "rounds=60"]) == 0
    whole = capsys.readouterr().out.split("sha256 ")[1].split()[0]

    process = subprocess.Popen([sys.executable, "-m", "fedlearn", *run, f"backend={backend}", "runs=killed",
                                "progress=none"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    try:
        deadline = time.monotonic() + 120
        while not list(folder.glob("killed/*/*/checkpoints/round-00000010")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (killed,) = folder.glob("killed/*/2*")
    done = RunFolder(killed).metrics()[-1]["round"]
    assert done < 60, "killed too late for this test to say anything"
    assert cli.main(["resume", str(killed), "rounds=60", "backend=inprocess", "progress=none"]) == 0
    assert whole in capsys.readouterr().out
    assert [line["round"] for line in RunFolder(killed).ledger()] == list(range(1, 61))
