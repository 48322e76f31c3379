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
    "History": "execute", "execute": "execute",
    "Experiment": "experiment",
    "FedlearnError": "errors",
    "ServerAlgorithm": "contracts", "PeerAlgorithm": "contracts", "AsyncServerAlgorithm": "contracts",
    "CodedAlgorithm": "contracts",
    "FedAvg": "algorithms.fedavg", "MinibatchSGD": "algorithms.minibatch_sgd", "FedProx": "algorithms.fedprox",
    "Scaffold": "algorithms.scaffold", "FedAdam": "algorithms.fedadam", "FedBuff": "algorithms.fedbuff",
    "GradientCoding": "algorithms.gradient_coding", "DSGD": "algorithms.dsgd",
    "SupervisedTask": "tasks.supervised", "Quadratic": "tasks.quadratic", "QuadraticTask": "tasks.quadratic",
    "LeastSquares": "tasks.least_squares", "Logistic": "tasks.logistic",
    "ClientStore": "data.store", "GeneratedStore": "data.generated",
    "LocalWork": "policies.local_work",
    "Clock": "policies.clock",
    "InProcess": "backends.inprocess", "Torchrun": "backends.torchrun", "RayActors": "backends.ray_actors",
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
