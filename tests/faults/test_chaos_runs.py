"""Small rehearsals of failures from end to end, and the hosts that some of them need."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hosts import needs_hosts

from fedlearn import cli
from fedlearn.chaos import network

SMALL = ["clients=6", "cohort=4", "local.steps=2", "evaluate.every=0", "model.width=8"]


@pytest.fixture(autouse=True)
def folder(empty_folder: Path) -> Path:
    """Work in an empty folder."""
    return empty_folder


def chaos(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    """Rehearse, expect that all went well, and return what was written down."""
    code = cli.main(["chaos", *SMALL, "--out", "out", *argv])
    out = capsys.readouterr().out
    assert code == 0, out
    assert ": every hash equal" not in out and "every hash equal, 0 orphan processes" in out
    return json.loads(Path("out/chaos.json").read_text())


@pytest.mark.slow
def test_a_rehearsal_in_process(capsys):
    told = chaos(capsys, "rounds=9", "checkpoint.every=2", "--faults", "3", "--seed", "1")
    assert sum(kind["injected"] for kind in told["kinds"]) == 3
    assert {kind["kind"] for kind in told["kinds"]} == {"full", "kill"}
    kills = [fault for trial in told["trials"] for fault in trial["faults"] if fault["fault"]["kind"] == "kill"]
    assert kills and all(fault["noticed"] == "exit by SIGKILL" and fault["resumed"] and fault["recovery"] > 0
                         for fault in kills)
    assert not any(path.is_dir() for path in Path("out").iterdir()), "what went well is not kept"


@pytest.mark.slow
@pytest.mark.torchrun
def test_a_rehearsal_on_ranks(capsys):
    told = chaos(capsys, "algorithm=scaffold", "backend=torchrun", "rounds=8", "checkpoint.every=2", "--faults", "3",
                 "--kinds", "kill,drop", "--seed", "2")
    assert sum(kind["injected"] for kind in told["kinds"]) == 3


@pytest.mark.slow
@pytest.mark.ray
def test_a_rehearsal_on_actors(capsys):
    pytest.importorskip("ray")
    told = chaos(capsys, "backend=ray", "rounds=8", "checkpoint.every=2", "--faults", "2", "--kinds", "kill,slow",
                 "--seed", "2")
    assert sum(kind["injected"] for kind in told["kinds"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_ends_a_rehearsal_ends_its_run(folder, number):
    process = subprocess.Popen([sys.executable, "-m", "fedlearn", "chaos", *SMALL, "rounds=1000000", "--out", "out"],
                               stderr=subprocess.PIPE, text=True, preexec_fn=heeding_ctrl_c,
                               env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    deadline = time.monotonic() + 120
    while not list(folder.glob("out/undisturbed/runs/*/*/metrics.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(number)
    assert process.wait(30) == 130 and "interrupted" in process.stderr.read()
    process.stderr.close()
    assert not Path(f"/proc/{child}/environ").exists() or Path(f"/proc/{child}/environ").read_bytes() == b""


def heeding_ctrl_c() -> None:
    """Heed Ctrl-C, also where the tests themselves run in the background and ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Hosts on this machine


def names() -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    return [line.split()[0] for line in listed.splitlines() if line.startswith(f"fedlearn-{os.getpid()}-")]


HEAR = "import socket; s = socket.create_server(('0.0.0.0', 7000)); print('up', flush=True); c = s.accept()[0]; " \
       "c.settimeout(20); print(c.recv(1).decode(), flush=True); print(c.recv(1).decode(), flush=True)"


@needs_hosts
def test_a_link_is_cut_and_restored_and_nothing_is_left():
    say = "import socket, sys; c = socket.create_connection((sys.argv[1], 7000), 5); c.sendall(b'1'); " \
          "print(1, flush=True); input(); c.sendall(b'2'); print(2, flush=True); input()"
    with network.network(2) as net:
        assert len(names()) == 3
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with net.start(0, [sys.executable, "-c", HEAR], **pipes) as ear:
            assert ear.stdout.readline() == "up\n"
            with net.start(1, [sys.executable, "-c", say, net.address(0)], **pipes) as mouth:
                assert ear.stdout.readline() == mouth.stdout.readline() == "1\n"
                net.cut(1)
                mouth.stdin.write("\n")
                mouth.stdin.flush()
                assert mouth.stdout.readline() == "2\n", "it is sent, and nobody is told that it does not arrive"
                with pytest.raises(subprocess.TimeoutExpired):
                    ear.wait(0.5)
                net.restore(1)
                assert ear.stdout.readline() == "2\n"
                mouth.stdin.write("\n")
    assert names() == []


@needs_hosts
def test_a_link_carries_no_more_than_it_may():
    say = "import socket, sys, time; c = socket.create_connection((sys.argv[1], 7000), 5); t = time.monotonic(); " \
          "c.sendall(b'x' * 400_000); c.shutdown(1); c.recv(1); print(time.monotonic() - t)"
    hear = "import socket; s = socket.create_server(('0.0.0.0', 7000)); print('up', flush=True); c = s.accept()[0]\n" \
           "while c.recv(65536): pass"
    with network.network(2, mbit=4) as net, \
            net.start(0, [sys.executable, "-c", hear], stdout=subprocess.PIPE, text=True) as ear:
        assert ear.stdout.readline() == "up\n"
        done = net.start(1, [sys.executable, "-c", say, net.address(0)], stdout=subprocess.PIPE, text=True)
        seconds = float(done.communicate()[0])
    assert 0.6 < seconds < 5, "400 kB at 4 Mbit/s take 0.8 s"


@needs_hosts
def test_what_a_killed_process_left_is_removed():
    gone = subprocess.Popen(["true"])
    gone.wait()
    name = f"fedlearn-{gone.pid}-0-1"
    subprocess.run(["ip", "netns", "add", name], check=True)
    assert network.available() == ""
    assert name not in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout


@needs_hosts
@pytest.mark.slow
@pytest.mark.torchrun
def test_a_rehearsal_with_a_cut_link(capsys):
    told = chaos(capsys, "backend=torchrun", "rounds=6", "checkpoint.every=2", "--faults", "1", "--kinds", "cut")
    assert [kind["kind"] for kind in told["kinds"]] == ["cut"] and told["kinds"][0]["noticed"] == 1
