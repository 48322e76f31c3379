"""The state of a torch optimiser as a tree of tensors, and as two tensors of bytes for servers and for the disk."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..contracts import Tree

ALIGNED = 16    # bytes; a part of the bytes can be viewed as any dtype from there
ROOM = 256      # bytes more for numbers that grow longer


class Scalar(NamedTuple):
    """A tensor without dimensions, a step counter say: the same for all clients of a stack."""

    value: float
    dtype: torch.dtype


class Packed(NamedTuple):
    """A whole state: ``form`` [n] is JSON with everything but the tensors, whose bytes are ``data`` [m]; on the CPU."""

    form: Tensor
    data: Tensor


def walk(f: Callable[[Any], Any], value: Any) -> Any:
    """Apply ``f`` to all that is no container, and return the same containers of the results."""
    if isinstance(value, dict):
        return {name: walk(f, v) for name, v in value.items()}
    if isinstance(value, deque):
        return deque((walk(f, v) for v in value), value.maxlen)
    if isinstance(value, Scalar) or not isinstance(value, list | tuple):
        return f(value)
    return type(value)(walk(f, v) for v in value)


def hold(value: Any) -> Any:
    """Return a state of a stack without tensors that have no dimensions: they could not be cut."""
    return walk(lambda v: Scalar(v.item(), v.dtype) if isinstance(v, Tensor) and not v.dim() else v, value)


def give(value: Any) -> Any:
    """Undo ``hold``."""
    return walk(lambda v: torch.tensor(v.value, dtype=v.dtype) if isinstance(v, Scalar) else v, value)


def blank(form: int = 0, data: int = 0) -> Packed:
    """Return the bytes of no state, filled up to so many."""
    return Packed(torch.full((form,), ord(" "), dtype=torch.uint8), torch.zeros(data, dtype=torch.uint8))


def pack(state: Tree, like: Packed | None = None) -> Packed:
    """Return a state as bytes, filled up to the size of ``like``.

    Raises:
        TypeError: if it holds something else than tensors, dtypes, numbers, texts and containers of them.
        ValueError: if it is longer than ``like``.
    """
    parts: list[Tensor] = []
    form = torch.frombuffer(bytearray(json.dumps(_plain(state, parts)).encode()), dtype=torch.uint8)
    data = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.uint8)
    if like is None:
        return Packed(form, data)
    if len(form) > len(like.form) or len(data) != len(like.data):
        raise ValueError("the state of this optimiser changes its size")
    return Packed(torch.cat([form, form.new_full((len(like.form) - len(form),), ord(" "))]), data)


def unpack(packed: Packed, device: torch.device | str = "cpu") -> Tree:
    """Return the state, of tensors of its own; {} of no state. What was not on the CPU goes to a device."""
    text = bytes(packed.form.numpy()).strip()
    return _whole(json.loads(text), packed.data, device) if text else {}


def _plain(value: Any, parts: list[Tensor]) -> Any:
    """Return a value as JSON can hold it; the bytes of its tensors are appended to ``parts``."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        start = sum(map(len, parts))
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        parts.append(torch.cat([data, data.new_zeros(-len(data) % ALIGNED)]))
        dtype = str(value.dtype).removeprefix("torch.")
        return {"tensor": [start, len(data), dtype, list(value.shape), value.device.type != "cpu"]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, dict):
        return {"dict": [[_plain(k, parts), _plain(v, parts)] for k, v in value.items()]}
    if isinstance(value, deque):
        return {"deque": [value.maxlen, [_plain(v, parts) for v in value]]}
    if isinstance(value, tuple):
        return {"tuple": [_plain(v, parts) for v in value]}
    if isinstance(value, list):
        return [_plain(v, parts) for v in value]
    raise TypeError(f"it keeps a {type(value).__name__}")


def _whole(value: Any, data: Tensor, device: torch.device | str) -> Any:
    """Undo ``_plain``."""
    if isinstance(value, list):
        return [_whole(v, data, device) for v in value]
    if not isinstance(value, dict):
        return value
    (kind, of), = value.items()
    if kind == "tensor":
        start, length, dtype, shape, away = of
        whole = data[start:start + length].clone().view(getattr(torch, dtype)).view(shape)
        return whole.to(device) if away else whole
    if kind == "dtype":
        return getattr(torch, of)
    if kind == "dict":
        return {_whole(k, data, device): _whole(v, data, device) for k, v in of}
    if kind == "deque":
        return deque((_whole(v, data, device) for v in of[1]), of[0])
    return tuple(_whole(v, data, device) for v in of)
