"""fedlearn: federated learning as real processes.

``fedlearn.run(...)`` trains one model over many clients and returns the history; the command line
``fedlearn`` does the same from Hydra configs. What is exported here is imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("fedlearn")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

_EXPORTS = {
    "run": "api",
    "History": "running.history", "execute": "running.execute",
    "Experiment": "experiment",
    "FedlearnError": "errors",
    "ServerAlgorithm": "contracts", "PeerAlgorithm": "contracts", "AsyncServerAlgorithm": "contracts",
    "CodedAlgorithm": "contracts", "Modifier": "contracts",
    "AdaGD": "algorithms.ada_gd", "DiLoCo": "algorithms.diloco", "DSGD": "algorithms.dsgd",
    "FedAc": "algorithms.fedac", "FedAdagrad": "algorithms.fedadagrad", "FedAdam": "algorithms.fedadam",
    "FedAsync": "algorithms.fedasync", "FedAvg": "algorithms.fedavg", "FedAvgM": "algorithms.fedavgm",
    "FedBuff": "algorithms.fedbuff", "FedDyn": "algorithms.feddyn", "FedExP": "algorithms.fedexp",
    "FedNova": "algorithms.fednova", "FedOSGD": "algorithms.fedosgd", "FedPOSGD": "algorithms.fedposgd",
    "FedProx": "algorithms.fedprox", "FedSN": "algorithms.fedsn", "FedSNLite": "algorithms.fedsn_lite",
    "FedYogi": "algorithms.fedyogi", "GradientCoding": "algorithms.gradient_coding",
    "LocalACSA": "algorithms.local_acsa", "LocalAdam": "algorithms.local_adam", "LocalSGDM": "algorithms.local_sgdm",
    "Mime": "algorithms.mime", "MimeLite": "algorithms.mimelite", "MinibatchACSA": "algorithms.minibatch_acsa",
    "MinibatchAdam": "algorithms.minibatch_adam", "MinibatchSGD": "algorithms.minibatch_sgd",
    "MinibatchSGDM": "algorithms.minibatch_sgdm", "Moon": "algorithms.moon", "Scaffold": "algorithms.scaffold",
    "SingleMachineSGD": "algorithms.single_machine_sgd", "TwoStage": "algorithms.two_stage",
    "Averaging": "modifiers.averaging", "BatchScaling": "modifiers.batch_scaling", "Defection": "modifiers.defection",
    "ExampleCurriculum": "modifiers.example_curriculum", "GradientNoise": "modifiers.gradient_noise",
    "NormTest": "modifiers.norm_test", "UpdateNorm": "modifiers.update_norm",
    "ConstantIntervals": "policies.intervals", "GivenIntervals": "policies.intervals",
    "GrowingIntervals": "policies.intervals", "PostLocal": "policies.intervals",
    "SupervisedTask": "tasks.supervised", "Quadratic": "tasks.quadratic", "QuadraticTask": "tasks.quadratic",
    "LeastSquares": "tasks.least_squares", "Logistic": "tasks.logistic",
    "ClientStore": "data.store", "GeneratedStore": "data.generated",
    "LocalWork": "policies.local_work",
    "Clock": "policies.clock",
    "InProcess": "backends.inprocess", "Torchrun": "backends.torchrun.backend",
    "RayActors": "backends.ray.backend",
    "Synchronous": "protocols.synchronous", "Asynchronous": "protocols.asynchronous",
    "Coded": "protocols.coded", "Gossip": "protocols.gossip",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'fedlearn' has no attribute {name!r}")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
