"""The rehearsal of failures: its schedule, its trials, and what it says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from fedlearn import cli
from fedlearn.chaos import rehearse
from fedlearn.chaos import trial as trial_module
from fedlearn.chaos.processes import NAME, alive, end, left
from fedlearn.chaos.report import Rehearsal, failures, table, totals
from fedlearn.chaos.schedule import Scene, trials
from fedlearn.chaos.trial import Attempt, Setting, Trial, as_override, run
from fedlearn.chaos.verdict import first_difference, verdicts
from fedlearn.config.compose import compose, to_dict
from fedlearn.errors import ConfigError
from fedlearn.faults import Fault, Faults, at, lead, read

SMALL = ["clients=6", "cohort=4", "local.steps=2", "evaluate.every=0", "model.width=8"]
RANKS = Scene("Torchrun", 2, 30, 10, hang=5.0, hosts=True)
ALONE = Scene("InProcess", 1, 30, 10)
ACTORS = Scene("RayActors", 2, 30, 10)


@pytest.fixture(autouse=True)
def folder(empty_folder: Path) -> Path:
    """Work in an empty folder."""
    return empty_folder


# The schedule


@pytest.mark.parametrize("scene", [RANKS, ALONE, ACTORS])
def test_the_schedule_is_a_function_of_the_seed(scene):
    kinds = scene.kinds([])
    first, again, other = (list(islice(trials(scene, kinds, seed), 10)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("scene", [RANKS, replace(RANKS, large=True), ALONE, ACTORS, replace(ALONE, rounds=2),
                                   replace(ALONE, every=0)])
def test_every_scheduled_fault_can_happen_and_all_that_can_do(scene):
    possible = scene.possible()
    drawn = list(islice(trials(scene, list(possible), 3), 80))
    for faults in drawn:
        for fault in faults:
            assert fault.point in possible[fault.kind] and fault.round in scene.slots(fault.point)
        assert len(faults) == 1 or "cut" not in {fault.kind for fault in faults}
    assert {(f.kind, f.point) for faults in drawn for f in faults} == {(k, p) for k in possible for p in possible[k]}


def test_faults_of_a_trial_fall_into_different_rounds():
    saving = ("checkpoint", "commit", "disk", "line")
    for faults in islice(trials(replace(RANKS, every=1), RANKS.kinds([]), 0), 50):
        rounds = [fault.round - (fault.point in saving) for fault in faults]
        assert len(set(rounds)) == len(rounds)


def test_small_sums_are_not_reduced_apart_and_nobody_works_beside_the_coordinator_alone():
    assert "reduce" not in RANKS.points() and "reduce" in replace(RANKS, large=True).points()
    assert "reduce" in ACTORS.points()
    for scene in (ALONE, replace(RANKS, workers=1)):
        assert set(scene.possible()) == {"kill", "full"}
        assert set(scene.possible()["kill"]) == {"between", "checkpoint", "commit"}


def test_a_cut_link_is_only_there_if_asked_for():
    assert "cut" in RANKS.possible() and "cut" not in RANKS.kinds([]) and RANKS.kinds(["cut"]) == ["cut"]


@pytest.mark.parametrize(("scene", "kind", "parts"), [
    (RANKS, "freese", ["freese", "did you mean freeze?"]),
    (ALONE, "freeze", ["freeze", "InProcess", "full, kill"]),
    (ACTORS, "hang", ["hang", "no limit"]),
    (replace(RANKS, hosts=False), "cut", ["cut", "backend=torchrun"]),
])
def test_a_kind_that_cannot_happen_is_refused(scene, kind, parts):
    with pytest.raises(ConfigError) as error:
        scene.kinds([kind])
    assert all(part in str(error.value) for part in parts), str(error.value)


# The schedule in a configuration


@pytest.mark.parametrize("name", ["plain", "it's {a}, b=c [d]", "two  words", r"back\slash", "ü$x"])
def test_a_schedule_survives_the_command_line(folder, name):
    (folder / name).mkdir()
    faults = Faults((Fault("kill", "train", 3), Fault("slow", "upload", 4, 0.25, True)), folder / name)
    cfg = compose([f"faults={as_override(faults)}"])
    assert read(to_dict(cfg)["faults"]) == faults


@pytest.mark.parametrize(("given", "parts"), [
    ({"folder": "nowhere", "schedule": []}, ["faults.folder", "nowhere"]),
    ({"folder": ".", "schedules": []}, ["faults.schedules", "did you mean schedule?"]),
    ({"folder": ".", "schedule": {}}, ["faults.schedule", "a list"]),
    ({"folder": ".", "schedule": [{"kind": "kil", "point": "train", "round": 1}]}, ["faults.schedule.0.kind", "kill?"]),
    ({"folder": ".", "schedule": [{"kind": "kill", "point": "disk", "round": 1}]}, ["faults.schedule.0.point", "disk"]),
    ({"folder": ".", "schedule": [{"kind": "kill", "point": "train"}]}, ["faults.schedule.0.round", "no default"]),
    ({"folder": ".", "schedule": [{"kind": "kill", "point": "train", "round": -1}]}, ["faults.schedule.0.round", "-1"]),
    ({"folder": ".", "schedule": [{"kind": "kill", "point": "train", "round": 1, "x": 1}]}, ["faults.schedule.0.x"]),
    ({"folder": ".", "schedule": [{"kind": "slow", "point": "train", "round": 1, "seconds": 0}]}, ["seconds", "> 0"]),
])
def test_a_wrong_schedule_is_refused_in_one_line(given, parts):
    with pytest.raises(ConfigError) as error:
        read(given)
    assert all(part in str(error.value) for part in parts), str(error.value)


# What a fault does


def test_a_fault_fires_once_and_leaves_its_mark(folder):
    faults = Faults((Fault("full", "disk", 3), Fault("slow", "train", 3, 0.01)), folder)
    with lead(faults):
        assert at("disk", 2) is None
        with pytest.raises(OSError, match="No space left"):
            at("disk", 3)
        assert at("disk", 3) is None, "it fired already, whoever asks"
        assert at("train", 3) is None, "the coordinator's process is no worker's"
    assert at("train", 3) is None, "nothing is armed any more"
    ((number, (when, pid)),) = faults.fired().items()
    assert number == 0 and pid == os.getpid() and abs(when - time.time()) < 60


# Processes


def orphan(mark: str, seconds: int = 60) -> int:
    """Leave a process behind that carries a mark; return its number."""
    script = (f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; "
              f"time.sleep({seconds})'], start_new_session=True, stdout=-3, stderr=-3).pid)")
    return int(subprocess.run([sys.executable, "-c", script], env=os.environ | {NAME: mark}, capture_output=True,
                              text=True, check=True).stdout)


def test_orphans_are_found_by_their_mark_and_ended():
    pid = orphan("one")
    try:
        assert list(alive("one")) == [pid] and alive("another") == {}
        assert "time.sleep" in left("one", 0.1)[pid]
    finally:
        end("one")
    assert alive("one") == {}


def test_a_trial_tells_of_orphans_and_strays_and_leaves_neither(folder, monkeypatch):
    monkeypatch.setattr(trial_module, "left", partial(left, grace=0.2))
    started = []

    def launch(arguments, environ, log, patience):
        log.write_text("went well")
        started.append(orphan(environ[NAME]))
        Path(environ["TMPDIR"], "forgotten").touch()
        started.extend([environ["TMPDIR"], environ[NAME]])
        return 0

    trial = run(Setting((), folder, 60), "one", (), launch)
    pid, temporary, mark = started
    assert list(trial.orphans) == [pid] and trial.strays == ["forgotten"]
    assert alive(mark) == {} and not Path(temporary).exists()


def test_a_trial_is_resumed_as_long_as_its_end_says_so(folder):
    """Killed, told to resume, out of room, and then an error that no resuming heals."""
    ends = [(-9, ""), (1, "error: x; continue with `fedlearn resume`"), (6, "error: no room"), (2, "error: wrong")]
    commands = []

    def launch(arguments, environ, log, patience):
        commands.append(list(arguments))
        run_folder = folder / "one/runs/a/20261122-000000-000000"
        run_folder.mkdir(parents=True, exist_ok=True)
        (run_folder / "config.yaml").touch()
        code, said = ends[len(commands) - 1]
        log.write_text(said)
        return code

    trial = run(Setting((), folder, 60), "one", [Fault("kill", "between", 1), Fault("kill", "between", 2)], launch)
    assert [command[0] for command in commands] == ["run", "resume", "resume", "resume"]
    assert commands[1][1].endswith("20261122-000000-000000")
    assert not trial.ended and trial.attempts[-1].last_words == "error: wrong"


# What is said of trials


def trial_of(home: Path, *faults: Fault, sha256: str = "ab", codes: tuple[int | None, ...] = (0,), **more) -> Trial:
    """A trial whose n-th command ran from 10 n to 10 n + 10, and whose round r (of 9) was committed at second r."""
    attempts = [Attempt(["run"], 10.0 * n, 10.0 * n + 10, code, "its last words") for n, code in enumerate(codes)]
    fired = {i: (fault.round + 0.5, 100 + i) for i, fault in enumerate(faults)}
    known = {"fired": fired, "rounds": [(r, float(r)) for r in range(1, 10)], "digests": {1: "a", 2: "b"}} | more
    return Trial(home.name, faults, home, attempts=attempts, sha256=sha256, **known)


def event(name: str, second: float, **more) -> dict:
    return {"event": name, "time": datetime.fromtimestamp(second, UTC).isoformat(timespec="milliseconds"), **more}


def test_events_go_to_the_faults_that_they_tell_of(folder):
    trial = trial_of(folder, Fault("kill", "train", 2), Fault("freeze", "receive", 4), Fault("slow", "train", 6),
                     events=[event("rank lost", 4.9, who="rank 1 (process 101)"), event("rank lost", 2.7, who="rank 2"),
                             event("speeds", 2.6), event("resumed", 0.1)])
    first, second, third = verdicts(trial, "ab")
    assert (first.noticed, second.noticed, third.noticed) == ("rank lost", "rank lost", "")
    assert first.recovery == second.recovery == third.recovery == 0.5
    assert all(v.survived and v.equal and not v.resumed for v in (first, second, third))


def test_a_killed_coordinator_shows_in_its_exit_code_and_recovers_by_resuming(folder):
    trial = trial_of(folder, Fault("kill", "between", 4), codes=(-9, 0), fired={0: (4.5, 100)},
                     rounds=[(4, 4.0), (4, 12.0), (5, 13.5), (6, 14.0)])
    (verdict,) = verdicts(trial, "ab")
    assert verdict.noticed == "exit by SIGKILL" and verdict.resumed and verdict.recovery == 9.0


def test_what_fires_in_the_last_round_is_over_with_the_run(folder):
    (verdict,) = verdicts(trial_of(folder, Fault("kill", "commit", 9), codes=(-9, 0), fired={0: (9.5, 100)}), "ab")
    assert verdict.survived and verdict.recovery == 10.5


def test_a_fault_that_did_not_fire_is_not_reached_and_survived_nothing(folder):
    trial = trial_of(folder, Fault("kill", "train", 2), fired={})
    (verdict,) = verdicts(trial, "ab")
    assert not verdict.reached and not verdict.survived and not verdict.equal
    cells = [cell.strip() for cell in table([verdict]).splitlines()[-1].strip("|").split("|")]
    assert cells == ["kill", "0", "1", "0", "0", "0", "-", "-", "-"]
    assert not Rehearsal("chaos", 0, trial_of(folder), [trial]).good, "nothing was rehearsed"


def test_the_first_other_round_is_named(folder):
    assert first_difference(trial_of(folder, digests={1: "a", 2: "c", 3: "d"}), trial_of(folder)) == 2


@pytest.mark.parametrize(("bad", "said"), [
    ({"sha256": "cd"}, "sha256 cd"), ({"codes": (4,)}, "exit code 4"), ({"codes": (None,)}, "did not end in time"),
    ({"orphans": {7: "python -m fedlearn"}}, "processes outlived it: 7 python"),
    ({"codes": (0,), "sha256": ""}, "exit code 0"),
])
def test_what_fails_is_told_kept_and_the_exit_code(folder, monkeypatch, capsys, bad, said):
    def fake(setting, name, faults=(), launch=None):
        home = setting.folder / name
        home.mkdir()
        return trial_of(home, *faults, **(bad if name == "trial-002" else {}))

    monkeypatch.setattr(rehearse, "run", fake)
    argv = ["chaos", *SMALL, "rounds=9", "--faults", "6", "--out", "out"]
    assert cli.main(argv) == 1
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.startswith("failed"))
    assert said in line and "Kept in" in line and f"{folder}/out/trial-002" in line
    assert {path.name for path in Path("out").iterdir()} == {"undisturbed", "trial-002", "chaos.json", "chaos.md"}
    written = json.loads(Path("out/chaos.json").read_text())
    assert not written["good"] and [bool(t["wrong"]) for t in written["trials"]][:2] == [False, True]
    assert said in Path("out/chaos.md").read_text()
    bad.clear()     # the same, with nothing wrong
    assert cli.main([*argv[:-1], "again"]) == 0
    assert {path.name for path in Path("again").iterdir()} == {"chaos.json", "chaos.md"}


def test_the_totals_count_what_was_said(folder):
    good, bad = trial_of(folder, Fault("kill", "train", 2)), trial_of(folder, Fault("slow", "train", 3), sha256="cd")
    rehearsal = Rehearsal("chaos", 0, trial_of(folder), [good, bad], 580.0)
    assert totals([rehearsal]) == ("2 faults in 2 runs, 9 min 40 s: 2 survived, 1 of them in runs with an equal hash, "
                                   "0 orphan processes, 0 temporary files left by killed processes")
    (line,) = failures(rehearsal)
    assert "slow at train 3" in line and "round" not in line.split("Injected")[0]


@pytest.mark.parametrize(("argv", "parts"), [
    (["rounds=3", "algorithm=fedavgg"], ["algorithm", "did you mean fedavg?"]),
    (["--kinds", "freeze"], ["--kinds", "freeze", "full, kill"]),
    (["--faults", "0"], ["--faults", "0"]),
    (["--minutes", "0"], ["--minutes"]),
    (["--out", "full"], ["--out", "empty"]),
    (["faults={folder:.,schedule:[]}"], ["faults", "--seed"]),
])
def test_a_wrong_command_is_one_line_and_nothing_runs(folder, capsys, monkeypatch, argv, parts):
    monkeypatch.setattr(rehearse, "run", None)
    (folder / "full").mkdir()
    (folder / "full" / "x").touch()
    assert cli.main(["chaos", *argv]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert all(part in message for part in parts), message


def test_ranks_of_torchrun_do_not_rehearse(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["chaos", *SMALL]) == 2
    assert "without torchrun" in capsys.readouterr().err


def test_an_undisturbed_run_that_fails_is_told_at_once(folder, capsys):
    assert cli.main(["chaos", "task=fashion_mnist", "task.folder=nowhere", "--out", "out"]) != 0
    message = capsys.readouterr().err
    assert "the undisturbed run failed" in message and "nowhere" in message and message.count("\n") == 1
