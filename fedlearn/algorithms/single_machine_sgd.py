"""Single-machine SGD: K R steps on one client, and no communication at all.

The baseline of B. Woodworth, B. Bullins, O. Shamir, N. Srebro, "The Min-Max Complexity of Distributed Stochastic Convex
Optimization with Intermittent Communication", COLT 2021: what one of the M machines can do by itself in the time.

    x <- x - eta g_m(x; z_t),   t = 0..KR-1,   always the same m

======  ===========  =======  ===================================================================
symbol  field        default  where the default comes from
======  ===========  =======  ===================================================================
eta     lr           0.1      as FedAvg here
eta_g   server_lr    1.0      1 is plain SGD; there as in FedAvg
m       (sampling)            sampling.client of sampling=one, which it needs
======  ===========  =======  ===================================================================

It is FedAvg with one and the same client in every round, so that K steps lie between two evaluations. The machine keeps
the model by itself: nothing travels, and no bytes are counted. sampling=one does the same for other algorithms: with
local_acsa it is accelerated SGD on a single machine.

Deviations: none. Where clients differ it minimises F_m, not F.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .fedavg import FedAvg


@dataclass(frozen=True)
class SingleMachineSGD(FedAvg):
    """SGD on one client."""

    coordinatewise: ClassVar[bool] = True
    alone: ClassVar[bool] = True
