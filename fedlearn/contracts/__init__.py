"""The contracts: what an algorithm, an oracle, a task and a backend promise one another.

An algorithm is one frozen dataclass in one file that reads like its paper. Its fields are its
hyper-parameters; its methods are small and pure: no I/O, no random numbers, no knowledge of
processes. The framework owns every loop, every random draw and every message.

Shapes: a model is the **last** dimension of a tensor. A client alone works on [P], a stack of
clients on [clients, P]; the same code serves both by plain broadcasting.
"""

from .algorithms import (
    ArrivalInfo,
    AsyncServerAlgorithm,
    CodedAlgorithm,
    MixInfo,
    Modifier,
    PeerAlgorithm,
    RoundInfo,
    ServerAlgorithm,
    ServerState,
    Stage,
    StepInfo,
)
from .problem import ClientOracle, LocalPlan, Msg, Objective, Oracle, Task, Tree, Vec

__all__ = [
    "ArrivalInfo", "AsyncServerAlgorithm", "ClientOracle", "CodedAlgorithm", "LocalPlan", "MixInfo", "Modifier", "Msg",
    "Objective", "Oracle", "PeerAlgorithm", "RoundInfo", "ServerAlgorithm", "ServerState", "Stage", "StepInfo", "Task",
    "Tree", "Vec"]
