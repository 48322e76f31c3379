"""Flat vectors and trees of tensors.

A model is one 1-D vector, the *last* dimension of whatever holds it; any dimension before it is
clients. The reductions here keep that last dimension (with size one), so that the same line serves
one client, [P], and a stack of clients, [clients, P].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

Vec = Tensor
Tree = Any


def dot(a: Vec, b: Vec) -> Tensor:
    """Return the inner product along the model dimension, kept as size one: [..., P] -> [..., 1]."""
    return (a * b).sum(-1, keepdim=True)


def norm(a: Vec) -> Tensor:
    """Return the Euclidean norm along the model dimension, kept as size one: [..., P] -> [..., 1]."""
    return torch.linalg.vector_norm(a, dim=-1, keepdim=True)


def flatten(parts: Iterable[Tensor]) -> Vec:
    """Join tensors into one new vector, in the order given."""
    return torch.cat([part.detach().reshape(-1) for part in parts])


def views(x: Vec, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Cut a vector [P] into views of the given shapes, in order; nothing is copied."""
    sizes = [shape.numel() for shape in shapes]
    return [part.view(shape) for part, shape in zip(x.split(sizes), shapes, strict=True)]


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the named parameters that are trained, in the order in which they are flattened."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def load(model: nn.Module, x: Vec) -> None:
    """Copy a vector [P] into the trainable parameters of a model."""
    parameters = [p for _, p in trainable(model)]
    with torch.no_grad():
        for p, part in zip(parameters, views(x, [p.shape for p in parameters]), strict=True):
            p.copy_(part)


def digest(tensors: Mapping[str, Tensor] | Tensor) -> str:
    """Return the SHA-256 of a tensor, or of named tensors in the order of their names.

    Names, dtypes and shapes are part of it, so two different states never share a digest by
    having equal bytes.
    """
    if isinstance(tensors, Tensor):
        tensors = {"": tensors}
    h = sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        h.update(f"{name}|{t.dtype}|{tuple(t.shape)}|".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()


def tree_map(f: Callable[..., Any], *trees: Tree) -> Tree:
    """Apply ``f`` to the tensors that stand at the same place of trees of one structure.

    A tree is a tensor, or a (named) tuple, list or dict of trees; ``()`` means no state. Anything else, a number
    say, is the same for all and stays as it is.
    """
    first = trees[0]
    if isinstance(first, Tensor):
        return f(*trees)
    if not isinstance(first, Mapping | tuple | list):
        return first
    if isinstance(first, Mapping):
        return {k: tree_map(f, *(t[k] for t in trees)) for k in first}
    children = [tree_map(f, *c) for c in zip(*trees, strict=True)]
    if hasattr(first, "_fields"):
        return type(first)(*children)
    return type(first)(children)


def tree_flat(tree: Tree, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of a tree by their dotted path, e.g. ``{"x": ..., "momentum.0": ...}``.

    A tree that is a single tensor has the path ``"."``; a tree without tensors gives ``{}``.
    """
    if isinstance(tree, Tensor):
        return {prefix or ".": tree}
    if isinstance(tree, Mapping):
        pairs: Iterable[tuple[str, Tree]] = ((str(k), v) for k, v in tree.items())
    elif hasattr(tree, "_fields"):
        pairs = zip(tree._fields, tree, strict=True)
    else:
        pairs = ((str(i), v) for i, v in enumerate(tree))
    flat: dict[str, Tensor] = {}
    for name, child in pairs:
        flat |= tree_flat(child, f"{prefix}.{name}" if prefix else name)
    return flat


def tree_like(template: Tree, flat: Mapping[str, Tensor]) -> Tree:
    """Rebuild a tree of the structure of ``template`` from what ``tree_flat`` returned.

    Raises:
        KeyError: if a tensor is missing.
    """
    paths = iter(tree_flat(template))
    return tree_map(lambda _: flat[next(paths)], template)
