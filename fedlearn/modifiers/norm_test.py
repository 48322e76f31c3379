"""The norm test: batches grow while the noise of a gradient is large beside the gradient itself.

T. T.-K. Lau, H. Liu, M. Kolar, "AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods", arXiv
2402.11215, 2024; for local steps T. T.-K. Lau, W. Li, C. Xu, H. Liu, M. Kolar, "Communication-Efficient Adaptive Batch
Size Strategies for Distributed Local Gradient Methods", arXiv 2406.13936, 2024.

    test, every ``interval`` rounds:    V / b <= eta^2 G,   V = the sum over coordinates of the variance of one
                                        sample's gradient,  G = |gradient|^2
    where it fails:                     b <- min(b_max, max(b, ceil(V / (eta^2 G))))      (b never shrinks)

    client m estimates, at the broadcast model x, from its mini-batches 0 and 1:
        V_m / b = |g_0(x) - g_1(x)|^2 / 2,     G_m = (|g_0(x)|^2 + |g_1(x)|^2) / 2
    test="local":    V = mean V_m,  G = mean G_m                  the batch of each client by itself; 2 scalars up
    test="global":   V = mean V_m / S,  G = |mean_m (g_0 + g_1)/2|^2
                                                                  those of all S clients as one; d + 1 floats up

=========  ============  =========  ===================================================================
symbol     field         default    where the default comes from
=========  ============  =========  ===================================================================
           test          local      the cheaper of the two
eta        eta           0.5        the paper's ResNet-18 on CIFAR-10; MNIST 0.1, ResNet-50 0.25
b_max      b_max         1024       ours; a client with fewer samples takes all of them
           interval      1          ours: every round; the paper tests every so many steps
           keep_samples  true       local.steps falls as b grows, so that rounds, and schedules of rounds, stay
                                    what they are in samples
           scaling       none       none; sqrt or linear: step sizes times (b / b_0)^(1/2) or b / b_0
b_0                                 local.batch_size
=========  ============  =========  ===================================================================

Counted in samples: with ``local.steps`` = K_0 a round is K = max(2, round(K_0 b_0 / b)) steps, and b at most
K_0 b_0 / 2, since the test compares two mini-batches; ``keep_samples=false`` keeps K = K_0, and rounds grow. With
``local.epochs`` a round is as many samples anyway. A client whose data is one batch has no noise of sampling.

G is, as in the papers, that of a gradient with its noise, so that near a stationary point V / b <= G anyway: choose
eta below 1. A schedule ``by_step`` counts steps, which become fewer: choose one by rounds.

Deviations: the papers take the variance over single samples, whose gradients no oracle here has; two mini-batches of
one pass are disjoint, so that their difference is an unbiased estimate of it, at two further gradients in a round of a
test (where the last of a pass is shorter, it is too large). The clients' estimates are averaged, with the weights
of their uploads, and not their ratios maximised, because that is what one message can sum; differences between clients
are no noise, and do not count. Where G is 0 the batch stays. ``train_loss`` includes the two gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Any, NamedTuple

import torch

from ..contracts import LocalPlan, Modifier, Msg, Oracle, RoundInfo, ServerAlgorithm, StepInfo, Tree, Vec
from ..errors import ConfigError, in_range, one_of
from ..vectors import norm
from .wrapped import Around, OnServer

TESTS = ("local", "global")
POWERS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}
OWN = ("noise", "norm", "gradient")


@dataclass(frozen=True)
class NormTest(Modifier):
    """Let the batch grow by the norm test.

    Raises:
        ConfigError: if a field is out of range.
    """

    test: str = "local"
    eta: float = 0.5
    b_max: int = 1024
    interval: int = 1
    keep_samples: bool = True
    scaling: str = "none"

    def __post_init__(self) -> None:
        if self.test not in TESTS:
            raise ConfigError("test", self.test, one_of(TESTS, self.test))
        if self.scaling not in POWERS:
            raise ConfigError("scaling", self.scaling, one_of(POWERS, self.scaling))
        in_range("eta", self.eta, above=0)
        in_range("b_max", self.b_max, least=1, whole=True)
        in_range("interval", self.interval, least=1, whole=True)

    def around(self, algorithm: ServerAlgorithm) -> ServerAlgorithm:
        if algorithm.individual:
            raise ConfigError("modifiers.norm_test", "NormTest", "an algorithm whose server sees a mean",
                              f"The server of {type(algorithm).__name__} sees every upload by itself.")
        return Testing(algorithm, self)


class Batch(NamedTuple):
    """The batch of the next round and of the last one (0: as local.batch_size says), and the local steps so far.

    Each is int64 [1].
    """

    size: Vec
    used: Vec
    steps: Vec


class Probe(NamedTuple):
    """A client's first gradient [..., P] (with ``global`` the sum of both), and its noise and norm [..., 1]."""

    gradient: Vec
    noise: Vec
    norm: Vec


