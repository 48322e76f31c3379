"""How much a client works in a round: epochs or steps, and the size of its mini-batches.

McMahan et al. (AISTATS 2017) count local **epochs** E over batches of size b, so that a client with
n samples takes K = E ceil(n / b) steps; the Local SGD theory counts **steps** K, the same for
everybody. Batches are slices of one shuffled pass over the client's samples; each pass is shuffled
anew and keeps its last, smaller batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..contracts import LocalPlan
from ..draws import Draws
from ..errors import ConfigError, DataError, in_range


@dataclass(frozen=True)
class LocalWork:
    """The work of a client in one round: ``steps`` or ``epochs`` (default: one epoch) of batches.

    ``batch_size`` None or 0 means the client's whole data at each step.

    Raises:
        ConfigError: if both ``steps`` and ``epochs`` are given, or one is out of range.
    """

    steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = 20

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("local.steps", self.steps, "null while local.epochs is set",
                              f"Found local.epochs={self.epochs} as well; give only one of the two.")
        if self.steps is not None:
            in_range("local.steps", self.steps, least=1)
        if self.epochs is not None:
            in_range("local.epochs", self.epochs, least=1)
        if self.batch_size is not None:
            in_range("local.batch_size", self.batch_size, least=0)

    def batch_for(self, samples: int) -> int:
        """Return the size of a full mini-batch for a client with so many samples, at most all of them."""
        return min(self.batch_size or samples, samples)

    def steps_for(self, samples: int) -> int:
        """Return K for a client with so many samples: ``steps``, or ``epochs`` ceil(n / b)."""
        if self.steps is not None:
            return self.steps
        return (self.epochs or 1) * -(-samples // max(1, self.batch_for(samples)))

    @property
    def before(self) -> int:
        """Return 0: this is the first round."""
        return 0

    @property
    def round(self) -> int:
        """Return 0: this is the first round."""
        return 0

    @property
    def lr_factor(self) -> float:
        """Return 1: step sizes are as the algorithm and the schedule say."""
        return 1.0


@dataclass(frozen=True)
class RoundWork(LocalWork):
    """The work of one ``round``, after ``before`` local steps in earlier ones, with step sizes times ``lr_factor``."""

    before: int = 0
    round: int = 0
    lr_factor: float = 1.0


def batches(rng: np.random.Generator, samples: int, plan: LocalPlan) -> Draws:
    """Return the K mini-batches of one round as int64 index tensors into the client's samples.

    A full batch is 0..n-1 in order and draws no random number. Where fewer samples are needed than
    a whole pass has, only these are drawn, so that a few steps on a huge client stay cheap.

    Raises:
        DataError: if the client has no samples.
    """
    if samples < 1:
        raise DataError("found a client with 0 samples; allowed: at least 1; drop it or split the data anew.")
    steps, size = plan.steps_for(samples), plan.batch_for(samples)
    if size >= samples:
        return Draws(np.arange(samples), [samples] * steps, whole=True)
    full, rest = divmod(samples, size)
    a_pass = [size] * full + [rest] * (rest > 0)
    orders: list[np.ndarray] = []
    sizes: list[int] = []
    while len(sizes) < steps:
        wanted = steps - len(sizes)
        if wanted * size >= samples:
            orders.append(rng.permutation(samples))
            sizes += a_pass
        else:
            orders.append(rng.choice(samples, wanted * size, replace=False))
            sizes += [size] * wanted
    return Draws(orders[0] if len(orders) == 1 else np.concatenate(orders), sizes[:steps])
