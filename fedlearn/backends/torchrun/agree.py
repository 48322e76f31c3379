"""Whether ranks that composed their setups apart, under torchrun, composed the same one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...work import Setup

SAMPLES = 4096  # entries of an array that are looked at


def fingerprint(setup: Setup) -> str:
    """Return a digest of a setup that is equal wherever the same code composed it from the same data.

    Large arrays are sampled. Paths do not count: every host may keep its data elsewhere. What has ``common()`` counts
    by what that returns: hosts may hold data that the others do not.
    """
    h = sha256(f"{sys.version_info[:2]} {torch.__version__}".encode())
    _feed(h, replace(setup, states=None), set())
    return h.hexdigest()


def _feed(h: Any, thing: Any, above: set[int]) -> None:
    if thing is None or isinstance(thing, bool | int | float | complex | str | bytes | torch.dtype):
        h.update(f"{type(thing).__name__}:{thing!r};".encode())
        return
    if isinstance(thing, Path):
        return
    kind = thing if isinstance(thing, type) else type(thing)
    h.update(f"{kind.__module__}.{kind.__qualname__}(".encode())
    if id(thing) in above or isinstance(thing, type):
        return
    above = above | {id(thing)}
    if isinstance(thing, Tensor):
        thing = thing.detach().cpu().reshape(-1)
        thing = (thing.float() if thing.dtype == torch.bfloat16 else thing).numpy()
    if isinstance(thing, np.ndarray):
        flat = thing.reshape(-1)
        h.update(f"{thing.dtype}{thing.shape}".encode())
        h.update(np.ascontiguousarray(flat[:: max(1, flat.size // SAMPLES)]).tobytes())
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            _feed(h, key, above)
            _feed(h, value, above)
    elif isinstance(thing, Set):
        h.update(",".join(sorted(map(repr, thing))).encode())
    elif isinstance(thing, list | tuple):
        for child in thing:
            _feed(h, child, above)
    elif code := getattr(thing, "__code__", None):
        h.update(thing.__qualname__.encode() + code.co_code)
    elif hasattr(thing, "common"):
        _feed(h, thing.common(), above)
    elif is_dataclass(thing):
        for f in fields(thing):
            h.update(f.name.encode())
            _feed(h, getattr(thing, f.name), above)
    else:
        for name, value in sorted(getattr(thing, "__dict__", {}).items()):
            if not isinstance(getattr(kind, name, None), cached_property):
                h.update(name.encode())
                _feed(h, value, above)
    h.update(b")")
