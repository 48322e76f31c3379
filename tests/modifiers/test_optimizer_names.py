"""Names of optimisers: what they mean, why some are refused, and where they are listed and configured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import blobs, experiment

import fedlearn
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedbuff import FedBuff
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.cli import main
from fedlearn.config import assemble
from fedlearn.config.assemble import parts
from fedlearn.config.compose import compose
from fedlearn.errors import ConfigError
from fedlearn.modifiers.optimizer_names import known
from fedlearn.modifiers.optimizers import LocalOptimizer, ServerOptimizer, optimised
from fedlearn.modifiers.stepper import Recipe, tried
from fedlearn.policies.local_work import LocalWork

TASK = blobs(dtype=torch.float64)


class Bent(FedAvg):
    """A subclass with another step, which inherits the word that it is plain."""

    def local_step(self, y, b, c, oracle, info):    # type: ignore[no-untyped-def]
        return y


@pytest.mark.parametrize(("algorithm", "local", "server", "said"), [
    (FedAvg(), "adamww", None, r"local.optimizer: found 'adamww'; .*did you mean adamw\?"),
    (FedAvg(), "sam", None, "goes around another optimiser"),
    (FedAvg(), "lbfgs", None, "evaluates the loss itself"),
    (FedAvg(), "LOMO", None, "fused with the backward pass"),
    (FedAvg(), "alig", None, "needs the loss itself"),
    (FedAvg(), "adammini", None, "takes a module"),
    (FedAvg(), "bnb_adamw8bit", None, "needs CUDA kernels"),
    (FedAvg(), "pytorch_optimizer.ScheduleFreeAdamW", None, "trains one model and evaluates another"),
    (FedAvg(), "ranger21", None, "local.options: .*num_iterations"),
    (FedAvg(), "torch.nn.Linear", None, "a subclass of torch.optim.Optimizer"),
    (FedAvg(), "no.such.Thing", None, "can be imported. Python says"),
    (FedAvg(), LocalOptimizer("adam", {"beta": 1}), None, r"local.options.beta: .*did you mean betas\?"),
    (FedAvg(), LocalOptimizer("adam", {"lr": 1}), None, "local.options.lr: found 1; allowed: .* as algorithm.lr"),
    (FedAvg(), LocalOptimizer("adam", {"eps": -1}), None, "local.options: .*Invalid epsilon"),
    (FedAvg(), None, ServerOptimizer("adam", 0.0), "server.lr: found 0.0; allowed: a number > 0"),
    (FedAvg(), None, "adahessian", "without Hessians"),
    (FedAvg(), None, "gravity", "draws no random numbers"),
    (Scaffold(), "adam", None, "null with algorithm Scaffold. Its local step is another"),
    (Bent(), "adam", None, "null with algorithm Bent"),
    (FedBuff(), None, "adam", "server.optimizer: .*null with algorithm FedBuff"),
    (fedlearn.DSGD(), "adam", None, "local.optimizer: .*null with algorithm DSGD"),
    (fedlearn.DSGD(), None, "adam", "server.optimizer: .*null with algorithm DSGD"),
])
def test_what_cannot_be_is_refused_with_the_reason(algorithm: Any, local: Any, server: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        optimised(algorithm, TASK, local, server)
    assert "\n" not in str(caught.value)


def test_asking_for_a_stack_of_what_has_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="stack: found True; allowed: auto or false .*Lamb does not treat"):
        experiment(optimised(FedAvg(), TASK, "lamb"), task=TASK, stack=True)
    with pytest.raises(ConfigError, match="local.keep: found 'some'; allowed: one of keep, reset"):
        LocalOptimizer("adam", keep="some")
    with pytest.raises(ConfigError, match="local.keep: found 'keep'; .*size of its state changes"):
        optimised(FedAvg(), TASK, LocalOptimizer("adashift", keep="keep"))


def test_without_pytorch_optimizer_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    for name in ("adabelief", "pytorch_optimizer.AdaBelief"):
        with pytest.raises(ConfigError, match=r"pip install 'fedlearn\[optimizers\]'"):
            optimised(FedAvg(), TASK, LocalOptimizer(name, {"eps": 1e-7}))      # nothing tried before
    optimised(FedAvg(), TASK, "adamw")


BARE = """
import sys
from fedlearn.cli import main
for chosen in ([], ["local.optimizer=adabelief", "server.optimizer=adam", "server.lr=0.1"]):
    assert main(["run", "rounds=1", "progress=none", "clients=3", "cohort=2", "runs=" + sys.argv[1], *chosen]) == 0
    print(sum(name.startswith(("pytorch_optimizer", "fedlearn.modifiers.optimizers")) for name in sys.modules))
"""


@pytest.mark.slow
def test_a_run_without_an_optimiser_imports_none(tmp_path: Path) -> None:
    out = subprocess.run([sys.executable, "-c", BARE, str(tmp_path)], capture_output=True, text=True, check=True,
                         env={**os.environ, "OMP_NUM_THREADS": "1"}).stdout
    without, named = (int(line) for line in out.splitlines() if line.isdigit())
    assert without == 0 < named


def test_the_configuration_names_them() -> None:
    made = parts(compose(["local.optimizer=adamw", "local.options={betas:[0.8,0.95]}", "local.keep=keep",
                          "local.steps=3", "+local.options.weight_decay=0.1", "server.optimizer=adam",
                          "server.lr=0.5"]))
    assert made.settings.local.work == LocalWork(steps=3)
    algorithm = assemble.optimised(made)
    assert algorithm == optimised(made.algorithm, None, LocalOptimizer(
        "adamw", {"betas": (0.8, 0.95), "weight_decay": 0.1}, "keep"), ServerOptimizer("adam", 0.5))
    for override, said in (("local.options={eps:1}", "local.options: found .*; allowed: local.optimizer=NAME beside"),
                           ("local.keep=keep", "local.keep: .*local.optimizer=NAME beside it"),
                           ("server.lr=1", "server.lr: .*server.optimizer=NAME beside it"),
                           ("server.options=3", "server.options: found 3; allowed: a section with keys or null"),
                           ("server.optimizer=adamm", r"did you mean adam\?")):
        with pytest.raises(ConfigError, match=said):
            parts(compose([override]))


def test_the_list_says_where_each_is_from_and_why_some_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "optimizers"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "torch.optim.AdamW" in lines["adamw"] and "clients may be stacked" in lines["adamw"]
    assert "pytorch_optimizer.Lamb" in lines["lamb"] and "one after another" in lines["lamb"]
    assert "torch.optim.ASGD" in lines["asgd"] and "not here: It evaluates the loss itself" in lines["lbfgs"]
    assert len(lines) > 120


@pytest.mark.slow
def test_the_list_tells_the_truth() -> None:
    """What it shows can make steps, and is stacked where it says so."""
    for name, one in known().items():
        if one.refused or name == "ranger21":
            continue
        verdict = tried(Recipe("local", name, 0.01, (), ((9, 11), (11,))))
        assert (not verdict.unstackable) is ("may be stacked" in one.about), (name, verdict)
