"""The baselines that everybody expects."""

from __future__ import annotations

from fedlearn.algorithms.fedadagrad import FedAdagrad
from fedlearn.algorithms.fedasync import FedAsync
from fedlearn.algorithms.fedavgm import FedAvgM
from fedlearn.algorithms.fedbuff import FedBuff
from fedlearn.algorithms.feddyn import FedDyn
from fedlearn.algorithms.fedexp import FedExP
from fedlearn.algorithms.fednova import FedNova
from fedlearn.algorithms.fedyogi import FedYogi
from fedlearn.algorithms.mime import Mime
from fedlearn.algorithms.mimelite import MimeLite
from fedlearn.algorithms.moon import Moon

from .row import Row

SCALAR = {"test_a_server_that_says_so_treats_every_coordinate_by_itself":
          "a number goes up beside the difference, which no piece of the model has for itself"}
SPAN = {"test_nothing_to_learn_nothing_sent": "the sum of the step sizes is sent whatever there is to learn"}

ONE = {"test_a_server_that_says_so_treats_every_coordinate_by_itself":
       "an asynchronous server is never called in pieces"}

ROWS = [
    Row(FedAvgM(lr=0.05, momentum=0.5)),
    Row(FedAdagrad(lr=0.05, server_lr=0.1)),
    Row(FedYogi(lr=0.05)),
    Row(FedNova(lr=0.05, server_lr=0.8), exempt=SCALAR | SPAN),
    Row(FedNova(lr=0.05, momentum=0.5, mu=0.3), "Momentum", exempt=SCALAR | SPAN),
    Row(FedDyn(lr=0.05, alpha=0.3)),
    Row(MimeLite(lr=0.05, beta1=0.5)),
    Row(MimeLite(lr=0.005, optimizer="adam", beta1=0.5, beta2=0.9, eps=0.1), "Adam"),
    Row(Mime(lr=0.05, beta1=0.5)),
    Row(Mime(lr=0.005, optimizer="adam", beta1=0.5, beta2=0.9, eps=0.1), "Adam"),
    Row(FedExP(lr=0.05), exempt=SCALAR),
    Row(Moon(lr=0.05)),
    Row(FedAsync(lr=0.05, rho=0.3), exempt=ONE),
    Row(FedAsync(lr=0.05, form="difference", staleness="hinge", a=10, b=4), "Difference", exempt=ONE),
    Row(FedBuff(lr=0.05, server_lr=0.5, momentum=0.5, average_staleness=1), "Momentum"),
]
