"""The list of algorithms that the contract's tests are crossed with, one family, one file.

A new algorithm adds one row to its family's file; a new family adds itself here.
"""

from . import accelerated, baselines, foundation, momentum, second_order
from .row import Row

ROWS = [*foundation.ROWS, *baselines.ROWS, *accelerated.ROWS, *momentum.ROWS, *second_order.ROWS]

__all__ = ["ROWS", "Row"]
