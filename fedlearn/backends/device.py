"""What workers work on, CPUs and GPUs, and how work gets there.

A task that can go to a GPU has ``to(device) -> Task``, which returns a copy whose model, data and oracles live there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from socket import gethostname
from typing import Any, NamedTuple

import torch

from ..errors import ConfigError, one_of
from ..work import Setup, Work

KEY = "backend.devices"
WORDS = ("auto", "cpu", "cuda")


def check_devices(devices: Any, entry: str, words: str, whom: str, example: str) -> None:
    """Check which devices are asked for: one word for all workers, or a list with an entry for each.

    ``entry`` is the pattern of one, which ``words`` say, too; ``whom`` is what a worker is called, and ``example`` says
    what a list looks like.

    Raises:
        ConfigError: naming backend.devices.
    """
    if isinstance(devices, str):
        if devices not in WORDS:
            raise ConfigError(KEY, devices, f"{one_of(WORDS, devices)}, or a list with one entry per {whom}", example)
        return
    if not isinstance(devices, list | tuple):
        raise ConfigError(KEY, devices, f"{one_of(WORDS)}, or a list with one entry per {whom}", example)
    for i, found in enumerate(devices):
        if not (isinstance(found, str) and re.fullmatch(entry, found)):
            raise ConfigError(KEY, found, f"{words}, as the entry of {whom} {i}", example)


class Device(NamedTuple):
    """A worker's device: how torch calls it, what it is, and what tells a GPU from all others ("" on a CPU)."""

    torch: str
    model: str
    gpu: str

    @classmethod
    def of(cls, device: str) -> Device:
        """Look at one of this machine's devices."""
        if device == "cpu":
            return cls(device, device, "")
        about = torch.cuda.get_device_properties(device)
        return cls(device, about.name, str(getattr(about, "uuid", f"{gethostname()} {device}")))

    def __str__(self) -> str:
        """Say what it is."""
        return f"{self.torch} ({self.model})" if self.gpu else self.torch


def unlike(devices: Sequence[Device]) -> bool:
    """Return whether there are different ones among them: their kernels may differ in the last bits."""
    return len({device.model for device in devices}) > 1


def words(devices: Sequence[Device] | Sequence[str]) -> str:
    """Name the devices of all workers, in their order: "cuda:0 (NVIDIA H100), 2 x cpu"."""
    runs = [(name, len(list(run))) for name, run in groupby(map(str, devices))]
    return ", ".join(name if many == 1 else f"{many} x {name}" for name, many in runs)


def placed(setup: Setup, device: str) -> Setup:
    """Return the setup with its task on a device."""
    if device == "cpu":
        return setup
    torch.cuda.set_device(device)   # streams, and the graphs that are recorded on them, are the current device's
    task: Any = setup.task
    return replace(setup, task=task.to(device))


def moved(work: Work, device: str) -> Work:
    """Return the work with its vectors on a device."""
    if device == "cpu":
        return work
    return replace(work, broadcast={name: v.to(device) for name, v in work.broadcast.items()})
