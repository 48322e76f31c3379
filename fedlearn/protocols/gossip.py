"""Gossip: peers train and exchange with their neighbours along a graph; there is no server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..contracts import PeerAlgorithm, Task, Vec
from ..errors import ConfigError, in_range, one_of
from ..experiment import Experiment, RoundReport
from ..policies.weighting import UniformWeighting
from ..seeds import generator
from ..vectors import digest, tree_flat, tree_like
from ..work import Exchange, Work, Workers

GRAPHS = ("ring", "complete", "star", "regular")


@dataclass(frozen=True)
class Gossip:
    """Nodes mix with Metropolis weights on a ``graph``: ring, complete, star or (random) regular.

    The weights W_ij = 1 / (1 + max(deg_i, deg_j)) are doubly stochastic on any graph (Xiao, Boyd,
    Kim 2007), so that mixing keeps the average of the nodes. ``degree`` is that of ``regular``.
    """

    graph: str = "ring"
    degree: int = 4

    kind: ClassVar[type] = PeerAlgorithm
    verb: ClassVar[str] = "exchange"

    def __post_init__(self) -> None:
        if self.graph not in GRAPHS:
            raise ConfigError("graph", self.graph, one_of(GRAPHS, self.graph))
        in_range("degree", self.degree, least=1)

    def check(self, experiment: Experiment) -> None:
        """Refuse cohorts, weightings and pipelines, which have no meaning without a server."""
        nodes = len(experiment.task.sizes)
        if experiment.clients_at_a_time != nodes:
            raise ConfigError("cohort", experiment.cohort, "null with protocol=gossip", "Every node works.")
        if not isinstance(experiment.weighting, UniformWeighting):
            raise ConfigError("weighting", experiment.weighting.name, "uniform with protocol=gossip",
                              "The graph decides the weights.")
        if experiment.sampling.name not in ("uniform", "full"):
            raise ConfigError("sampling", experiment.sampling.name, "uniform or full with protocol=gossip",
                              "Every node works in every round.")
        for key, found, allowed, why in (
                ("pipeline", list(experiment.pipeline), [], "Its stages have a server half."),
                ("reduce", experiment.reduce, "exact", "Nothing is summed up on a server."),
                ("schedule.server", experiment.schedule.server, False, "There is no server."),
                ("stack", experiment.stack is True, False, "Nodes work one after another.")):
            if found != allowed:
                raise ConfigError(key, found, f"{allowed or 'none'} with protocol=gossip", why)
        if self.graph == "regular" and (self.degree >= nodes or self.degree * nodes % 2):
            raise ConfigError("protocol.degree", self.degree, f"less than the {nodes} nodes, with degree * nodes even")

    def prepare(self, experiment: Experiment) -> Task:
        """Return the task as it is."""
        return experiment.task

    def adjacency(self, nodes: int, rng: np.random.Generator) -> list[list[int]]:
        """Return the sorted neighbours of every node."""
        import networkx as nx
        graph = {"ring": lambda: nx.cycle_graph(nodes), "complete": lambda: nx.complete_graph(nodes),
                 "star": lambda: nx.star_graph(nodes - 1),
                 "regular": lambda: nx.random_regular_graph(self.degree, nodes, seed=int(rng.integers(2**31)))
                 }[self.graph]()
        # A ring of one or two nodes has loops or double edges in networkx.
        return [sorted(set(graph.neighbors(i)) - {i}) for i in range(nodes)]

    def start(self, experiment: Experiment, workers: Workers) -> GossipLoop:
        """Return the loop with every node at the initial model."""
        return GossipLoop(self, experiment, workers)


class GossipLoop:
    """The graph; the nodes' states stay with the workers."""

    def __init__(self, protocol: Gossip, experiment: Experiment, workers: Workers) -> None:
        assert isinstance(experiment.algorithm, PeerAlgorithm)
        self.experiment, self.workers, self.algorithm = experiment, workers, experiment.algorithm
        nodes = len(experiment.task.sizes)
        self.neighbours = protocol.adjacency(nodes, generator(experiment.seed, "graph"))
        x0 = experiment.task.initial(experiment.seed)
        self.weights = [w.to(x0.dtype) for w in metropolis(self.neighbours)]
        workers.set_nodes({i: self.algorithm.node_init(x0.clone()) for i in range(nodes)})
        self.simulated = 0.0

    def round(self, r: int) -> RoundReport:
        """Let every node work and mix."""
        e = self.experiment
        began = perf_counter()
        nodes = list(range(len(self.neighbours)))
        work = Work(r, r, {}, nodes, [1.0] * len(nodes), e.plan(r))
        records = self.workers.exchange(Exchange(work, self.neighbours, self.weights))
        # A node's message travels once along each of its edges, up there and down here.
        sent = {record.client: record.bytes_up * len(self.neighbours[record.client]) for record in records}
        heard = {i: sum(sent[j] // len(self.neighbours[j]) for j in self.neighbours[i]) for i in nodes}
        self.simulated += max(e.clock.duration(record.client, r, record.steps, heard[record.client],
                                               sent[record.client], e.seed) for record in records)
        worked = perf_counter()
        models = self._models()
        spread = (models - models.mean(0)).pow(2).sum(1).mean().sqrt()
        tensors, _ = self.snapshot()
        return RoundReport(nodes, records, sum(heard.values()), sum(sent.values()),
                           {"work": worked - began, "update": perf_counter() - worked}, self.simulated,
                           digest(tensors), {"consensus_distance": float(spread)})

    def _models(self) -> Tensor:
        states = self.workers.nodes()
        return torch.stack([self.algorithm.model(states[i]) for i in sorted(states)]).to(torch.float64)

    def model(self) -> Vec:
        """Return the average of the nodes' models [P]."""
        first = self.algorithm.model(self.workers.nodes()[0])
        return self._models().mean(0).to(first.dtype)

    def states(self) -> list[tuple[int, int]]:
        """Node states are in the snapshot."""
        return []

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the states of all nodes and the clock."""
        states = self.workers.nodes()
        tensors = {f"{i}:{name}": t for i in states for name, t in tree_flat(states[i]).items()}
        return tensors, {"simulated": self.simulated}

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Continue from a snapshot."""
        by_node: dict[int, dict[str, Tensor]] = {}
        for path, t in tensors.items():
            node, name = path.split(":", 1)
            by_node.setdefault(int(node), {})[name] = t
        states = self.workers.nodes()
        self.workers.set_nodes({i: tree_like(states[i], flat) for i, flat in by_node.items()})
        self.simulated = float(meta["simulated"])


def metropolis(neighbours: list[list[int]]) -> list[Tensor]:
    """Return each node's Metropolis weights [neighbours + 1], its own first; rows add up to one."""
    degree = [len(near) for near in neighbours]
    rows = []
    for i, near in enumerate(neighbours):
        others = [1.0 / (1 + max(degree[i], degree[j])) for j in near]
        rows.append(torch.tensor([1.0 - sum(others), *others], dtype=torch.float64))
    return rows
