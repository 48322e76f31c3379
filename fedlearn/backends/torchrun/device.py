"""Where a rank works: on the CPU or on a GPU.

Ranks of one group may have different devices: NCCL adds their sums up where each has a GPU of its own, gloo otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from socket import gethostname
from typing import Any

import torch
import torch.distributed as dist

from ...contracts import Task
from ...errors import ConfigError
from ..device import KEY, WORDS, Device

ENTRY = r"cpu|cuda:(0|[1-9][0-9]{0,3})"
EXAMPLE = "As in [cuda:0,cuda:1,cpu]; cuda:N is the N-th GPU of its machine, counted from 0."


def choose(devices: str | Sequence[str], task: Task, rank: int, local_rank: int, local_world: int) -> str:
    """Return the torch device of a rank, the ``local_rank``-th of ``local_world`` ranks on its machine.

    Raises:
        ConfigError: if a GPU is asked for and cannot be had.
    """
    entry = devices if isinstance(devices, str) else devices[rank]
    if entry == "cpu":
        return entry
    gpus, able = torch.cuda.device_count(), hasattr(task, "to")
    if entry in WORDS:
        here, needed, enough = f"cuda:{local_rank}", f"{local_world} ranks", gpus >= local_world
    else:
        here, needed, enough = entry, f"rank {rank}", int(entry.removeprefix("cuda:")) < gpus
    if enough and able:
        return here
    if entry == "auto":
        return "cpu"
    why = (f"{type(task).__name__} has no method to(device)." if enough else
           f"The machine {gethostname()} has {gpus} GPU{'s' * (gpus != 1)} for {needed}.")
    allowed = "auto or cpu here" if entry in WORDS else " or ".join(
        [f"cuda:{n}" for n in range(gpus if able else 0)] + ["cpu"]) + f" as the entry of rank {rank}"
    raise ConfigError(KEY, entry, allowed, why)


def nccl(store: Any, rank: int, world: int, seconds: float) -> Any:
    """Return an NCCL group, which connects at its first sum; waiting longer than ``seconds`` ends the process."""
    options: Any = dist.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=seconds)
    return dist.ProcessGroupNCCL(dist.PrefixStore("nccl", store), rank, world, options)


def one_each(devices: Sequence[Device]) -> bool:
    """Return whether each of these is a GPU that no other rank has: NCCL takes no two ranks on one."""
    return all(device.gpu for device in devices) and len({device.gpu for device in devices}) == len(devices)
