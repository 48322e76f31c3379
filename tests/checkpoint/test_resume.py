"""Going on from a checkpoint: its clients' states must be there; killed at any moment a run ends in the same hash."""

from __future__ import annotations

import os
import re
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from problems import experiment

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.checkpoint import Checkpoints, Snapshot
from fedlearn.errors import CheckpointError, ConfigError
from fedlearn.experiment import Experiment
from fedlearn.faults import Fault, Faults
from fedlearn.running.execute import checkpoint_of, execute
from fedlearn.running.restore import usable
from fedlearn.tracking.run_folder import RunFolder

ROUNDS = 8


def scaffold(**more: Any) -> Experiment:
    """Six clients, of which three work at a time, with a checkpoint after every second round."""
    return experiment(Scaffold(lr=0.1), rounds=ROUNDS, cohort=3, checkpoint_every=2, **more)


@pytest.fixture(scope="module")
def undisturbed() -> str:
    """The hash of the run that nothing happens to."""
    return execute(scaffold()).sha256


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run after six of its rounds."""
    folder = tmp_path_factory.mktemp("pristine")
    execute(experiment(Scaffold(lr=0.1), rounds=6, cohort=3, checkpoint_every=2), RunFolder(folder))
    return folder


@pytest.fixture
def run(pristine: Path, tmp_path: Path) -> RunFolder:
    """A copy of it, to damage."""
    return RunFolder(Path(shutil.copytree(pristine, tmp_path / "run")))


def resumed(folder: RunFolder, e: Experiment | None = None) -> tuple[int, str]:
    """Resume; return the round from which the run went on, and its hash."""
    e = e or scaffold()
    start = checkpoint_of(e, folder)
    return start[0] if start else 0, execute(e, folder, start=start).sha256


def needed(folder: RunFolder, round: int) -> set[tuple[int, int]]:
    """Return the states that a checkpoint names."""
    return {(m, v) for m, v in Checkpoints(folder.checkpoints).meta(round)["states"]}


@pytest.mark.parametrize("algorithm", [Scaffold(lr=0.1), FedAvg(lr=0.1)])
@pytest.mark.parametrize("round", [2, 6])
@pytest.mark.parametrize("point", ["checkpoint", "commit", "between"])
def test_a_coordinator_killed_at_any_point_ends_in_the_same_hash(
        tmp_path: Path, algorithm: Any, point: str, round: int) -> None:
    choices: dict[str, Any] = {"rounds": ROUNDS, "cohort": 3, "checkpoint_every": 2, "state_memory": 0}
    (tmp_path / "faults").mkdir()
    faults = Faults((Fault("kill", point, round),), tmp_path / "faults")
    folder = RunFolder(tmp_path / "run")
    pid = os.fork()
    if not pid:
        try:
            execute(experiment(algorithm, **choices, faults=faults), folder)
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    done = round if point == "commit" or (point == "between" and round % 2 == 0) else round - 2
    first, sha256 = resumed(folder, experiment(algorithm, **choices))
    assert first == done
    assert sha256 == execute(experiment(algorithm, **choices)).sha256
    assert not [name for name in os.listdir(folder.checkpoints) if name.startswith(".")]
    kept = {f"{m}.{v}.state" for r in Checkpoints(folder.checkpoints).rounds() for m, v in needed(folder, r)}
    assert set(os.listdir(folder.states)) == kept


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("damage", "said"), [
    (Path.unlink, "No such file"), (damaged, "it was altered"), (lambda p: os.truncate(p, 70), "70 of"),
    (lambda p: p.write_bytes(b""), "0 of")], ids=["missing", "flipped", "short", "empty"])
def test_a_checkpoint_without_its_states_is_passed_over(
        run: RunFolder, undisturbed: str, damage: Callable[[Path], Any], said: str) -> None:
    client, version = min(needed(run, 6) - needed(run, 4))
    damage(run.states / f"{client}.{version}.state")
    with pytest.warns(UserWarning, match=f"round-00000006: the state of client {client} as of work {version} cannot be "
                      f"read from .*{client}.{version}.state .*{said}.*; going on from round 4"):
        assert resumed(run) == (4, undisturbed)


def test_without_any_states_there_is_nothing_to_go_on_from(run: RunFolder) -> None:
    lines = run.metrics()
    shutil.rmtree(run.states)
    with pytest.raises(CheckpointError, match="no usable checkpoint in .*round-00000006.*round-00000004.*round-"):
        checkpoint_of(scaffold(), run)
    assert run.metrics() == lines


def test_a_state_damaged_later_is_named_with_what_to_do(run: RunFolder, undisturbed: str) -> None:
    start = checkpoint_of(scaffold(), run)
    for client, version in needed(run, 6) - needed(run, 4):
        damaged(run.states / f"{client}.{version}.state")
    with pytest.raises(CheckpointError, match="client . as of work .*it was altered.*remove it and resume") as error:
        execute(scaffold(), run, start=start)
    Path(re.findall(r"from (\S+)", str(error.value))[0]).unlink()
    with pytest.warns(UserWarning, match="going on from round 4"):
        assert resumed(run) == (4, undisturbed)


def test_of_another_run_it_is_refused_for_what_differs(run: RunFolder) -> None:
    with pytest.raises(ConfigError, match="seed: found '1'; allowed: 0, as in the run"):
        checkpoint_of(scaffold(seed=1), run)
    with pytest.raises(ConfigError, match="algorithm: found"):     # whatever states that one would need
        checkpoint_of(experiment(FedAvg(lr=0.1), rounds=ROUNDS, cohort=3), run)
    other = RunFolder(run.path.parent / "other")
    execute(experiment(Scaffold(lr=0.1), rounds=8, cohort=3, checkpoint_every=2, seed=1), other)
    shutil.copytree(other.checkpoints / "round-00000008", run.checkpoints / "round-00000008")
    with pytest.raises(ConfigError, match="seed: found '0'; allowed: 1"):
        checkpoint_of(scaffold(), run)


def test_links_and_other_rounds_names_are_passed_over(run: RunFolder, undisturbed: str) -> None:
    (run.checkpoints / "round-00000007").symlink_to(run.checkpoints / "round-00000006")
    shutil.copytree(run.checkpoints / "round-00000006", run.checkpoints / "round-99999999")
    for name in ("round-7", "round--0000001", "round-00000008", "round-٠٠٠٠٠٠٠٩", "round-0000000x"):
        (run.checkpoints / name).mkdir()
    (run.checkpoints / "round-00000009").write_text("a file")
    os.mkfifo(run.checkpoints / "round-00000008" / "state.json")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert resumed(run) == (6, undisturbed)
    said = " ".join(str(w.message) for w in caught)
    for part in ("round-00000007 is a link", "99999999 holds round 6, not 99999999; give it back its name",
                 "round-00000008/state.json is not a file", "round-00000009/state.json cannot be read"):
        assert part in said
    assert Checkpoints(run.checkpoints).rounds() == [4, 6, 8]
    names = {"round-7", "round--0000001", "round-٠٠٠٠٠٠٠٩", "round-0000000x"}      # which no checkpoint has
    assert {name for name in os.listdir(run.checkpoints) if not name.startswith("round-0000000")} == names - {
        "round-0000000x"}


def sealed_with(run: RunFolder, change: Callable[[dict, dict], Any]) -> None:
    """Save the newest checkpoint again with other contents, sealed as if fedlearn had written it."""
    checkpoints = Checkpoints(run.checkpoints, 3)
    round, snapshot = checkpoints.load()
    tensors, meta = dict(snapshot.tensors), dict(snapshot.meta)
    change(tensors, meta)
    checkpoints.save(round, Snapshot(tensors, meta))


@pytest.mark.parametrize(("change", "said"), [
    (lambda t, m: m.pop("loop"), "does not say where the run stood"),
    (lambda t, m: m.update(loop=3), "does not say where the run stood"),
    (lambda t, m: m.pop("identity"), "does not say of which run it is"),
    (lambda t, m: m.update(identity=[1]), "does not say of which run it is"),
    (lambda t, m: m.update(states=None), "does not list the clients' states"),
    (lambda t, m: m.update(states=[[0]]), "does not list the clients' states"),
    (lambda t, m: m.update(states=[[0, -1]]), "does not list the clients' states"),
    (lambda t, m: m.update(states=[[0, 1.5]]), "does not list the clients' states"),
    (lambda t, m: m.update(states=[[0, 2**70]]), "does not list the clients' states"),
    (lambda t, m: m.update(states=[[6, 1]]), "needs a state of client 6, but there are 6 clients"),
])
def test_what_is_no_description_of_a_run_is_passed_over(
        run: RunFolder, undisturbed: str, change: Callable, said: str) -> None:
    sealed_with(run, change)
    with pytest.warns(UserWarning, match=f"round 6 does not belong to this run: .*{said}"):
        assert resumed(run) == (4, undisturbed)


@pytest.mark.parametrize(("change", "said"), [
    (lambda t, m: t.pop("x"), "it holds no tensor 'x'"),
    (lambda t, m: t.update(x=t["x"].double()), r"'x' is torch.float64 \[43\], not torch.float32 \[43\]"),
    (lambda t, m: t.update(x=t["x"][:1]), r"'x' is torch.float32 \[1\], not torch.float32 \[43\]"),
    (lambda t, m: t.update(x=t["x"][None]), r"'x' is torch.float32 \[1, 43\]"),
    (lambda t, m: m["loop"].pop("versions"), "cannot be read .KeyError: 'versions'"),
    (lambda t, m: m["loop"].update(versions=[1]), "cannot be read .AttributeError"),
    (lambda t, m: m["loop"].update(versions={"x": 1}), "cannot be read .ValueError"),
    (lambda t, m: m["loop"].update(simulated=-1.0), "simulated is -1.0, not a number >= 0"),
    (lambda t, m: m["loop"].update(simulated=float("nan")), "simulated is nan"),
    (lambda t, m: m["loop"].update(simulated="1"), "simulated is '1'"),
    (lambda t, m: m["loop"]["versions"].pop("0"), "the clients' states that it lists are not those that the run needs"),
])
def test_what_cannot_be_the_state_of_the_run_is_one_clear_error(run: RunFolder, change: Callable, said: str) -> None:
    sealed_with(run, change)
    start = checkpoint_of(scaffold(), run)
    with pytest.raises(CheckpointError, match=f"^the checkpoint of round 6 does not belong to this run: .*{said}"):
        execute(scaffold(), run, start=start)


def test_states_are_asked_for_only_where_there_are_any(tmp_path: Path) -> None:
    e = experiment(FedAvg(lr=0.1))
    snapshot = Snapshot({}, {"loop": {}, "states": [], "identity": dict(e.identity())})
    usable(e, tmp_path / "nowhere")(1, snapshot)


def test_states_are_on_disk_before_the_checkpoint_that_names_them(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def watched(fd: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(Path, "rename", lambda p, to: order.append(to.name) or rename(p, to))
    execute(experiment(Scaffold(lr=0.1), rounds=2, cohort=3, checkpoint_every=2), RunFolder(tmp_path))
    at = order.index("round-00000002")
    states = {f"{m}.{v}.state" for m, v in needed(RunFolder(tmp_path), 2)}
    assert states and states | {"states"} <= set(order[:at])
    assert len(states) == sum(name.endswith(".state") for name in order), "each of them once"
