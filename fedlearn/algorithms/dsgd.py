"""D-SGD: decentralised SGD, local steps and gossip averaging on a graph.

X. Lian, C. Zhang, H. Zhang, C.-J. Hsieh, W. Zhang, J. Liu, "Can Decentralized Algorithms Outperform
Centralized Algorithms?", NeurIPS 2017, Algorithm 1; with K local steps between two exchanges as in
A. Koloskova, N. Loizou, S. Boreiri, M. Jaggi, S. U. Stich, "A Unified Theory of Decentralized SGD
with Changing Topology and Local Updates", ICML 2020, Algorithm 1.

    node i:     x_i <- x_i - eta g_i(x_i), K times;   x_i <- sum_j W_ij x_j

======  ===========  =======  ===================================================================
symbol  field        default  where the default comes from
======  ===========  =======  ===================================================================
eta     lr           0.1      as FedAvg here
W       (protocol)            doubly stochastic, zero off the graph's edges
======  ===========  =======  ===================================================================

Deviations: the gradient is taken before the exchange and at the node's own model (adapt, then
combine), as in Koloskova et al.; Lian et al. mix the models and subtract the gradient of before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..contracts import MixInfo, Msg, Oracle, PeerAlgorithm, StepInfo, Vec
from ..errors import in_range


class State(NamedTuple):
    """A node's model [P]."""

    x: Vec


@dataclass(frozen=True)
class DSGD(PeerAlgorithm):
    """SGD on each node, then a weighted average with the neighbours."""

    lr: float = 0.1

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)

    def node_init(self, x0: Vec) -> State:
        return State(x0.clone())

    def local_step(self, s: State, oracle: Oracle, info: StepInfo) -> State:
        return State(s.x.add_(oracle.grad(s.x), alpha=-self.lr * info.lr_factor))

    def outgoing(self, s: State) -> Msg:
        return {"x": s.x}

    def mix(self, s: State, inbox: Msg, info: MixInfo) -> State:
        # One after the other and not as a matrix product, whose order of summation may change with
        # the alignment of its operands.
        first, *others = info.weights.tolist()
        x = first * inbox["x"][0]
        for w, heard in zip(others, inbox["x"][1:], strict=True):
            x.add_(heard, alpha=w)
        return State(x)

    def model(self, s: State) -> Vec:
        return s.x
