"""The dense oracle: hand-derived gradients of chains of Linear layers and activations.

    z_l = W_l a_{l-1} + b_l 1',   a_l = f_l(z_l),   a_0 = the mini-batch, [features, samples]
    r_L = dloss/da_L * f_L'(z_L);   r_{l-1} = W_l' r_l * f_{l-1}'(z_{l-1});   dW_l = r_l a_{l-1}',   db_l = r_l 1

Softmax regression, logistic regression and least squares are chains of one layer. Weights are views of the vector x
that is passed, gradients are written straight into views of one flat buffer, activations live in buffers that are
used again: no autograd graph and nothing of the model's size allocated at a step. Hessian-vector products are the
derivative of these lines along v (Pearlmutter, Fast Exact Multiplication by the Hessian, Neural Computation 1994).

One client works on [P], a stack on [clients, P]. **Bits.** Alone, a client's bits depend on its data and draws only.
In a stack too, given that every mini-batch is padded (with weight 0) to the same number of samples, which ``room``
fixes for a whole round: the kernels of batched products choose their code path by the shape of one product, and a
stack of one, for which they would choose another, is computed as a stack of two. That is how BLAS libraries
behave, tested, and not what they promise. Alone and stacked are two oracles: their last bits may differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..contracts import Vec
from .layers import Linear
from .minibatch import ALIGNED, Batch, Batches
from .pointwise import IDENTITY, Loss, Slab
from .spaces import Space, Weights

FULL_BATCH = 1000           # samples at a time in a pass over a client's whole data
# Of a stack's models, gradients and activations. On a CPU larger stacks leave the caches and are slower.
STACK_BYTES = {"cpu": 16 * 2**20, "cuda": 2**30}
STACK = 4                   # clients that a stack may always hold
MANY = 8                    # clients in a stack from which on it is quicker (measured)
LANES = 64                  # entries to which a client's part of a slab is padded
KEPT = 64                   # workspaces for batches of so many different sizes


class Dense:
    """One client or a stack of them; ``size`` is P, ``batches`` brings their mini-batches."""

    stacks = True

    def __init__(self, layers: Sequence[Linear], loss: Loss, batches: Batches, size: int) -> None:
        self.layers, self.criterion, self.batches, self.size = list(layers), loss, batches, size
        self.new = torch.empty(0, dtype=batches.dtype, device=batches.device).new_zeros
        self.spaces: dict[tuple[int, int], Space] = {}
        self.memory: dict[str, Tensor] = {}
        self.bound: Tensor | None = None
        self.copied: Tensor | None = None
        self.weights: list[Weights] = []
        self.clients: Sequence[int] = ()
        self.batch: Batch
        self.rows = self.new(0)
        self.calls = 0
        self.sums: Tensor | None = None
        self.total = self.new(1, 0)     # the losses of each client, by output and sample
        self.totals: dict[tuple[int, int], Tensor] = {}

    def describe(self) -> str:
        """Say what this oracle is, for the run's log."""
        chain = "-".join(str(n) for n in [self.layers[0].inputs, *(layer.outputs for layer in self.layers)])
        return f"dense (hand-derived, {chain})"

    def room(self, batch: int) -> int:
        """Fix the samples that a stack pads every mini-batch to; return how many clients a stack may hold."""
        self.batches.rows = batch
        return max(STACK, STACK_BYTES[self.total.device.type] // self._bytes(batch))

    def pays_to_stack(self, batch: int) -> bool:
        """Say whether a stack of such mini-batches is quicker than one client after another: if many fit."""
        return MANY * self._bytes(batch) <= STACK_BYTES[self.total.device.type]

    def _bytes(self, batch: int) -> int:
        units = self.layers[0].inputs + 4 * sum(layer.outputs for layer in self.layers)
        return self.total.element_size() * (6 * self.size + batch * units)

    def expect(self, clients: Sequence[int], draws: Sequence[Sequence[Any]]) -> None:
        """Gather ahead for clients that will be entered one by one."""
        self.batches.expect(clients, draws)

    def enter(self, clients: Sequence[int], draws: Sequence[Sequence[Any]] | None = None) -> None:
        """Take over the data of one client, or of a stack; known ``draws`` of all steps are gathered ahead."""
        self.clients, self.calls, self.sums = clients, 0, None
        self.batches.enter(clients, draws)
        held = 1 if self.batches.alone else max(2, len(clients))
        if len(self.total) == held:
            self.total.zero_()
        else:
            self.total = self.new(held, 0)
            self.totals.clear()

    @property
    def loss(self) -> Tensor:
        """The sum over the calls of ``grad`` of the mini-batch loss, [clients]."""
        if self.sums is None:
            self.sums = self.total.sum(-1)[:len(self.clients)] if len(self.total) > 1 else self.total.sum(-1)
        return self.sums

    def at(self, draws: Sequence[Tensor]) -> None:
        """Set the mini-batch: an index tensor [batch] into the samples of each client that still works."""
        self.batch = self.batches.at(draws)

    def grad(self, x: Vec) -> Vec:
        """Return the mini-batch gradient at x [..., P]; the buffer is written again by the next call."""
        batch = self.batch
        space, weights = self._space(batch), self._bind(x, batch)
        self._forward(weights, batch, space)
        self._backward(weights, batch, space, self._total(batch))
        self.calls += 1
        self.sums = None
        return space.gradient if space.gradient.dim() == x.dim() else space.gradient.view(x.shape)

    def value(self, x: Vec) -> Tensor:
        """Return the mini-batch loss at x [..., P] as [..., 1]."""
        batch = self.batch
        space = self._space(batch)
        self._forward(self._bind(x, batch), batch, space)
        return self._losses(batch, space)[:batch.clients].view(*x.shape[:-1], 1)

    def full_grad(self, x: Vec) -> Vec:
        """Return the gradient at x [..., P] of the mean loss over all samples of each client."""
        rows = x.reshape(-1, self.size)
        total = self.new(rows.shape)
        for i, batch, space, weights in self._whole(rows):
            self._backward(weights, batch, space, torch.zeros_like(space.r[-1].view))
            total[i] += space.gradient
        return total.view(x.shape)

    def full_value(self, x: Vec) -> Tensor:
        """Return the mean loss over all samples of each client at x [..., P] as [..., 1]."""
        rows = x.reshape(-1, self.size)
        total = self.new(len(rows), 1)
        for i, batch, space, _ in self._whole(rows):
            total[i] += self._losses(batch, space)
        return total.view(*x.shape[:-1], 1)

    def _whole(self, rows: Tensor) -> Iterator[tuple[int, Batch, Space, list[Weights]]]:
        """Yield each client's place and a part of its samples, whose activations at its row are there."""
        for i, client in enumerate(self.clients[:len(rows)]):
            for batch in self.batches.whole(client, FULL_BATCH):
                space, weights = self._space(batch), self._bind(rows[i], batch)
                self._forward(weights, batch, space)
                yield i, batch, space, weights

    def _losses(self, batch: Batch, space: Space) -> Tensor:
        """Return the loss of each client, [clients], from its activations."""
        total = torch.zeros_like(space.r[-1].view)
        self.criterion.first(space.a[-1], batch.target, space.r[-1], space.spare, total)
        return total.sum((-2, -1)).view(-1)

    def hvp(self, x: Vec, v: Vec) -> Vec:
        """Return the mini-batch Hessian at x times v, both [..., P]."""
        batch = self.batch
        space, weights = self._space(batch), self._bind(x, batch)
        self._forward(weights, batch, space)
        change, result = self._rows(v, batch), self.new(1 if batch.alone else max(2, batch.clients), self.size)
        along, into = self._views(change), self._views(result[0] if batch.alone else result)
        # Forward: the change of every z_l and a_l along v.
        a, da = batch.xt, torch.zeros_like(batch.xt)
        inputs, changes = [], []
        for i, (layer, w, dw) in enumerate(zip(self.layers, weights, along, strict=True)):
            inputs.append((a, da))
            dz = dw.W @ a + w.W @ da if i else dw.W @ a
            if dw.b is not None:
                dz = dz + dw.b
            z = space.z[i].view
            a, da = space.a[i].view, dz if layer.activation is IDENTITY else dz * layer.activation.slope(z)
            changes.append(dz)
        self.criterion.first(space.a[-1], batch.target, space.r[-1], space.spare, torch.zeros_like(space.r[-1].view))
        r, dr = space.r[-1].view, self.criterion.second(space.a[-1].view, da, batch.target.weight)
        # Backward: r_l and its change.
        for i in range(len(self.layers) - 1, -1, -1):
            activation, z = self.layers[i].activation, space.z[i].view
            if activation is not IDENTITY:
                slope = activation.slope(z)
                r, dr = r * slope, dr * slope + r * activation.curvature(z) * changes[i]
            a, da = inputs[i]
            into[i].W.copy_(dr @ a.mT + r @ da.mT if i else dr @ a.mT)
            if (b := into[i].b) is not None:
                b.copy_(dr.sum(-1, keepdim=True))
            W = weights[i].W
            r, dr = W.mT @ r, W.mT @ dr + along[i].W.mT @ r
        return result[:batch.clients].view(x.shape)

    def _forward(self, weights: list[Weights], batch: Batch, space: Space) -> None:
        addmm, mm = (torch.addmm, torch.mm) if batch.alone else (torch.baddbmm, torch.bmm)
        a = batch.xt
        for layer, w, z, out in zip(self.layers, weights, space.z, space.a, strict=True):
            if w.b is None:
                mm(w.W, a, out=z.view)
            else:
                addmm(w.b, w.W, a, out=z.view)
            if layer.activation is not IDENTITY:
                layer.activation.apply(z.flat, out.flat)
            a = out.view

    def _backward(self, weights: list[Weights], batch: Batch, space: Space, total: Tensor) -> None:
        mm = torch.mm if batch.alone else torch.bmm
        self.criterion.first(space.a[-1], batch.target, space.r[-1], space.spare, total)
        for i in range(len(self.layers) - 1, -1, -1):
            r, into, activation = space.r[i], space.views[i], self.layers[i].activation
            if activation is not IDENTITY:
                activation.pull(r.flat, space.z[i].flat, space.a[i].flat)
            mm(r.view, space.at[i - 1] if i else batch.x, out=into.W)
            if into.b is not None:
                if batch.alone:
                    mm(r.view, space.ones, out=into.b)
                else:
                    torch.sum(r.view, -1, keepdim=True, out=into.b)
            if (Wt := weights[i].Wt) is not None:
                mm(Wt, r.view, out=space.r[i - 1].view)

    def _bind(self, x: Vec, batch: Batch) -> list[Weights]:
        """Return the views of x; those of the vector of the last call are still known."""
        if x is not self.bound:
            self.bound, self.copied = x, None
            rows = self._rows(x, batch)
            # Alone, a client's bits must not depend on where its vector happens to lie.
            if rows.stride(-1) != 1 or (batch.alone and rows.data_ptr() % ALIGNED):
                self.copied = rows
                rows = torch.empty_like(rows, memory_format=torch.contiguous_format)
            self.rows, self.weights = rows, self._views(rows)
        if self.copied is not None:
            self.rows.copy_(self.copied)
        return self.weights

    def _rows(self, x: Vec, batch: Batch) -> Tensor:
        """Return x as [P] for a client alone, else as [clients, P] with at least two rows."""
        x = x.detach()
        if batch.alone:
            return x if x.dim() == 1 else x.squeeze(0)
        x = x.unsqueeze(0) if x.dim() == 1 else x
        return x.expand(2, -1) if len(x) == 1 else x

    def _views(self, x: Tensor) -> list[Weights]:
        lead, by, start = x.shape[:-1], x.stride()[:-1], x.storage_offset()
        views: list[Weights] = []
        for layer in self.layers:
            out, n, at = layer.outputs, layer.inputs, start + layer.weight
            W = x.as_strided((*lead, out, n), (*by, n, 1), at)
            b = None if layer.bias is None else x.as_strided((*lead, out, 1), (*by, 1, 1), start + layer.bias)
            views.append(Weights(W, b, W.mT if views else None))
        return views

    def _space(self, batch: Batch) -> Space:
        key = 0 if batch.alone else batch.clients, batch.n
        space = self.spaces.get(key)
        if space is None:
            if len(self.spaces) >= KEPT:
                self.spaces.clear()
            space = self.spaces[key] = self._new_space(batch)
        return space

    def _new_space(self, batch: Batch) -> Space:
        clients = 0 if batch.alone else max(2, batch.clients)
        z = [self._slab(f"z{i}", clients, layer.outputs, batch.n) for i, layer in enumerate(self.layers)]
        a = [z[i] if layer.activation is IDENTITY else self._slab(f"a{i}", clients, layer.outputs, batch.n)
             for i, layer in enumerate(self.layers)]
        r = [self._slab(f"r{i}", clients, layer.outputs, batch.n) for i, layer in enumerate(self.layers)]
        gradient = self._take("gradient", max(1, clients) * self.size).view(max(1, clients), self.size)
        lent = gradient[:batch.clients]
        if batch.alone:
            gradient = lent = gradient[0]
        spare = self._slab("spare", clients, self.layers[-1].outputs, batch.n)
        return Space(z, a, [s.view.mT for s in a], r, spare, self.new(batch.n, 1) + 1, lent, self._views(gradient))

    def _total(self, batch: Batch) -> Tensor:
        """Return where this mini-batch's losses are added up: a leading part of ``total``, for any size."""
        key = 0 if batch.alone else batch.clients, batch.n
        if key not in self.totals:
            units, clients = self.layers[-1].outputs, 1 if batch.alone else max(2, batch.clients)
            size = units * batch.n
            if self.total.shape[1] < size:
                self.total = torch.cat([self.total, self.new(len(self.total), size - self.total.shape[1])], 1)
                self.totals.clear()
            part = self.total[:clients, :size].unflatten(-1, (units, batch.n))
            self.totals[key] = part[0] if batch.alone else part
        return self.totals[key]

    def _slab(self, name: str, clients: int, units: int, n: int) -> Slab:
        size = units * n
        if not clients:
            view = self._take(name, size).view(units, n)
            return Slab(view, view)
        padded = -(-size // LANES) * LANES
        flat = self._take(name, clients * padded)
        flat.view(clients, padded)[:, size:].zero_()
        return Slab(flat, flat.view(clients, padded)[:, :size].unflatten(-1, (units, n)))

    def _take(self, name: str, size: int) -> Tensor:
        """Return ``size`` numbers of a buffer that only grows; spaces in the old one go on to use that."""
        if name not in self.memory or self.memory[name].numel() < size:
            self.memory[name] = self.new(size)
        return self.memory[name][:size]
