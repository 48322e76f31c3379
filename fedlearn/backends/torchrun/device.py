"""Where a rank works: on the CPU with gloo, or on a GPU of its own with NCCL.

A GPU is used where every rank of a machine has its own and the task can go there: a task that can
has ``to(device) -> Task``, which returns a copy whose model, data and oracles live there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ...contracts import Task
from ...errors import ConfigError, one_of
from ...work import Setup, Work

DEVICES = ("auto", "cpu", "cuda")


def check_device(device: str) -> None:
    """Check the name of a device.

    Raises:
        ConfigError: naming backend.device.
    """
    if device not in DEVICES:
        raise ConfigError("backend.device", device, one_of(DEVICES, device))


def choose(device: str, task: Task, local_rank: int, local_world: int) -> str:
    """Return the torch device of a rank, of ``local_world`` ranks on its machine.

    Raises:
        ConfigError: if "cuda" is asked for and cannot be had.
    """
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if gpus >= local_world and hasattr(task, "to"):
        return f"cuda:{local_rank}"
    if device == "cuda":
        why = (f"This machine has {gpus} GPUs for {local_world} ranks." if gpus < local_world
               else f"{type(task).__name__} has no method to(device).")
        raise ConfigError("backend.device", device, "auto or cpu here", why)
    return "cpu"


def words(device: str, local_world: int) -> str:
    """Say what ``choose`` does on this machine."""
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cuda":
        return "NCCL with a GPU each"
    return "NCCL with a GPU each if the task can, else gloo on CPU" if gpus >= local_world else "gloo on CPU"


def placed(setup: Setup, device: str) -> Setup:
    """Return the setup with its task on a device."""
    task: Any = setup.task
    return setup if device == "cpu" else replace(setup, task=task.to(device))


def moved(work: Work, device: str) -> Work:
    """Return the work with its vectors on a device."""
    if device == "cpu":
        return work
    return replace(work, broadcast={name: v.to(device) for name, v in work.broadcast.items()})
