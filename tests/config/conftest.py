"""A small folder of configurations, and classes for it, that do not depend on what is shipped."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

CLASSES = '''
from __future__ import annotations
from dataclasses import dataclass, field
from enum import Enum
from torch import nn
from fedlearn.errors import ConfigError, in_range

class Mode(Enum):
    fast = 1
    slow = 2

@dataclass(frozen=True)
class Step:
    lr: float = 0.1
    steps: int | None = None
    nesterov: bool = False
    rule: str = "plain"
    widths: tuple[int, ...] = (3, 4)
    mode: Mode = Mode.fast
    def __post_init__(self):
        in_range("lr", self.lr, above=0)

@dataclass(frozen=True)
class Dotted:
    lr: float = 0.1
    def __post_init__(self):
        in_range("algorithm.lr", self.lr, above=0)

@dataclass(frozen=True)
class Needs:
    path: str
    size: int = 1

@dataclass(frozen=True)
class Strange:
    call: object = len
    both: dict[str, Step] = field(default_factory=dict)

class Net(nn.Module):
    def __init__(self, width, *, inner=None):
        super().__init__()
        self.width, self.inner = width, inner

def free(**kwargs):
    return kwargs

def strict(a, b=2):
    return a, b

constant = 3
'''

FILES = {
    "run": "# Run.\ndefaults:\n  - _self_\n  - weighting: ratio\n  - model: mlp\n  - pipeline: none\n"
           "  - protocol: synchronous\n  - task: digits\n  - algorithm: fedavg\n"
           "name: null\nrounds: 50\ncohort: 10\nfolder: ${name}\nlocal:\n  steps: null\n  epochs: 1\n",
    "everybody": "cohort: null\n",
    "algorithm/fedavg": "# FedAvg: averaging  [McMahan 2017]\n_target_: standins.Step\nlr: 0.1\n",
    "algorithm/fedprox": "# FedProx: with a proximal term\n_target_: standins.Step\nlr: 0.1\nmu: 0.01\n",
    "algorithm/dsgd": "# D-SGD\ndefaults:\n  - override /protocol@_global_.protocol: gossip\n"
                      "_target_: standins.Step\nlr: 0.1\n",
    "protocol/synchronous": "# Synchronous\n_target_: standins.Step\n",
    "protocol/gossip": "# Gossip\ndefaults:\n  - /everybody@_global_\n"
                       "  - override /weighting@_global_.weighting: uniform\n_target_: standins.Step\n",
    "weighting/ratio": "# Ratio\n_target_: standins.Step\n",
    "weighting/uniform": "# Uniform\n_target_: standins.Step\n",
    "model/mlp": "# MLP\n_target_: standins.Step\n",
    "model/cnn": "# CNN\n_target_: standins.Step\nwidths: [1]\n",
    "model/none": "# None\n",
    "task/digits": "# Digits\n_target_: standins.Step\n",
    "task/images": "# Images\ndefaults:\n  - override /model@_global_.model: cnn\n_target_: standins.Step\n",
    "pipeline/none": "# None\n",
    "pipeline/clip": "# Clip\nclip:\n  _target_: standins.Step\n  norm: 1.0\n",
    "pipeline/noise": "# Noise\nnoise:\n  _target_: standins.Step\n  scale: 1.0\n",
}


@pytest.fixture
def standins(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of classes that the configurations below name."""
    module = ModuleType("standins")
    monkeypatch.setitem(sys.modules, "standins", module)
    exec(CLASSES, module.__dict__)
    return module


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder of configurations shaped like the shipped one."""
    for name, text in FILES.items():
        path = tmp_path / "base" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "base"
