"""Momentum and adaptive steps on the clients, and their minibatch counterparts."""

from __future__ import annotations

from fedlearn.algorithms.diloco import DiLoCo
from fedlearn.algorithms.local_adam import LocalAdam
from fedlearn.algorithms.local_sgdm import LocalSGDM
from fedlearn.algorithms.minibatch_adam import MinibatchAdam
from fedlearn.algorithms.minibatch_sgdm import MinibatchSGDM

from .row import Row

ROWS = [
    Row(LocalSGDM(lr=0.05, server_lr=1.5, beta1=0.5, rho=1.0)),
    Row(LocalSGDM(lr=0.05, rho=0.7, clip="norm"), "Norm"),
    Row(LocalAdam(lr=0.05, rho=1.0, lam=0.1)),
    Row(MinibatchSGDM(lr=0.1, beta1=0.5, rho=1.0)),
    Row(MinibatchSGDM(lr=0.1, rho=0.05, clip="norm"), "Norm", exempt={
        "test_a_server_that_says_so_treats_every_coordinate_by_itself": "the norm is that of the whole gradient",
        "test_learns": "steps of norm 0.005 are too short for it"}),
    Row(MinibatchAdam(lr=0.05, rho=1.0, lam=0.1)),
    Row(DiLoCo(lr=0.02, server_lr=0.5, momentum=0.5), exempt={
        "test_nothing_to_learn_nothing_sent": "weight decay moves a model whose gradient is zero"}),
    Row(DiLoCo(lr=0.02, weight_decay=0.0), "Plain"),
]
