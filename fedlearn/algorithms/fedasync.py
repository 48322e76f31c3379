"""FedAsync: an asynchronous server that mixes every arriving model into its own.

C. Xie, S. Koyejo, I. Gupta, "Asynchronous Federated Optimization", OPT 2020 (arXiv 1903.03934), Algorithm 1.

    client m:   y_0 = x_{t-s};  y_{k+1} = y_k - eta (g_m(y_k) + rho (y_k - x_{t-s}));  Delta = y_K - x_{t-s}
    server:     on arrival with staleness s:  alpha_s = alpha w(s)
                form=mixing:      x_{t+1} = (1 - alpha_s) x_t + alpha_s (x_{t-s} + Delta)
                form=difference:  x_{t+1} = x_t + alpha_s Delta

    w(s) = 1                                          (constant)
         = (s + 1)^-a                                 (polynomial)
         = 1 for s <= b, 1 / (a (s - b) + 1) above    (hinge)

======  =============  ==========  ==============================================================
symbol  field          default     where the default comes from
======  =============  ==========  ==============================================================
eta     lr             0.1         as FedAvg here
alpha   server_lr      0.6         the paper's experiments; in (0, 1]
rho     rho            0.005       the paper's experiments
w       staleness      polynomial  constant, polynomial or hinge
a       a              null        the paper's 0.5 (polynomial) or 10 (hinge)
b       b              null        the paper's 4 (hinge)
        max_staleness  4           the paper's experiments (4 and 16); staler models are rejected
        form           mixing      the paper's
======  =============  ==========  ==============================================================

Deviations: clients send differences. To mix the models themselves the server keeps the last
max_staleness + 1 of its own, of which one is what the client started from. ``form="difference"`` keeps
none: with rho = 0 it is FedBuff with a buffer of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ..contracts import ArrivalInfo, AsyncServerAlgorithm, Msg, Oracle, RoundInfo, StepInfo, Tree, Vec
from ..errors import ConfigError, in_range, one_of

DEFAULTS = {"constant": {}, "polynomial": {"a": 0.5}, "hinge": {"a": 10.0, "b": 4.0}}


class State(NamedTuple):
    """The server's model, and those before it, the latest first."""

    x: Vec
    past: tuple[Vec, ...]


@dataclass(frozen=True)
class FedAsync(AsyncServerAlgorithm):
    """Proximal local SGD from a possibly stale model; the server mixes it in, the less the staler."""

    lr: float = 0.1
    server_lr: float = 0.6
    rho: float = 0.005
    staleness: str = "polynomial"
    a: float | None = None
    b: float | None = None
    max_staleness: int = 4
    form: str = "mixing"

    buffer: ClassVar[int] = 1   # type: ignore[misc]

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.server_lr", self.server_lr, above=0, most=1)
        in_range("algorithm.rho", self.rho, least=0)
        if self.staleness not in DEFAULTS:
            raise ConfigError("algorithm.staleness", self.staleness, one_of(DEFAULTS, self.staleness))
        for name in ("a", "b"):
            value = getattr(self, name)
            if value is not None and name not in DEFAULTS[self.staleness]:
                raise ConfigError(f"algorithm.{name}", value, f"null with algorithm.staleness={self.staleness}",
                                  f"This weight has no {name}.")
            if value is not None:
                in_range(f"algorithm.{name}", value, least=0)
        in_range("algorithm.max_staleness", self.max_staleness, least=0, whole=True)
        if self.form not in ("mixing", "difference"):
            raise ConfigError("algorithm.form", self.form, "mixing or difference")

    def arrival_weight(self, info: ArrivalInfo) -> float:
        return float(info.staleness <= self.max_staleness)

    def weight(self, staleness: int) -> float:
        """Return w(s)."""
        a, b = (DEFAULTS[self.staleness].get(name, 0.0) if given is None else given
                for name, given in (("a", self.a), ("b", self.b)))
        if self.staleness == "polynomial":
            return (staleness + 1) ** -a
        return 1 / (a * max(staleness - b, 0) + 1)

    def server_init(self, x0: Vec) -> State:
        return State(x0, (x0,) * self.max_staleness if self.form == "mixing" else ())

    def local_step(self, y: Vec, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Vec:
        eta = self.lr * info.lr_factor
        g = oracle.grad(y)
        return y.lerp_(b["x"], eta * self.rho).add_(g, alpha=-eta)

    def server_update(self, s: State, mean: Msg, info: RoundInfo) -> State:
        (stale,) = info.staleness or (0,)
        step = mean["dx"]
        if self.form == "mixing" and stale:
            step = step + (s.past[stale - 1] - s.x)
        x = s.x + self.server_lr * info.lr_factor * self.weight(stale) * step
        return State(x, (s.x, *s.past)[:len(s.past)])