@dataclass(frozen=True)
class Testing(OnServer):
    """The algorithm with batches of the size that the test asks for."""

    rule: NormTest

    def server_init(self, x0: Vec) -> Around:
        zero = x0.new_zeros(1, dtype=torch.int64)
        return Around(self.inner.server_init(x0), Batch(zero, zero.clone(), zero.clone()))

    def plan(self, s: Around, local: LocalPlan) -> LocalPlan:
        """Return the work with the present batch, and as many samples as before."""
        local = self.inner.plan(s.inner, local)
        first, steps = getattr(local, "batch_size", None), getattr(local, "steps", None)
        if not first:
            raise ConfigError("local.batch_size", first, "a number of samples with modifiers=[norm_test]",
                              "Batches of all samples cannot grow.")
        if steps == 1:
            raise ConfigError("local.steps", steps, ">= 2 with modifiers=[norm_test]",
                              "It compares the first two mini-batches of a round.")
        size = self._most(int(s.own.size) or first, first, steps)
        grown: dict[str, Any] = {"batch_size": size,
                                 "lr_factor": local.lr_factor * (size / first) ** POWERS[self.rule.scaling]}
        if steps is not None:
            kept = max(2, round(steps * first / size)) if self.rule.keep_samples else steps
            grown |= {"steps": kept, "before": int(s.own.steps)}
        return replace(local, **grown)      # type: ignore[type-var]

    def _most(self, size: int, first: int, steps: int | None) -> int:
        most = max(first, self.rule.b_max)
        if steps is not None and self.rule.keep_samples:
            most = min(most, max(first, steps * first // 2))
        return min(size, most)

    def local_init(self, b: Msg, c: Tree) -> Around:
        zero = torch.zeros_like(b["x"][..., :1], dtype=torch.float64)
        return Around(self.inner.local_init(b, c), Probe(torch.zeros_like(b["x"]), zero, zero.clone()))

    def local_step(self, y: Around, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Around:
        own = y.own
        if info.k < 2 and info.round % self.rule.interval == 0:
            g = oracle.grad(b["x"])
            half = norm(g).double().square() / 2
            if info.k == 0:
                # A client of one batch stops here: its data is the whole of what it could draw.
                own = Probe(g.clone(), own.noise, 2 * half)
            else:
                noise = norm(g - own.gradient).double().square() / 2
                own = Probe(own.gradient.add_(g).div_(2), noise, own.norm / 2 + half)
        return Around(self.inner.local_step(y.inner, b, c, oracle, info), own)

    def local_finish(self, y: Around, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        msg, c = self.inner.local_finish(y.inner, b, c, info)
        if info.round % self.rule.interval:
            return msg, c
        last = {"gradient": y.own.gradient} if self.rule.test == "global" else {"norm": y.own.norm}
        return {**msg, "noise": y.own.noise, **last}, c

    def server_update(self, s: Around, mean: Msg, info: RoundInfo) -> Around:
        inner = self.inner.server_update(s.inner, {name: v for name, v in mean.items() if name not in OWN}, info)
        assert info.local is not None
        used, steps = int(getattr(info.local, "batch_size", 0)), getattr(info.local, "steps", None) or 0
        size = max(used, int(s.own.size))
        if "noise" in mean:
            # The noise is that of the batches that were used: V = used * noise.
            asked = used * float(mean["noise"]) / self.rule.eta**2
            square = float(mean["norm"]) if "norm" in mean else info.accepted * float(norm(mean["gradient"])) ** 2
            if square > 0:
                size = max(size, min(ceil(min(asked / square, 2**53)), self.rule.b_max))
        one = torch.ones_like(s.own.size)
        return Around(inner, Batch(size * one, used * one, s.own.steps + steps))

    def iterate(self, y: Around) -> Vec:
        return self.inner.iterate(y.inner)

    def metrics(self, s: Around) -> dict[str, float]:
        return {**super().metrics(s), "batch_size": float(s.own.used)}
