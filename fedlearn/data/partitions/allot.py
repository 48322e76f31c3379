"""What the partitions share: refusing impossible requests, keeping the minimum, dealing samples out."""

from __future__ import annotations

import numpy as np

from ...errors import ConfigError, DataError
from ..raw import RawData


def require_clients(raw: RawData, clients: int | None, least: int) -> int:
    """Return the number of clients if it can be served with ``least`` samples each.

    Raises:
        ConfigError: with the arithmetic, if it cannot, or if no number was given.
    """
    if least < 1:
        raise ConfigError("min_samples", least, "a whole number >= 1",
                          "It is the smallest number of samples per client.")
    if clients is None:
        raise ConfigError("clients", None, "a whole number >= 1",
                          "Only heterogeneity=natural takes the number of clients from the data set.")
    most = raw.samples // least
    if not 1 <= clients <= most:
        raise ConfigError("clients", clients, f"1 to {most}",
                          f"{clients} clients x at least {least} sample(s) = {clients * least}; there are "
                          f"{raw.samples} training samples.")
    return clients


def class_labels(raw: RawData, level: str) -> np.ndarray:
    """Return the training labels, int64 [n].

    Raises:
        DataError: if they are not one class per sample, from 0 to classes - 1.
    """
    y = raw.train_y.numpy()
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise DataError(f"heterogeneity={level} splits by class and needs one class per sample; found labels "
                        f"of shape {list(y.shape)} and type {y.dtype}; use iid, quantity or natural.")
    if y.min() < 0 or y.max() >= raw.classes:
        raise DataError(f"labels: found {y.min()} to {y.max()}; allowed: 0 to {raw.classes - 1} "
                        f"({raw.classes} classes).")
    return y.astype(np.int64)


def apportion(shares: np.ndarray, total: int | np.ndarray) -> np.ndarray:
    """Return whole numbers in proportion to ``shares`` [..., m], each row with the sum ``total`` [...].

    Cumulative rounding: no number is off by more than one, and none is negative.
    """
    ends = np.cumsum(shares, axis=-1)
    ends = np.rint(ends / ends[..., -1:] * np.asarray(total)[..., None]).astype(np.int64)
    return np.diff(ends, axis=-1, prepend=0)


def keep_least(counts: np.ndarray, least: int, own_classes_only: bool = False) -> np.ndarray:
    """Move samples from the largest clients until every client has ``least``.

    ``counts`` int64 [clients, classes] is the number of samples per client and class; needy clients
    are served in the order of their ids, from the largest client's largest class. With
    ``own_classes_only`` a client takes only classes that it has, and leaves one sample of each.

    Raises:
        DataError: if no such move is left (never without ``own_classes_only``, as long as there
            are clients x ``least`` samples).
    """
    counts = counts.copy()
    sizes = counts.sum(axis=1)
    spare = int(own_classes_only)
    for needy in np.flatnonzero(sizes < least):
        wanted = counts[needy] > 0 if own_classes_only else np.ones(counts.shape[1], dtype=bool)
        while sizes[needy] < least:  # every turn moves at least one sample
            offers = np.where(wanted, counts - spare, 0).max(axis=1)
            offers[sizes <= least] = 0
            if offers.max() < 1:
                raise DataError(f"client {needy} gets {sizes[needy]} samples of its classes "
                                f"{np.flatnonzero(wanted).tolist()}, and no other client can spare one; at "
                                f"least {least} asked; ask for fewer clients, more classes per client, or a "
                                "smaller minimum.")
            giver = int(np.argmax(np.where(offers > 0, sizes, -1)))
            c = int(np.argmax(np.where(wanted, counts[giver], -1)))
            surplus = (sizes[giver] - least + 1) // 2  # half of it, not to impoverish the giver
            moved = min(least - sizes[needy], surplus, counts[giver, c] - spare)
            counts[giver, c] -= moved
            counts[needy, c] += moved
            sizes[giver] -= moved
            sizes[needy] += moved
    return counts


def deal(labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Deal the samples out at random: ``counts[m, c]`` of class c to client m; returns their indices.

    ``labels`` is int64 [n]; the columns of ``counts`` must sum to the samples of each class.
    """
    clients, classes = counts.shape
    shuffled = rng.permutation(len(labels))
    index = shuffled[np.argsort(labels[shuffled], kind="stable")]  # by class, at random within each
    owner = np.repeat(np.tile(np.arange(clients), classes), counts.T.ravel())
    index = index[np.argsort(owner, kind="stable")]
    return np.split(index, np.cumsum(counts.sum(axis=1))[:-1])
