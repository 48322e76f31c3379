"""The Slurm script, with a stand-in for Slurm that runs the same commands in the same environment on this machine.

The runs are real: two torchrun ranks, a signal, a checkpoint, a requeue, and the model of one process in the end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


class Queue:
    """A folder with the stand-in's programs, and a job that runs under it."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.folder = folder / "slurm"
        self.folder.mkdir()
        for name in ("sbatch", "srun", "scontrol"):
            program = self.folder / name
            program.write_text(f"#!{sys.executable}\n" + Path(__file__).with_name("stub_slurm.py").read_text())
            program.chmod(0o755)
        self.environ = environ | {"PATH": f"{self.folder}:{environ['PATH']}", "STUB_SLURM": str(self.folder)}
        self.work = folder
        self.job: subprocess.Popen[str] | None = None

    def submit(self, *overrides: str) -> None:
        self.job = subprocess.Popen(["sbatch", str(LAUNCH / "slurm.sbatch"), *overrides], cwd=self.work, text=True,
                                    env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def send(self, number: signal.Signals, *whom: str) -> None:
        """Send a signal to the batch shell, which is all that --signal=B: does, or to the tasks, or to both."""
        for name in whom:
            for process in (self.folder / name).read_text().split():
                os.kill(int(process), number)

    def until(self, what: str) -> None:
        """Wait until the run's ledger or the queue's notes hold a text."""
        deadline = time.monotonic() + 120
        while not any(what in path.read_text() for path in [*self.work.glob("runs/*/2*/ledger.jsonl"),
                                                            *self.folder.glob("said")]):
            assert time.monotonic() < deadline and self.job and self.job.poll() is None, f"no {what}"
            time.sleep(0.05)

    def finish(self) -> str:
        """Wait for the job's end, and return what it said."""
        assert self.job
        return self.job.communicate(timeout=120)[0]


@pytest.fixture
def queue(tmp_path, environ):
    queue = Queue(tmp_path, environ)
    yield queue
    if queue.job and queue.job.poll() is None:
        queue.job.kill()


@pytest.mark.torchrun
@pytest.mark.slow
def test_a_job_whose_time_is_up_goes_back_to_the_queue_and_on_to_the_same_model(queue, quick, alone, sha256):
    overrides = [*quick, "rounds=600", "checkpoint.every=0"]
    queue.submit(*overrides)
    queue.until('"round": 5,')
    queue.send(signal.SIGUSR1, "batch")
    said = queue.finish()
    assert queue.job.returncode == 0, said
    notes = (queue.folder / "said").read_text().splitlines()
    assert notes[0].startswith("tasks ended with [75") and notes[1] == "batch 0 ended with 75", said
    assert notes[2:] == ["tasks ended with [0, 0]", "batch 1 ended with 0"], said
    assert "job 4242 goes back to the queue" in said
    assert len(list(queue.work.glob("runs/fedavg-digits/2*"))) == 1     # it went on with its run
    assert sha256(said) == [alone(*overrides)]


@pytest.mark.torchrun
@pytest.mark.slow
def test_a_job_that_was_cancelled_stays_away(queue, quick):
    queue.submit(*quick, "rounds=5000", "checkpoint.every=0")
    queue.until('"round": 5,')
    queue.send(signal.SIGTERM, "batch", "tasks")    # as scancel does
    said = queue.finish()
    assert queue.job.returncode == 75 and "goes back" not in said, said
    assert (queue.folder / "said").read_text().count("batch") == 1


def test_a_wrong_override_is_said_once_and_not_requeued(queue):
    queue.submit("algorithm=fedavgg")
    said = queue.finish()
    assert queue.job.returncode == 2 and said.count("\n") == 1 and "did you mean fedavg?" in said
    assert (queue.folder / "said").read_text() == "batch 0 ended with 2\n"
