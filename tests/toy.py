"""A toy federation for tests of algorithms: diagonal quadratics, and the loop of a worker.

F_m(x) = 1/2 a_m (x - t_m)^2 along each coordinate; mini-batch k adds the vector noise[k] to the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlearn.contracts import Msg, Objective, PeerAlgorithm, RoundInfo, ServerAlgorithm, StepInfo, Tree
from fedlearn.vectors import dot, tree_map

Algorithm = ServerAlgorithm | PeerAlgorithm


@dataclass
class Quadratic:
    """The oracle of one client, a and t [P], or of a stack of them, [clients, P].

    With ``poison`` what it returned turns into NaN at its next call, as a reused buffer may.
    """

    a: Tensor
    t: Tensor
    noise: Tensor | None = None
    poison: bool = False
    directions: Tensor | None = None
    k: int = 0
    lent: Tensor | None = None

    def alone(self, m: int) -> Quadratic:
        """Return the oracle of client m of a stack."""
        of = {name: None if v is None else v[:, m] for name, v in vars(self).items() if name in KEYED}
        return Quadratic(self.a[m], self.t[m], poison=self.poison, **of)

    def direction(self, x: Tensor) -> Tensor:
        rows = len(x) if self.a.dim() > 1 else None
        if self.directions is None:
            return self.lend(torch.ones_like(x) / x.shape[-1] ** 0.5)
        return self.lend(self.directions[self.k][:rows].clone())

    def lend(self, result: Tensor) -> Tensor:
        self.spoil()
        self.lent = result
        return result

    def spoil(self) -> None:
        if self.poison and self.lent is not None:
            self.lent.fill_(torch.nan)

    def full_grad(self, x: Tensor) -> Tensor:
        rows = len(x) if self.a.dim() > 1 else None
        return self.lend(self.a[:rows] * (x - self.t[:rows]))

    def full_value(self, x: Tensor) -> Tensor:
        rows = len(x) if self.a.dim() > 1 else None
        return self.lend(dot(self.a[:rows] * (x - self.t[:rows]), x - self.t[:rows]) / 2)

    def grad(self, x: Tensor) -> Tensor:
        rows = len(x) if self.a.dim() > 1 else None
        g = self.a[:rows] * (x - self.t[:rows])
        return self.lend(g if self.noise is None else g + self.noise[self.k][:rows])

    def value(self, x: Tensor) -> Tensor:
        rows = len(x) if self.a.dim() > 1 else None
        away = x - self.t[:rows]
        return self.lend(dot(self.a[:rows] * away, away) / 2)

    def grad_of(self, x: Tensor, others: Sequence[Tensor], objective: Objective) -> Tensor:
        """Differentiate an objective of the loss and of the representation a (x - t), of one sample a client."""
        if self.a.dim() > 1:
            each = [Quadratic(*(v[m] for v in (self.a, self.t)), None if self.noise is None else self.noise[:, m],
                              k=self.k).grad_of(x[m], [v[m] for v in others], objective) for m in range(len(x))]
            return self.lend(torch.stack(each))
        y = x.detach().requires_grad_()
        loss = (self.a * (y - self.t) ** 2).sum() / 2 + (0 if self.noise is None else self.noise[self.k] @ y)
        z = (self.a * (y - self.t))[None]
        total = objective(loss, z, [(self.a * (other - self.t))[None] for other in others])
        return self.lend(torch.autograd.grad(total, y)[0])

    def hvp(self, x: Tensor, v: Tensor) -> Tensor:
        rows = len(x) if self.a.dim() > 1 else None
        return self.lend(self.a[:rows] * v)


KEYED = ("noise", "directions")  # [steps, clients, P]


def reply(algorithm: Algorithm, b: Msg, c: Tree, oracle: Quadratic, steps: int, factor: float = 1.0, round: int = 0
          ) -> tuple[Msg, Tree]:
    """Return the upload and the new state of one client, all tensors [P]; a peer's state is its model."""
    if isinstance(algorithm, PeerAlgorithm):
        s = tree_map(torch.clone, c)
        for k in range(steps):
            oracle.k = k
            s = algorithm.local_step(s, oracle, StepInfo(0, k, steps, factor, k))
        oracle.spoil()
        return algorithm.outgoing(s), s
    y = algorithm.local_init(b, c)
    for k in range(steps):
        oracle.k = k
        y = algorithm.local_step(y, b, c, oracle, StepInfo(round, k, steps, factor, round * steps + k, k * factor))
    oracle.spoil()
    return algorithm.local_finish(y, b, c, StepInfo(round, steps, steps, factor, (round + 1) * steps, steps * factor))


