"""Accelerated methods, the single machine, and the two stages."""

from __future__ import annotations

from fedlearn.algorithms.fedac import FedAc
from fedlearn.algorithms.local_acsa import LocalACSA
from fedlearn.algorithms.minibatch_acsa import MinibatchACSA
from fedlearn.algorithms.single_machine_sgd import SingleMachineSGD
from fedlearn.algorithms.two_stage import TwoStage

from .row import Row

STAGE = {"test_a_server_that_says_so_treats_every_coordinate_by_itself":
         "its stage is one number, which no piece of the model has for itself"}

ROWS = [
    Row(MinibatchACSA(lr=0.2, server_lr=0.5)),
    Row(MinibatchACSA(lr=0.2, mu=0.3, server_lr=0.5), "Strongly"),
    Row(FedAc(lr=0.05, mu=0.3), "I"),
    Row(FedAc(variant="II", lr=0.05, mu=0.3, server_lr=0.9), "II"),
    Row(FedAc(variant="II-code", lr=0.05, mu=0.3), "IICode"),
    Row(LocalACSA(lr=0.05)),
    Row(SingleMachineSGD(lr=0.05)),
    Row(TwoStage(lr=0.05, switch="round", at=1000), exempt=STAGE),
    Row(TwoStage(lr=0.05, minibatch_lr=0.2, switch="drift", at=2.0), "Drift", exempt=STAGE),
]
