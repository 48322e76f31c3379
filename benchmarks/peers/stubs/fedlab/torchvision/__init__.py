"""Stands in for torchvision, which FedLab imports for data sets that the benchmark does not use."""

from types import SimpleNamespace

datasets = SimpleNamespace()
transforms = SimpleNamespace()
