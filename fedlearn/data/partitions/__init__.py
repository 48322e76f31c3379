"""Heterogeneity levels: how the samples of one data set are split over clients, one file each.

Each is a frozen dataclass with ``split(raw, clients, rng, least) -> ClientStore``. All keep at
least ``least`` samples per client, use every training sample exactly once, and depend on nothing
but their arguments and the generator.
"""

from .concept import Concept
from .dirichlet import Dirichlet
from .feature import Feature
from .iid import IID
from .natural import Natural
from .quantity import Quantity
from .shards import Shards

__all__ = ["IID", "Concept", "Dirichlet", "Feature", "Natural", "Quantity", "Shards"]