def replies(algorithm: Algorithm, b: Msg, cs: Sequence[Tree], oracle: Quadratic, steps: Sequence[int],
            factor: float = 1.0) -> list[tuple[Msg, Tree]]:
    """Return the same for a stack of clients, whose steps must not increase; it shrinks as they finish."""
    n = len(cs)
    b = {name: v.expand(n, -1) for name, v in b.items()}
    c = tree_map(lambda *parts: torch.stack(parts), *cs)
    counts = torch.tensor(steps).unsqueeze(1)
    y = c if isinstance(algorithm, PeerAlgorithm) else algorithm.local_init(b, c)
    done: list[tuple[Msg, Tree]] = []
    for k in range(max(steps) + 1):
        left = sum(s > k for s in steps)
        if left < n:
            yd, bd, cd = tree_map(lambda v, left=left: v[left:], (y, b, c))
            if isinstance(algorithm, PeerAlgorithm):
                ended = algorithm.outgoing(yd), yd
            else:
                ended = algorithm.local_finish(yd, bd, cd, StepInfo(0, k, counts[left:n], factor, k, k * factor))
            done = [tree_map(lambda v, i=i: v[i], ended) for i in range(n - left)] + done
            y, b, c = tree_map(lambda v, left=left: v[:left], (y, b, c))
            n = left
        if n:
            oracle.k = k
            info = StepInfo(0, k, counts[:n], factor, k, k * factor)
            y = (algorithm.local_step(y, oracle, info) if isinstance(algorithm, PeerAlgorithm)
                 else algorithm.local_step(y, b, c, oracle, info))
    return done


def mean(algorithm: ServerAlgorithm, msgs: Sequence[Msg], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted mean of uploads; plain for those that the algorithm wants unweighted."""
    w = torch.tensor(weights, dtype=torch.float64)
    result = {}
    for name in msgs[0]:
        v = torch.ones_like(w) if name in algorithm.unweighted else w
        stack = torch.stack([msg[name] for msg in msgs])
        result[name] = ((v / v.sum()).to(stack.dtype)[:, None] * stack).sum(0)
    return result


def seen(algorithm: ServerAlgorithm, msgs: Sequence[Msg], weights: Sequence[float]) -> Msg:
    """Return what the server's update is given: the mean, or all uploads [clients, P]."""
    if algorithm.individual:
        return {name: torch.stack([msg[name] for msg in msgs]) for name in msgs[0]}
    return mean(algorithm, msgs, weights)


@dataclass
class Federation:
    """A synchronous run in miniature: server state, client states, one problem [clients, P]."""

    algorithm: ServerAlgorithm
    problem: Quadratic
    x0: Tensor
    done: int = 0

    def __post_init__(self) -> None:
        self.s = self.algorithm.server_init(self.x0)
        self.states = [self.algorithm.client_init(self.x0) for _ in self.problem.a]

    def round(self, steps: Sequence[int] | int, weights: Sequence[float] | None = None,
              cohort: Sequence[int] | None = None, lost: Sequence[int] = (), factor: float = 1.0) -> Tensor:
        """Run a round of a cohort; the replies of ``lost`` clients never arrive. Return the model."""
        p, n = self.problem, len(self.states)
        steps = [steps] * n if isinstance(steps, int) else steps
        weights = [1.0] * n if weights is None else weights
        accepted = [m for m in (range(n) if cohort is None else cohort) if m not in lost]
        chosen = [weights[m] for m in accepted]
        info = RoundInfo(self.done, 1000, len(accepted), n, 1.0, accepted, factor,
                         weights=[w / sum(chosen) for w in chosen])
        kept: Msg = {}
        if first := self.algorithm.prelude:
            kept = first.broadcast(self.s)
            early = [reply(first, kept, self.states[m], p.alone(m), 1, factor, self.done)[0] for m in accepted]
            self.s = first.server_update(self.s, seen(first, early, chosen), info)
        b, msgs = {**kept, **self.algorithm.broadcast(self.s)}, []
        for m in accepted:
            msg, self.states[m] = reply(self.algorithm, b, self.states[m], p.alone(m), steps[m], factor, self.done)
            msgs.append(msg)
        self.s = self.algorithm.server_update(self.s, seen(self.algorithm, msgs, chosen), info)
        self.done += 1
        return self.algorithm.model(self.s)
