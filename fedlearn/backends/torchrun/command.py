"""A command's vectors in words, and the vectors again from these words and the bytes that came with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .bundle import SMALL, Altered

DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)}


def describe(vectors: Mapping[str, Tensor], check: Callable[[Tensor], int]) -> tuple[list[list[Any]], list[Tensor]]:
    """Return the name, dtype, shape and checksum of all vectors, and their bytes; only large ones have a checksum."""
    flat = [v.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for v in vectors.values()]
    words = [[name, str(v.dtype).removeprefix("torch."), list(v.shape),
              check(bare) if bare.numel() > SMALL else None]
             for (name, v), bare in zip(vectors.items(), flat, strict=True)]
    return words, flat


def restore(words: Sequence[Sequence[Any]], small: Tensor, receive: Callable[[Sequence[int]], Sequence[Tensor]],
            check: Callable[[Tensor], int]) -> dict[str, Tensor]:
    """Return the vectors that were described; small ones are among the bytes, ``receive`` gets the large ones.

    Raises:
        Altered: if one is not what was sent.
    """
    kinds = [DTYPES[kind] for _, kind, _, _ in words]
    sizes = [math.prod(shape) * kind.itemsize for kind, (_, _, shape, _) in zip(kinds, words, strict=True)]
    large = iter(receive([size for size in sizes if size > SMALL]))
    vectors, start = {}, 0
    for (name, _, shape, right), kind, size in zip(words, kinds, sizes, strict=True):
        if size <= SMALL:
            part, start = small[start:start + size].clone(), start + size
        else:
            part = next(large)
            if check(part) != right:
                raise Altered(f"the broadcast {name!r}")
        vectors[name] = part.view(kind).view(shape)
    return vectors
