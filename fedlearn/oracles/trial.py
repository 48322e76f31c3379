"""A trial of what an algorithm asks of an oracle, before the first round: second derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..contracts import ClientOracle, Vec
from ..errors import ConfigError


def try_hessian(oracle: ClientOracle, x: Vec, draws: Sequence[Any], name: str) -> None:
    """Make one Hessian-vector product at ``x`` [P] on the first mini-batch of client 0, for the algorithm ``name``.

    Raises:
        ConfigError: if the model has no second derivatives, with what the operation concerned says.
    """
    oracle.enter([0], [draws])
    oracle.at([draws[0]])
    try:
        oracle.hvp(x, torch.ones_like(x))
    except (RuntimeError, NotImplementedError, AttributeError) as e:
        says = (str(e).splitlines() or [type(e).__name__])[0].rstrip(".")
        raise ConfigError("algorithm", name, "one without Hessian-vector products for this model",
                          f"It cannot be differentiated twice: {says}.") from e
