"""Exit codes: docs/errors.md lists those of the classes, and the real command line ends with each of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedlearn import errors
from fedlearn.errors import FedlearnError
from fedlearn.tracking.run_folder import RunFolder

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
QUICK = ["rounds=2", "clients=4", "cohort=2", "local.steps=1", "progress=none"]
MODULE = """
import os, signal, torch
from torch import nn
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.tasks.digits import Digits

class Broken(Digits):
    '''A task with a mistake.'''
    def load(self):
        raise ZeroDivisionError("a mistake")

class NaN(Digits):
    '''Digits in which some images hold NaN.'''
    def load(self):
        raw = super().load()
        raw.train_x[:] = float("nan")
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
            os._exit(7)

class Ends(FedAvg):
    '''FedAvg in the second round of which somebody sends a signal.'''
    def local_step(self, y, b, c, oracle, info):
        if info.round == 1 and info.k == 0 and not os.path.exists("sent"):
            open("sent", "w").close()
            os.kill(os.getpid(), int(os.environ["SEND"]))
        return super().local_step(y, b, c, oracle, info)
"""


def rows(head: str) -> list[list[str]]:
    """Return the cells of the page's table that begins with this column."""
    lines = PAGE.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {head} |"))
    found = []
    for line in lines[start + 2:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def classes() -> dict[str, type[FedlearnError]]:
    return {name: kind for name, kind in vars(errors).items()
            if isinstance(kind, type) and issubclass(kind, FedlearnError)}


def test_the_page_lists_every_class_with_its_code():
    listed = {row[0].strip("`"): int(row[1]) for row in rows("class")}
    assert listed == {name: kind.code for name, kind in classes().items()}
    assert all(all(row) for row in rows("class")), "meaning, example and advice are there"


def test_the_tree_in_the_module_is_that_of_the_classes():
    drawn: dict[str, int] = {}
    code = 1
    for line in (errors.__doc__ or "").splitlines():
        if (match := re.match(r"[ |`-]*([A-Z][A-Za-z]+)(?: +(\d+))? ?", line)) and match[1] in classes():
            code = int(match[2]) if match[2] else code
            drawn.setdefault(match[1], code)
    assert drawn == {name: kind.code for name, kind in classes().items()}


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder with a module of the user's own, outside of torchrun."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path


def fedlearn(*argv: str, code: int, **environ: str) -> str:
    """Run the command line as a process, expect its exit code and return what it said on standard error."""
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run([sys.executable, "-m", "fedlearn", *argv], capture_output=True, text=True, timeout=120,
                          env=os.environ | {"PYTHONPATH": path} | environ)
    assert done.returncode == code, done.stderr
    return done.stderr


def one_line(err: str) -> str:
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


CASES: list[Any] = [
    (0, ["run", *QUICK], ""),
    (1, ["run", *QUICK, "task._target_=mine.Broken"], "ZeroDivisionError: a mistake"),
    (2, ["run", "--nonsense"], "unrecognized arguments"),
    (2, ["run", *QUICK, "cohort=5"], "error: cohort: found 5"),
    (2, ["run", *QUICK, "clients=2000"], "error: clients: found 2000"),
    (3, ["run", *QUICK, "task._target_=mine.NaN"], "are NaN or infinite"),
    pytest.param(4, ["run", *QUICK, "backend=torchrun", "model={_target_:mine.Dies}"], "exited with status 7",
                 marks=pytest.mark.torchrun),
    (6, ["run", *QUICK, "backend=torchrun", "backend.workers=100000"], "99999 other workers x "),
]


@pytest.mark.slow
@pytest.mark.parametrize(("code", "argv", "said"), CASES)
def test_the_command_line_ends_with_the_code(there, code, argv, said):
    err = fedlearn(*argv, code=code)
    assert said in err
    if code > 1:
        one_line(err)


@pytest.mark.slow
def test_a_run_that_somebody_works_on_is_1_and_damaged_checkpoints_are_5(there):
    fedlearn("run", *QUICK, code=0)
    folder = RunFolder.open("latest", there / "runs")
    with folder.claim():
        assert "another process is working on this run" in one_line(fedlearn("resume", "latest", code=1))
    for path in folder.checkpoints.glob("round-*/state.json"):
        path.write_bytes(path.read_bytes()[:20])
    assert "no usable checkpoint" in one_line(fedlearn("resume", "latest", code=5))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGTERM, 75, "stopped by SIGTERM after 2 of 4 rounds"),
                                                      (signal.SIGINT, 130, "stopped by Ctrl-C after 2 of 4 rounds")])
def test_signals(there, number, code, said):
    err = fedlearn("run", *QUICK, "rounds=4", "algorithm._target_=mine.Ends", "stack=false", code=code,
                   SEND=str(int(number)))
    line = err.splitlines()[-1]
    assert line.startswith(said) and "`fedlearn resume runs/fedavg-digits/" in line and "error" not in err
    fedlearn("resume", "latest", "--trust", code=0, SEND="0")


@pytest.mark.slow
def test_nobody_reads_any_more(there):
    """The pipe's other end is closed before the first line is written."""
    read, write = os.pipe()
    os.close(read)
    path = os.pathsep.join(p for p in sys.path if p)
    process = subprocess.Popen([sys.executable, "-m", "fedlearn", "list"], stdout=write, stderr=subprocess.PIPE,
                               env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"})
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 141, err


def test_every_code_of_the_page_is_provoked_above():
    """But for those of the system, by which a process is killed."""
    listed = {int(row[1]) for row in rows("class")} | {int(code) for row in rows("code") for code in row[0].split(",")}
    assert listed - {137, 143} == {case.values[0] if hasattr(case, "values") else case[0] for case in CASES} | {
        5, 75, 130, 141}
