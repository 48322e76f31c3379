"""Who holds whose data: each machine writes its own clients' samples, and tells the others only how many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import DataError
from .federation import Federation, look
from .held import TEST, HeldStore
from .store import ClientStore, as_store, save_array


def hold(folder: str | Path, clients: Mapping[int, tuple[Any, Any]]) -> dict[str, Any]:
    """Write the samples of the clients that a machine holds, client -> (features, labels), to its folder.

    Return what the others may know, as ``federation`` takes it and JSON can hold it.

    Raises:
        DataError: if a client has no data, or samples that do not look like the others', naming it.
    """
    holds = sorted(int(m) for m in clients)
    try:
        store = ClientStore.from_clients([clients[m] for m in holds])
    except DataError as error:
        raise DataError(f"of the clients {holds[:5]}, ..., counted from 0 in this order: {error}") from None
    sizes = np.zeros(max(holds) + 1, dtype=np.int64)
    sizes[holds] = store.sizes
    held = HeldStore(store.features, store.labels, sizes, holds)
    held.save(folder)
    return {"sizes": {str(m): int(sizes[m]) for m in holds}, "features": held.looks[0], "labels": held.looks[1]}


def federation(announced: Sequence[Mapping[str, Any]], classes: int, class_names: Sequence[str] | None = None
               ) -> Federation:
    """Return the federation of machines that announced what ``hold`` returned to them.

    Raises:
        DataError: if a client is held twice or by nobody, or samples look different on two machines.
    """
    sizes: dict[int, int] = {}
    for i, one in enumerate(announced):
        for name in ("features", "labels"):
            if look(one[name]) != look(announced[0][name]):
                raise DataError(f"machine {i}: found {name} of {one[name]}; allowed: {announced[0][name]}, as "
                                "machine 0 has them.")
        for client, size in one["sizes"].items():
            if int(client) in sizes:
                raise DataError(f"client {client}: found on machine {i} and on one before it; allowed: on one.")
            sizes[int(client)] = int(size)
    if missing := sorted(set(range(len(sizes))) - set(sizes)):
        raise DataError(f"client {missing[0]}: found on no machine, though there are {len(sizes)} clients; allowed: "
                        "clients that are numbered from 0 without a gap.")
    return Federation([sizes[m] for m in range(len(sizes))], look(announced[0]["features"]),
                      look(announced[0]["labels"]), classes, class_names)


def deal(clients: Any, machines: int, out: Path, classes: int, class_names: Sequence[str] | None = None,
         test: tuple[Tensor, Tensor] | None = None) -> list[list[int]]:
    """Split a store over machines: ``out``/1, ``out``/2, ... for each of them, ``out``/coordinator with the test set.

    Machine i of n holds the clients i - 1, i - 1 + n, i - 1 + 2n, ... Return the clients of each.

    Raises:
        DataError: if there are fewer clients than machines, or the folder is not empty.
    """
    store = as_store(clients)
    if machines > len(store):
        raise DataError(f"machines: found {machines} for {len(store)} clients; allowed: 1 to {len(store)}.")
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: found a folder that is not empty; allowed: a new one, so that no old data stays in "
                        "it.")
    parts = [list(range(i, len(store), machines)) for i in range(machines)]
    announced = [hold(out / str(i), {m: store.client(m) for m in part}) for i, part in enumerate(parts, 1)]
    known = federation(announced, classes, class_names)
    for folder in (*(out / str(i) for i in range(1, machines + 1)), out / "coordinator"):
        known.write(folder)
    if test is not None:
        for name, array in zip(TEST, test, strict=True):
            save_array(out / "coordinator" / name, array.numpy())
    return parts
