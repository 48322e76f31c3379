"""The algorithms of the foundation."""

from __future__ import annotations

from fedlearn.algorithms.dsgd import DSGD
from fedlearn.algorithms.fedadam import FedAdam
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedbuff import FedBuff
from fedlearn.algorithms.fedprox import FedProx
from fedlearn.algorithms.gradient_coding import GradientCoding
from fedlearn.algorithms.minibatch_sgd import MinibatchSGD
from fedlearn.algorithms.scaffold import Scaffold

from .row import Row

ROWS = [
    Row(FedAvg(lr=0.05, server_lr=1.5)),
    Row(MinibatchSGD(lr=0.05, server_lr=1.5)),
    Row(FedProx(lr=0.05, mu=0.3, server_lr=1.5)),
    Row(Scaffold(lr=0.05, option="I"), "I"),
    Row(Scaffold(lr=0.05, option="II"), "II"),
    Row(FedAdam(lr=0.05)),
    Row(FedBuff(lr=0.05, max_staleness=3)),
    Row(GradientCoding(lr=0.05, decoding="fixed", straggler_probability=0.1), exempt={
        "test_a_client_s_model_is_at_first_the_broadcast_one": "coded algorithms have no local iterates to average"}),
    Row(DSGD(lr=0.05)),
]
