"""A row of the list of algorithms that the contract's tests are crossed with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """An algorithm, what tells it from others of its class, and by test the reason why that one is not for it."""

    algorithm: Any
    label: str = ""
    exempt: Mapping[str, str] = field(default_factory=dict)
