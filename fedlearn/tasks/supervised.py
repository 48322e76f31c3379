"""A supervised task: any ``nn.Module``, a loss, the clients' samples and a test set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..contracts import ClientOracle, LocalPlan, Vec
from ..data.store import ClientStore, as_store
from ..errors import ConfigError, DataError, one_of
from ..models.check import check_model
from ..oracles.choose import Problem, choose
from ..policies.local_work import batches
from ..vectors import flatten, load, trainable

TEST_BATCH = 1000           # test samples at a time
TEST_BATCH_KERNELS = 100    # with convolutions, on a CPU: their outputs are larger than the samples and leave the cache


def cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of logits [..., classes] and class indices [...]."""
    return F.cross_entropy(out.reshape(-1, out.shape[-1]), y.reshape(-1))


def binary_cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    """Mean logistic loss of one logit per sample and labels in {0, 1}."""
    return F.binary_cross_entropy_with_logits(out.reshape(-1), y.reshape(-1).to(out.dtype))


def squared(out: Tensor, y: Tensor) -> Tensor:
    """Half the mean squared error."""
    return 0.5 * F.mse_loss(out.reshape(y.shape), y)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy, "binary_cross_entropy": binary_cross_entropy, "squared": squared}


class SupervisedTask:
    """Minimise the mean loss of ``model`` over the clients' samples.

    ``loss`` is a name from ``LOSSES`` or a callable (output, target) -> mean loss. ``train`` is a
    store, or a list with one (features, labels) pair or one ``torch.utils.data.Dataset`` for each
    client. ``test`` is (features, labels), or None. The model's present weights are the initial
    ones; the task keeps the module itself and never trains layers with ``requires_grad=False``.

    Raises:
        ModelError: if the model cannot be averaged (running statistics), naming the layer.
        DataError: if a client has no data, naming it.
    """

    def __init__(self, model: nn.Module, loss: str | Callable[[Tensor, Tensor], Tensor], train: Any,
                 test: tuple[Any, Any] | None = None, dtype: torch.dtype = torch.float32) -> None:
        check_model(model)
        if isinstance(loss, str) and loss not in LOSSES:
            raise ConfigError("loss", loss, f"{one_of(LOSSES, loss)}, or a callable")
        self.model = model.to(dtype)
        self.loss = loss
        self.store = as_store(train)
        self.test = None if test is None else (torch.as_tensor(test[0]), torch.as_tensor(test[1]))
        if self.test is not None and not 0 < len(self.test[0]) == len(self.test[1]):
            raise DataError(f"test set: found {len(self.test[0])} features and {len(self.test[1])} labels; allowed: "
                            "as many labels as features, at least one, or no test set at all.")
        self.dtype = dtype
        self.sizes: np.ndarray = self.store.sizes
        self.x0 = flatten(p for _, p in trainable(self.model))

    @property
    def criterion(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss as a function (output, target) -> mean loss."""
        return LOSSES[self.loss] if isinstance(self.loss, str) else self.loss

    def initial(self, seed: int) -> Vec:
        """Return the weights that the model came with, [P]."""
        return self.x0.clone()

    def oracle(self, kind: str = "auto", precision: str = "float32") -> ClientOracle:
        """Return an oracle on a copy of the model, so that workers of one process do not meet.

        ``precision`` bf16 computes in bfloat16 from float32 weights; float32 means the model's own dtype.

        Raises:
            ConfigError: for an unknown kind, and for one that does not fit, saying why.
        """
        return choose(kind, Problem(self.model, self.loss, self.criterion, self.store, self.prepare, precision))

    def draws(self, client: int, rng: np.random.Generator, local: LocalPlan) -> Sequence[Any]:
        """Return K index tensors: slices of the client's shuffled samples."""
        return batches(rng, int(self.sizes[client]), local)

    def regroup(self, groups: Sequence[Sequence[int]]) -> SupervisedTask:
        """Return the task in which client i holds the samples of the clients ``groups[i]``."""
        clients = [[self.store.client(m) for m in group] for group in groups]
        joined = [(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])) for parts in clients]
        return SupervisedTask(self.model, self.loss, joined, self.test, self.dtype)

    def prepare(self, x: Tensor) -> Tensor:
        """Bring features to the model's device, real ones to its dtype; integers (tokens) stay integers."""
        return x.to(self.x0.device, self.dtype if x.is_floating_point() else x.dtype)

    def to(self, device: torch.device | str) -> SupervisedTask:
        """Return a copy whose model, samples and oracles live on a device."""
        there = copy(self)
        there.model = deepcopy(self.model).to(device)
        there.x0 = self.x0.to(device)
        there.store = self.store.to(device) if isinstance(self.store, ClientStore) else self.store
        there.test = None if self.test is None else (self.test[0].to(device), self.test[1].to(device))
        return there

    def evaluate(self, x: Vec) -> dict[str, float]:
        """Return ``loss`` and, for class labels, ``accuracy`` on the test set ({} without one)."""
        if self.test is None:
            return {}
        load(self.model, x)
        was_training = self.model.training
        self.model.eval()
        kernels = self.x0.is_cpu and any(p.dim() > 2 for p in self.model.parameters())
        piece = TEST_BATCH_KERNELS if kernels else TEST_BATCH
        total = hits = count = 0.0
        classes = self.loss != "squared" and not self.test[1].is_floating_point()
        with torch.no_grad():
            for xs, ys in zip(self.test[0].split(piece), self.test[1].split(piece), strict=True):
                out = self.model(self.prepare(xs))
                total += float(self.criterion(out, ys)) * len(ys)
                if classes:
                    guess = (out.squeeze(-1) > 0) if self.loss == "binary_cross_entropy" else out.argmax(-1)
                    hits += float((guess == ys).sum())
                    count += ys.numel()
        self.model.train(was_training)
        metrics = {"loss": total / len(self.test[1])} | ({"accuracy": hits / count} if classes else {})
        return metrics | {"samples": len(self.test[1])}

    def sample_losses(self, client: int, x: Vec) -> Tensor:
        """Return the loss of each of a client's samples, [n], at the weights x [P], in evaluation mode."""
        load(self.model, x)
        was_training = self.model.training
        self.model.eval()

        def loss(out: Tensor, y: Tensor) -> Tensor:
            return self.criterion(out.unsqueeze(0), y.unsqueeze(0))

        found = []
        with torch.no_grad():
            for index in torch.arange(int(self.sizes[client])).split(TEST_BATCH):
                xs, ys = self.store.batch(client, index)
                found.append(torch.func.vmap(loss)(self.model(self.prepare(xs)), ys.to(self.x0.device)))
        self.model.train(was_training)
        return torch.cat(found)

    def evaluator(self, samples: int | None, rng: np.random.Generator) -> SupervisedTask:
        """Return the task with a model of its own and ``samples`` test samples, drawn without replacement (None: all).

        Raises:
            ConfigError: if there are not so many.
        """
        there = copy(self)
        there.model = deepcopy(self.model)
        if samples is not None:
            count = 0 if self.test is None else len(self.test[0])
            if not 1 <= samples <= count:
                allowed = f"null or 1 to {count}, the samples of the test set" if count else "null without a test set"
                raise ConfigError("evaluate.samples", samples, allowed)
            assert self.test is not None
            index = torch.from_numpy(np.sort(rng.choice(count, samples, replace=False))).to(self.test[0].device)
            there.test = self.test[0][index], self.test[1][index]
        return there

    def named(self, x: Vec) -> dict[str, Tensor]:
        """Return the model's whole state dict at the trainable weights x [P]."""
        load(self.model, x)
        return {name: t.detach().clone() for name, t in self.model.state_dict().items()}
