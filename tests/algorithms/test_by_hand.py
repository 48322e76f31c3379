"""One round (or two) of every algorithm, computed by hand on two 1-D quadratics.

Client 1: F(y) = (y - 1)^2 / 2, gradient y - 1.  Client 2: F(y) = 3 (y + 1)^2 / 2, gradient 3 y + 3.
From x = 0 with eta = 0.1 and K = 2 local SGD goes 0, 0.1, 0.19 and 0, -0.3, -0.51.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import Federation, Quadratic, reply

from fedlearn.algorithms.dsgd import DSGD
from fedlearn.algorithms.fedadam import FedAdam
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedbuff import FedBuff
from fedlearn.algorithms.fedprox import FedProx
from fedlearn.algorithms.gradient_coding import GradientCoding
from fedlearn.algorithms.minibatch_sgd import MinibatchSGD
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.contracts import ArrivalInfo, MixInfo, RoundInfo, ServerAlgorithm


def vec(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def federation(algorithm: ServerAlgorithm) -> Federation:
    return Federation(algorithm, Quadratic(vec(1, 3)[:, None], vec(1, -1)[:, None]), vec(0))


def test_fedavg() -> None:
    assert federation(FedAvg(lr=0.1)).round(2).item() == pytest.approx((0.19 - 0.51) / 2, rel=1e-14)
    assert federation(FedAvg(lr=0.1, server_lr=2)).round(2).item() == pytest.approx(-0.32, rel=1e-14)
    weighted = federation(FedAvg(lr=0.1)).round(2, weights=[3, 1])
    assert weighted.item() == pytest.approx((3 * 0.19 - 0.51) / 4, rel=1e-13)


def test_minibatch_sgd() -> None:
    # The gradients at 0 are -1 and 3, whatever K.
    assert federation(MinibatchSGD(lr=0.1)).round(2).item() == pytest.approx(-0.1, rel=1e-14)
    doubled = federation(MinibatchSGD(lr=0.1, server_lr=2)).round([2, 5])
    assert doubled.item() == pytest.approx(-0.2, rel=1e-14)


def test_fedprox() -> None:
    # mu = 1.  Client 1: 0, 0.1, 0.1 - 0.1 (-0.9 + 0.1) = 0.18.
    #          Client 2: 0, -0.3, -0.3 - 0.1 (2.1 - 0.3) = -0.48.
    assert federation(FedProx(lr=0.1, mu=1)).round(2).item() == pytest.approx((0.18 - 0.48) / 2, rel=1e-14)


def test_scaffold_option_two() -> None:
    run = federation(Scaffold(lr=0.1, option="II"))
    # Round 1: c = c_m = 0.  c_1 = -0.19 / 0.2, c_2 = 0.51 / 0.2, the means of the gradients met.
    assert run.round(2).item() == pytest.approx(-0.16, rel=1e-14)
    assert [c.item() for c in run.states] == pytest.approx([-0.95, 2.55], rel=1e-14)
    assert run.s.c.item() == pytest.approx(0.8, rel=1e-14)
    # Round 2: corrections c - c_m = 1.75 and -1.75.
    #   client 1: -0.16 - 0.1 (-1.16 + 1.75) = -0.219;  -0.219 - 0.1 (-1.219 + 1.75) = -0.2721
    #   client 2: -0.16 - 0.1 (2.52 - 1.75) = -0.237;   -0.237 - 0.1 (2.289 - 1.75) = -0.2909
    assert run.round(2).item() == pytest.approx((-0.2721 - 0.2909) / 2, rel=1e-14)
    means = [(-1.16 - 1.219) / 2, (2.52 + 2.289) / 2]
    assert [c.item() for c in run.states] == pytest.approx(means, rel=1e-14)
    assert run.s.c.item() == pytest.approx(0.6075, rel=1e-14)


def test_scaffold_option_one() -> None:
    run = federation(Scaffold(lr=0.1, option="I"))
    # c_m is the gradient at x: -1 and 3, then, at -0.16, -1.16 and 2.52.
    assert run.round(2).item() == pytest.approx(-0.16, rel=1e-14)
    assert [c.item() for c in run.states] == [-1, 3] and run.s.c.item() == 1
    # Corrections 1 + 1 = 2 and 1 - 3 = -2:  -0.244, -0.3196 and -0.212, -0.2484.
    assert run.round(2).item() == pytest.approx((-0.3196 - 0.2484) / 2, rel=1e-14)
    assert [c.item() for c in run.states] == pytest.approx([-1.16, 2.52], rel=1e-14)


def test_scaffold_with_one_of_two_clients() -> None:
    run = federation(Scaffold(lr=0.1, server_lr=0.5))
    assert run.round(2, cohort=[1]).item() == pytest.approx(-0.255, rel=1e-14)
    assert [c.item() for c in run.states] == pytest.approx([0, 2.55], rel=1e-14)
    assert run.s.c.item() == pytest.approx(1.275, rel=1e-14)


def test_fedadam() -> None:
    # Delta = -0.16; m = 0.5 (-0.16) = -0.08; v = 0.75 * 0.0048 + 0.25 * 0.0256 = 0.01.
    # x = 0.5 * -0.08 / (0.1 + 0.1) = -0.2
    run = federation(FedAdam(lr=0.1, server_lr=0.5, beta1=0.5, beta2=0.75, tau=0.1, v0=0.0048))
    assert run.round(2).item() == pytest.approx(-0.2, rel=1e-14)
    assert [run.s.m.item(), run.s.v.item()] == pytest.approx([-0.08, 0.01], rel=1e-14)


def test_fedbuff() -> None:
    algorithm = FedBuff(lr=0.1, server_lr=0.4, buffer=2, max_staleness=3)
    weights = [algorithm.arrival_weight(ArrivalInfo(0, s, 9)) for s in (0, 3, 4)]
    assert weights == [1, 0.5, 0]
    clients = [Quadratic(vec(1), vec(1)), Quadratic(vec(3), vec(-1))]
    ups = [reply(algorithm, {"x": vec(0)}, (), oracle, 2)[0]["dx"] for oracle in clients]
    mean = {"dx": (weights[0] * ups[0] + weights[1] * ups[1]) / algorithm.buffer}
    s = algorithm.server_update(algorithm.server_init(vec(0)), mean, RoundInfo(0, 1, 2, 2))
    assert s.x.item() == pytest.approx(0.4 * (0.19 - 0.5 * 0.51) / 2, rel=1e-13)
    assert FedBuff(exponent=0).arrival_weight(ArrivalInfo(0, 1000, 2000)) == 1


def test_dsgd() -> None:
    algorithm, clients = DSGD(lr=0.1), [Quadratic(vec(1), vec(1)), Quadratic(vec(3), vec(-1))]
    states = [reply(algorithm, {}, algorithm.node_init(vec(0)), oracle, 2)[1] for oracle in clients]
    assert [s.x.item() for s in states] == pytest.approx([0.19, -0.51], rel=1e-14)
    sent = [algorithm.outgoing(s)["x"] for s in states]
    weights = vec(0.75, 0.25)
    mixed = [algorithm.mix(states[i], {"x": torch.stack([sent[i], sent[1 - i]])}, MixInfo(0, i, weights))
             for i in (0, 1)]
    # 0.75 * 0.19 - 0.25 * 0.51 and 0.25 * 0.19 - 0.75 * 0.51; the mean stays -0.16.
    assert [algorithm.model(s).item() for s in mixed] == pytest.approx([0.015, -0.335], rel=1e-13)
    assert [s.x.item() for s in states] == pytest.approx([0.19, -0.51], rel=1e-14)


def test_gradient_coding() -> None:
    # Block v holds the sample (x - v)^2 / 2; machines are the edges 01, 02, 12, and 12 straggles.
    # Sides {0} and {1, 2}: alpha = 4/3, 2/3, 2/3.  At x = 0 the block gradients are 0, -1, -2, so that
    # x = 0 + 0.3 (1/3) (2/3 + 4/3) = 0.2.
    algorithm = GradientCoding(lr=0.3, replication=2)
    held = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]])
    w = algorithm.decode(held, np.array([True, True, False]))
    assert held @ w == pytest.approx([4 / 3, 2 / 3, 2 / 3], rel=1e-14)
    # A machine's objective is the mean over its two samples: (x - mean)^2 / 2 and a constant.
    machines = [Quadratic(vec(1), vec(t)) for t in (0.5, 1.0, 1.5)]
    ups = [reply(algorithm, {"x": vec(0)}, (), oracle, 1)[0]["dx"] for oracle in machines]
    mean = {"dx": sum(we * 2 * up for we, up in zip(w, ups, strict=True)) / 3}
    s = algorithm.server_update(algorithm.server_init(vec(0)), mean, RoundInfo(0, 1, 2, 3))
    assert s.x.item() == pytest.approx(0.2, rel=1e-14)
