"""The command line: its help, its verbs, and one line on stderr for everything that is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fedlearn
from fedlearn import cli
from fedlearn.config import catalog

QUICK = ["rounds=2", "clients=4", "cohort=2", "local.steps=1", "progress=none"]
HEAVY = {"torch", "numpy", "hydra", "omegaconf", "matplotlib", "rich", "ray", "wandb", "sklearn", "yaml"}


@pytest.fixture(autouse=True)
def folder(empty_folder: Path) -> Path:
    """Work in an empty folder."""
    return empty_folder


def error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run, expect exit code 2 and one line on stderr; return it."""
    assert cli.main(list(argv)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1, message
    return message


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["list"], ["--version"], ["rum"], []])
def test_help_and_list_import_nothing_heavy(argv: list[str]) -> None:
    code = ("import sys; from fedlearn.cli import main; main(sys.argv[1:]);"
            f"found = {HEAVY!r} & set(sys.modules); assert not found, found")
    root = str(Path(fedlearn.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=60,
                          env=os.environ | {"PYTHONPATH": root})
    assert done.returncode == 0, done.stderr


def test_help_at_every_level(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.main(["--help"]) == 0
    top = capsys.readouterr().out
    for verb in cli.VERBS:
        assert f"\n  {verb} " in top
        assert cli.main([verb, "--help"]) == 0
        assert f"usage: fedlearn {verb}" in capsys.readouterr().out
    cli.main(["run", "--help"])
    help_of_run = capsys.readouterr().out
    for group, options in catalog.options().items():
        assert f"  {group} " in help_of_run
        assert ", ".join(options) in help_of_run


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fedlearn {fedlearn.__version__}\n"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "algorithms"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(catalog.options()["algorithm"])
    assert "[McMahan et al. 2017]" in next(line for line in lines if line.startswith("fedavg "))
    assert cli.main(["list"]) == 0
    everything = capsys.readouterr().out
    assert all(f"{group}:\n" in everything for group in catalog.options())


@pytest.mark.parametrize(("argv", "message"), [
    (["rum"], f"error: found verb 'rum'; allowed: one of {', '.join(sorted(cli.VERBS))} (did you mean run?)"),
    (["--verbose"], "error: unrecognized arguments: --verbose (`fedlearn --help` helps)"),
    (["run", "--cfg", "all"], "error: argument --cfg: invalid choice: 'all'"),
    (["run", "algorithm=fedavgg"], "error: algorithm: found 'fedavgg'; allowed: one of"),
    (["run", "algorithm.lr=fast"], "error: algorithm.lr: found 'fast'; allowed: a number."),
    (["run", "weighting=scheme1"], "error: weighting: found 'scheme1'; allowed: scheme1 only with"),
    (["run", "cohort=30"], "error: cohort: found 30; allowed: 1 to 20, the number of clients"),
    (["run", "--config-dir", "nowhere"], "error: --config-dir: found 'nowhere'; allowed: a folder"),
    (["list", "algorithmz"], "(did you mean algorithm?)"),
    (["resume", "nothing"], "error: run: found 'nothing'; allowed: a run folder"),
    (["show", "nothing"], "error: run: found 'nothing'; allowed: a run folder"),
    (["show", "nothing", "rounds=3"], "error: found rounds=3 with a run; allowed: overrides and --out"),
    (["show", "partition", "task=quadratic"], "error: task: found 'Quadratic'; allowed: a task with a data"),
])
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    assert message in error(capsys, *argv)


def test_cfg_job_prints_what_would_run(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    import yaml

    assert cli.main(["run", "algorithm=fedprox", "--cfg", "job", "algorithm.mu=0.5"]) == 0
    cfg = yaml.safe_load(capsys.readouterr().out)
    assert cfg["algorithm"]["mu"] == 0.5
    assert cfg["name"] == "fedprox-digits"
    assert list(folder.iterdir()) == []
    assert cli.main(["run", "--cfg", "job", "algorithm.lr=-1"]) == 2
    shown = capsys.readouterr()
    assert "lr: -1" in shown.out, "a wrong configuration is printed as well"
    assert "algorithm.lr: found -1" in shown.err


def test_run_show_and_resume(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert cli.main(["run", *QUICK]) == 0
    out = capsys.readouterr().out
    (run,) = (folder / "runs" / "fedavg-digits").glob("2*")
    assert "accuracy" in out
    assert f"folder  {run.relative_to(folder)}" in out
    assert run.joinpath("config.yaml").read_text().startswith(f"# fedlearn run {' '.join(QUICK)}\n")

    assert cli.main(["show", "latest"]) == 0
    out = capsys.readouterr().out
    assert "4 clients, 1,442 labels" in out
    assert "fedlearn run rounds=2" in out
    for picture in ("partition.png", "curves.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")
        assert picture in out
    assert cli.main(["show", "latest", "--cfg", "job"]) == 0
    assert capsys.readouterr().out == run.joinpath("config.yaml").read_text()

    assert "error: rounds: found 1; allowed: >= 2, the rounds that are done." in error(
        capsys, "resume", "latest", "rounds=1")
    assert "allowed: on resume, changes of rounds, backend" in error(capsys, "resume", "latest", "seed=1")
    assert cli.main(["resume", "fedavg-digits", "rounds=4"]) == 0
    resumed = capsys.readouterr().out
    assert "# fedlearn resume fedavg-digits rounds=4\n" in run.joinpath("config.yaml").read_text()
    assert cli.main(["run", *QUICK, "rounds=4"]) == 0

    def digest(text: str) -> str:
        return next(line for line in text.splitlines() if "sha256" in line)

    assert digest(resumed) == digest(capsys.readouterr().out)


def test_a_run_without_a_checkpoint_starts_anew(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert cli.main(["run", *QUICK]) == 0
    first = capsys.readouterr().out
    (run,) = (folder / "runs" / "fedavg-digits").glob("2*")
    shutil.rmtree(run / "checkpoints")
    assert cli.main(["resume", "latest"]) == 0
    assert capsys.readouterr().out.split("sha256")[1] == first.split("sha256")[1]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3


def test_show_partition(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    argv = ["show", "partition", "clients=5", "heterogeneity.alpha=0.1", "--out", "there/map.png"]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "5 clients, 1,442 labels, 10 classes" in out
    assert "partition: there/map.png" in out
    assert (folder / "there" / "map.png").read_bytes().startswith(b"\x89PNG")


def test_classes_of_the_users_own_are_found_in_the_current_folder(
        capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "own_net_of_a_test.py").write_text(
        "from torch import nn\n\nclass Net(nn.Sequential):\n    def __init__(self, width: int) -> None:\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))\n")
    (folder / "mine" / "model").mkdir(parents=True)
    (folder / "mine" / "model" / "net.yaml").write_text(
        "# Net: my own\n_target_: own_net_of_a_test.Net\nwidth: 5\n")
    assert cli.main(["run", *QUICK, "model=net", "model.width=3", "--config-dir", "mine"]) == 0
    assert "sha256" in capsys.readouterr().out
    assert cli.main(["list", "models", "--config-dir", "mine"]) == 0
    assert "Net: my own" in capsys.readouterr().out


def test_on_torchrun_ranks_another_backend_is_refused_once(
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "backend: found 'InProcess'; allowed: backend=torchrun on 2 torchrun ranks" in error(capsys, "run")
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["run"]) == 2
    assert capsys.readouterr().err == ""


def test_interruptions_and_bugs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    def broken(argv: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setitem(cli.VERBS, "run", (interrupted, ""))
    assert cli.main(["run"]) == 130
    assert "fedlearn resume" in capsys.readouterr().err
    monkeypatch.setitem(cli.VERBS, "run", (broken, ""))
    with pytest.raises(ZeroDivisionError):
        cli.main(["run"])
