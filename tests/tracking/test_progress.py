"""Progress: readable on a terminal and in a file, and never a reason for a run to fail."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from fedlearn.errors import ConfigError
from fedlearn.tracking import human_bytes, human_seconds, progress
from fedlearn.tracking.progress import Progress
from fedlearn.tracking.run_folder import RunFolder

RUN = """
import sys
from fedlearn.tracking.progress import Progress
with Progress({kind!r}, 3, "FedAvg") as p:
    p.started(None, {{}})
    for r in range(1, 4):
        p.round({{"round": r, "train_loss": 1 / r, "test_accuracy": r / 4,
                  "bytes_up": 1500, "bytes_down": 3e6}})
    p.finished({{}})
print("done")
"""


def lines(r: int, **more: float) -> dict:
    return {"round": r, "train_loss": 1.0 / r, "bytes_up": 1000, "bytes_down": 2000, **more}


def test_plain_lines_say_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(progress, "monotonic", lambda: float(next(clock)))
    out = io.StringIO()
    p = Progress("plain", 2, "SCAFFOLD on digits", out)
    p.started(None, {})
    p.round(lines(1, test_accuracy=0.5))
    p.round(lines(2))
    p.finished({})
    first, second = out.getvalue().splitlines()
    for part in ("SCAFFOLD on digits  round 1/2", "train loss 1", "test accuracy 50.0%",
                 "up 1.0 kB  down 2.0 kB", "left 0:0"):
        assert part in first
    assert "round 2/2  train loss 0.5  test accuracy 50.0%  up 2.0 kB  down 4.0 kB" in second
    assert "left" not in second


def test_plain_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    out = io.StringIO()
    p = Progress("plain", 1000, file=out)
    p.started(None, {})
    for r in range(1, 1001):
        p.round(lines(r))
    assert [line.split()[1] for line in out.getvalue().splitlines()] == [
        f"{r}/1000" for r in (1, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)]
    out = io.StringIO()
    p = Progress("plain", 1000, file=out)
    p.started(None, {})
    for r in range(1, 51):
        now[0] += 6.0
        p.round(lines(r))
    assert out.getvalue().count("\n") == 25  # the first, then every second one: 12 s


def test_other_test_metrics_take_the_place_of_accuracy() -> None:
    for metrics, shown in [({"test_loss": 0.25, "test_gap": 3}, "test loss 0.25"),
                           ({"test_gap": 3}, "test gap 3")]:
        out = io.StringIO()
        Progress("plain", 1, file=out).round({"round": 1, **metrics, "seconds": {"work": 1}})
        assert shown in out.getvalue()


def test_a_resumed_run_keeps_its_totals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    for r in range(1, 6):
        RunFolder(tmp_path).append_metrics(lines(r))
    out = io.StringIO()
    p = Progress("plain", 10, file=out)
    p.started(tmp_path, {})
    now[0] += 2.0
    p.round(lines(6))
    assert "up 6.0 kB" in out.getvalue()
    assert "0:02  left 0:08" in out.getvalue()  # one round took 2 s, four are left


def test_evaluation_is_shown_apart_from_its_first_second_on(tmp_path: Path) -> None:
    out = io.StringIO()
    p = Progress("plain", 9, file=out)
    p.started(None, {})
    p.round(lines(1, seconds={"work": 5.0, "evaluate": 0.6}))
    p.round(lines(2, seconds={"work": 5.0, "evaluate": 0.6, "aside": 7.0}))
    first, second = out.getvalue().splitlines()
    assert "evaluation" not in first and "(evaluation 0:01, evaluation aside 0:07)  left" in second
    RunFolder(tmp_path).append_metrics(lines(1, seconds={"work": 5.0, "evaluate": 6.0}))
    p.started(tmp_path, {})  # like the clock, it starts anew
    p.round(lines(2, seconds={"work": 5.0, "evaluate": 2.0}))
    assert "(evaluation 0:02)" in out.getvalue().splitlines()[-1]


def test_none_is_silent() -> None:
    out = io.StringIO()
    p = Progress("none", 1, file=out)
    p.started(None, {})
    p.round(lines(1))
    p.finished({})
    assert out.getvalue() == ""


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="progress: found 'bars'.*did you mean bar"):
        Progress("bars", 1)


def test_a_terminal_gets_a_bar() -> None:
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", RUN.format(kind="auto")], stderr=slave,
                          stdout=subprocess.PIPE, env=env)
    os.close(slave)
    shown = b""
    while chunk := _read(master):
        shown += chunk
    os.close(master)
    assert done.returncode == 0 and done.stdout == b"done\n"
    text = shown.decode()
    for part in ("round 3/3", "━", "train loss 0.3333", "test accuracy 75.0%", "up 4.5 kB", "down 9.0 MB"):
        assert part in text
    assert text.endswith("\x1b[?25h")  # the cursor is given back


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:  # the other end is closed
        return b""


@pytest.mark.parametrize("kind", ["auto", "bar", "plain"])
@pytest.mark.parametrize("end", ["closed", "no reader", "ascii"])
def test_nobody_reading_does_not_stop_a_run(kind: str, end: str) -> None:
    code, env = RUN.format(kind=kind), dict(os.environ)
    if end == "closed":
        command, stderr = ["sh", "-c", 'exec "$0" "$@" 2>&-', sys.executable, "-c", code], None
    else:
        read, stderr = os.pipe()
        command = [sys.executable, "-c", code.replace("FedAvg", "α")]
        env |= {"PYTHONIOENCODING": "ascii:strict"} if end == "ascii" else {}
    if end == "no reader":
        os.close(read)
    done = subprocess.run(command, stderr=stderr, stdout=subprocess.PIPE, env=env, timeout=60)
    if stderr is not None:
        os.close(stderr)
    if end == "ascii":
        assert b"round 3/3" in os.read(read, 65536)
        os.close(read)
    assert done.returncode == 0 and done.stdout == b"done\n"


@pytest.mark.parametrize(("n", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12345, "12.3 kB"),
                                          (999_960, "1.0 MB"), (123_456_789, "123 MB"), (5e15, "5000 TB")])
def test_bytes_in_words(n: float, words: str) -> None:
    assert human_bytes(n) == words


def test_seconds_as_a_clock() -> None:
    assert [human_seconds(s) for s in (0.9, 62, 3602)] == ["0:00", "1:02", "1:00:02"]
