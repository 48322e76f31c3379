"""Defection: clients that are content with the broadcast model leave for good.

The model of M. Han, K. K. Patel, H. Shao, L. Wang, "On the Effect of Defections in Federated Learning and How to
Prevent Them", 2023: client m leaves once F_m(x) <= eps at a broadcast model x. It combines with every algorithm with
a server that does without some of its clients.

    client m:   gone_m <- gone_m or F_m(x) <= eps;  send the algorithm's upload, all zeros if gone_m
    server:     the mean over those who stay, for the algorithm's own update; if nobody stays, everything stays

F_m is the client's whole objective, for which the oracle needs ``full_value``: a pass over its data in each round.
Who is gone may still be sampled, works as before and counts in the bytes, but what it does has no effect; its state
stays what it was. Three more scalars go up, one is kept. ``left`` among the metrics: how many have left so far, each
noticed when it is next sampled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..contracts import Modifier, Msg, Oracle, RoundInfo, ServerAlgorithm, StepInfo, Vec
from ..errors import ConfigError, in_range
from ..vectors import tree_map
from .wrapped import Around, OnServer

OWN = ("staying", "present", "leaving")


@dataclass(frozen=True)
class Defection(Modifier):
    """Let clients leave once their loss is at most ``eps``.

    Raises:
        ConfigError: if eps is below 0, or the algorithm needs everybody.
    """

    eps: float = 0.01

    def __post_init__(self) -> None:
        in_range("eps", self.eps, least=0)

    def around(self, algorithm: ServerAlgorithm) -> ServerAlgorithm:
        if algorithm.everybody:
            raise ConfigError("modifiers.defection", "Defection", "an algorithm that does without some of its clients",
                              f"{type(algorithm).__name__} is only defined with full participation.")
        return Leaving(algorithm, self.eps)


@dataclass(frozen=True)
class Leaving(OnServer):
    """The algorithm among those who stay; beside the client's state is whether it is gone, 0 or 1, [..., 1].

    Beside the server's is how many have left, [1]. As ``early``, a prelude, it notices who leaves without counting.
    """

    eps: float
    early: bool = False

    @property
    def unweighted(self) -> frozenset[str]:     # type: ignore[override]
        return self.inner.unweighted | {"present", "leaving"}

    @property
    def prelude(self) -> ServerAlgorithm | None:
        first = self.inner.prelude
        return None if first is None else Leaving(first, self.eps, early=True)

    def server_init(self, x0: Vec) -> Around:
        return Around(self.inner.server_init(x0), x0.new_zeros(1))

    def client_init(self, x0: Vec) -> Around:
        return Around(self.inner.client_init(x0), x0.new_zeros(1))

    def local_init(self, b: Msg, c: Around) -> Around:
        return Around(self.inner.local_init(b, c.inner), c.own)

    def local_step(self, y: Around, b: Msg, c: Around, oracle: Oracle, info: StepInfo) -> Around:
        gone = y.own
        if info.k == 0:
            gone = torch.maximum(gone, (oracle.full_value(b["x"]) <= self.eps).to(gone.dtype))
        return Around(self.inner.local_step(y.inner, b, c.inner, oracle, info), gone)

    def local_finish(self, y: Around, b: Msg, c: Around, info: StepInfo) -> tuple[Msg, Around]:
        msg, state = self.inner.local_finish(y.inner, b, c.inner, info)
        stays = y.own == 0
        mine = {name: torch.where(stays, v, torch.zeros_like(v)) for name, v in msg.items()}
        state = tree_map(lambda new, old: torch.where(stays, new, old), state, c.inner)
        own = {"staying": 1 - y.own, "present": 1 - y.own, "leaving": y.own - c.own}
        return {**mine, **own}, Around(state, y.own.clone())

    def iterate(self, y: Around) -> Vec:
        return self.inner.iterate(y.inner)

    def server_update(self, s: Around, mean: Msg, info: RoundInfo) -> Around:
        uploads: Msg = {name: v for name, v in mean.items() if name not in OWN}
        here = mean["present"].mean(0, keepdim=True).view(1)
        left = s.own if self.early else s.own + torch.round(mean["leaving"].mean() * info.accepted)
        count = round(float(here) * info.accepted)
        if count == 0:
            return Around(s.inner, left.clone())
        if count < info.accepted:
            uploads, info = (self._rows if self.inner.individual else self._shared)(uploads, mean, info, count)
        return Around(self.inner.server_update(s.inner, uploads, info), left)

    def _rows(self, uploads: Msg, mean: Msg, info: RoundInfo, count: int) -> tuple[Msg, RoundInfo]:
        """Keep the uploads of those who stay."""
        stays = mean["staying"].squeeze(-1) > 0
        rows = torch.nonzero(stays).flatten().tolist()
        clients = [info.clients[i] for i in rows] if info.clients else ()
        weights = [info.weights[i] for i in rows] if info.weights else ()
        return ({name: v[stays] for name, v in uploads.items()},
                replace(info, accepted=count, clients=clients, weights=weights))

    def _shared(self, uploads: Msg, mean: Msg, info: RoundInfo, count: int) -> tuple[Msg, RoundInfo]:
        """Make the means over all those over who stays."""
        staying = mean["staying"] / (sum(info.weights) if info.weights else 1.0)
        plain = self.inner.unweighted
        over = {name: v / (mean["present"] if name in plain else staying) for name, v in uploads.items()}
        return over, replace(info, accepted=count, clients=(), weights=())

    def metrics(self, s: Around) -> dict[str, float]:
        return {**self.inner.metrics(s.inner), "left": float(s.own)}
