"""Gradient coding: data blocks are held by several machines, and nobody waits for stragglers.

M. Glasgow, M. Wootters, "Approximate Gradient Coding with Optimal Decoding", IEEE Journal on
Selected Areas in Information Theory, 2021 (graph codes and their decoding); the fractional repetition
code (FRC) is from R. Tandon, Q. Lei, A. G. Dimakis, N. Karampatziakis, "Gradient Coding: Avoiding
Stragglers in Distributed Learning", ICML 2017.

A graph code has n data blocks for vertices and m = n d / 2 machines for edges: a machine holds the two
blocks at its ends, and a block lies on d machines, its degree. With as many machines, FRC lets d
machines hold the same two blocks; uncoded, n machines hold one each. With A the 0/1 matrix [n, m] of
who holds what and w = 0 for stragglers, the server gets

    sum_e w_e g_e = sum_v alpha_v g_v,    alpha = A w,    x <- x - eta (1/N) sum_v alpha_v g_v,

g_v the sum of the gradients in block v and N the number of samples.

    optimal:  w = argmin norm(A w - 1) over those that responded, found in linear time: a component
              of the responding graph with an odd cycle gets alpha = 1; a bipartite one with sides
              a >= b gets alpha = 2 b / (a + b) on side a, 2 a / (a + b) on side b; a lone block 0
    fixed:    w_e = 1 / (d (1 - p));  unbiased, block variance p / (d (1 - p))

======  ====================  =========  =======================================================
symbol  field                 default    where the default comes from
======  ====================  =========  =======================================================
eta     lr                    0.1        no source; up to about 1 / H for full gradients
d       replication           3          the smaller of the paper's two experiments
        code                  "graph"    the paper's code; "frc", or "uncoded" (replication 1)
        decoding              "optimal"  the paper's; "fixed" is what it is compared with
p       straggler_probability null       needed by decoding=fixed, refused with optimal
======  ====================  =========  =======================================================

Mean of (alpha_v - 1)^2 when each machine straggles with probability p: about p^d for the optimal
decoding of a random regular graph, p / (d (1 - p)) for the fixed one. With optimal decoding alpha is
used as it is: its mean r < 1 is left to the step size.

Deviations: the graph is a random d-regular one; the paper also uses expanders of special sizes.
Blocks are put on vertices in random order. Only alpha is optimal: the weights are those of a tree
solution, not of smallest norm. An upload is linear in the machine's data if each local batch is all
of it, which is for the protocol to see to.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from ..contracts import CodedAlgorithm, Msg, Oracle, RoundInfo, ServerState, StepInfo, Tree, Vec
from ..errors import ConfigError, in_range, one_of

CODES = ("graph", "frc", "uncoded")
DECODINGS = ("optimal", "fixed")


@dataclass(frozen=True)
class GradientCoding(CodedAlgorithm):
    """Gradient descent by what the fastest machines sent, decoded."""

    lr: float = 0.1
    replication: int = 3
    code: str = "graph"
    decoding: str = "optimal"
    straggler_probability: float | None = None

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        if self.code not in CODES:
            raise ConfigError("algorithm.code", self.code, one_of(CODES, self.code))
        if self.decoding not in DECODINGS:
            raise ConfigError("algorithm.decoding", self.decoding, one_of(DECODINGS, self.decoding))
        in_range("algorithm.replication", self.replication, least=2 if self.code == "graph" else 1)
        if self.code == "uncoded" and self.replication != 1:
            raise ConfigError("algorithm.replication", self.replication, "1 with algorithm.code=uncoded")
        p = self.straggler_probability
        if (p is None) == (self.decoding == "fixed"):
            allowed = "a number with algorithm.decoding=fixed, null with optimal"
            raise ConfigError("algorithm.straggler_probability", p, allowed)
        if p is not None:
            in_range("algorithm.straggler_probability", p, least=0, below=1)

    def assignment(self, blocks: int, rng: np.random.Generator) -> np.ndarray:
        """Return A [blocks, machines], uint8, with m = n d / 2 machines, or n uncoded.

        Raises:
            ConfigError: naming ``clients``, if the code does not exist for so many blocks.
        """
        n, d = blocks, self.replication
        if self.code == "uncoded":
            return np.eye(n, dtype=np.uint8)
        if self.code == "frc":
            if n < 2 or n % 2:
                raise ConfigError("clients", n, "an even number of data blocks with algorithm.code=frc")
            return np.kron(np.eye(n // 2, dtype=np.uint8), np.ones((2, d), dtype=np.uint8))
        if n <= d or n * d % 2:
            allowed = f"more than {d} data blocks" + (", an even number" if d % 2 else "")
            raise ConfigError("clients", n, f"{allowed}, with algorithm.code=graph algorithm.replication={d}")
        import networkx as nx

        graph = nx.random_regular_graph(d, n, seed=int(rng.integers(2**31)))
        block = rng.permutation(n)
        held = np.zeros((n, n * d // 2), dtype=np.uint8)
        for e, ends in enumerate(sorted(tuple(sorted(edge)) for edge in graph.edges)):
            held[block[list(ends)], e] = 1
        return held

    def decode(self, assignment: np.ndarray, responded: np.ndarray) -> np.ndarray:
        """Return the weights w [machines], 0 for those that did not respond."""
        if self.straggler_probability is not None:
            return responded / (self.replication * (1 - self.straggler_probability))
        if self.code == "graph":
            return decode_graph(assignment, responded)
        # In groups that hold the same, those that responded share the group's blocks evenly.
        answers = assignment @ responded.astype(np.int64)
        return responded / np.maximum(answers, 1)[assignment.argmax(axis=0)]

    def local_init(self, b: Msg, c: Tree) -> Vec:
        return torch.zeros_like(b["x"])

    def local_step(self, y: Vec, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Vec:
        return y.add_(oracle.grad(b["x"]), alpha=-self.lr * info.lr_factor)

    def local_finish(self, y: Vec, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        return {"dx": y / info.steps}, c

    def server_update(self, s: ServerState, mean: Msg, info: RoundInfo) -> ServerState:
        return ServerState(s.x + info.lr_factor * mean["dx"])


def decode_graph(assignment: np.ndarray, responded: np.ndarray) -> np.ndarray:
    """Return weights with A w the least-squares solution of A w = 1, in time linear in the graph.

    ``assignment`` [n, m] has two ones in each column; ``responded`` is bool [m].
    """
    n, m = assignment.shape
    ends = assignment.T.nonzero()[1].reshape(m, 2).tolist()
    around: list[list[tuple[int, int]]] = [[] for _ in range(n)]
    for e in np.flatnonzero(responded).tolist():
        u, v = ends[e]
        around[u].append((v, e))
        around[v].append((u, e))
    w = np.zeros(m)
    colour = [0] * n
    for root in range(n):
        if not colour[root] and around[root]:
            _decode_component(root, around, colour, w)
    return w


def _decode_component(root: int, around: list[list[tuple[int, int]]], colour: list[int],
                      w: np.ndarray) -> None:
    """Fill in the weights of the component of ``root``; ``colour`` is +1 or -1 where it was visited."""
    colour[root] = 1
    order, parent = [root], {root: (root, -1)}
    odd: tuple[int, int, int] | None = None
    queue = deque(order)
    while queue:
        u = queue.popleft()
        for v, e in around[u]:
            if not colour[v]:
                colour[v], parent[v] = -colour[u], (u, e)
                order.append(v)
                queue.append(v)
            elif colour[v] == colour[u]:
                odd = u, v, e
    surplus = sum(colour[v] for v in order)
    if odd is None:
        # On the side of root there are (size + surplus) / 2 blocks; each gets 2 (other side) / size.
        need = {v: 1 - colour[v] * surplus / len(order) for v in order}
    else:
        # The weight of one odd edge makes up for the unequal sides; a tree edge cannot.
        need = dict.fromkeys(order, 1.0)
        u, v, e = odd
        w[e] = colour[u] * surplus / 2
        need[u] -= w[e]
        need[v] -= w[e]
    for v in reversed(order[1:]):
        up, e = parent[v]
        w[e] = need[v]
        need[up] -= need[v]
