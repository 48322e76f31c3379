"""Second-order steps, online and bandit feedback, and agents that may leave."""

from __future__ import annotations

from fedlearn.algorithms.ada_gd import AdaGD
from fedlearn.algorithms.fedosgd import FedOSGD
from fedlearn.algorithms.fedposgd import FedPOSGD
from fedlearn.algorithms.fedsn import FedSN
from fedlearn.algorithms.fedsn_lite import FedSNLite

from .row import Row

BY_COORDINATE = "test_a_server_that_says_so_treats_every_coordinate_by_itself"
FEW = "that problem has the same few directions in every round; that it learns is tested in a run"
SCALARS = {BY_COORDINATE: "its server keeps scalars beside the model"}
PLAYED = {**SCALARS, "test_nothing_to_learn_nothing_sent": "it sends the loss that it played around the optimum"}

ROWS = [
    Row(FedSNLite(lr=0.05, server_lr=0.7)),
    Row(FedSNLite(lr=0.1, tail=True), "Tail"),
    Row(FedSN(lr=0.1, radius=3.0, tail=True), exempt={
        **SCALARS,
        "test_server_update_is_pure": "its model moves when the value there is known; pure by its family's own test",
        "test_server_factor_multiplies_the_server_step_size": "the same; by its family's own test"}),
    Row(FedOSGD(lr=0.05, server_lr=1.5), exempt={**PLAYED, "test_learns": FEW}),
    Row(FedOSGD(lr=0.05, feedback="first_order", radius=100.0), "FirstOrder", exempt=SCALARS),
    Row(FedPOSGD(lr=0.001, delta=0.5, radius=100.0), exempt={
        **PLAYED, "test_learns": FEW}),
    Row(AdaGD(lr=0.1, eps=1e-6), exempt={BY_COORDINATE: "the projection needs the whole gradients"}),
]
