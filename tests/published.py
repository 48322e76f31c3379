"""The published equations of the baselines in plain numpy, written from the papers and not from the library.

A client is F_m(y) = 1/2 a_m (y - t_m)^2 along each coordinate; step k adds noise[k, m] to its gradient.
Each function is given the rounds as (cohort, steps by client, weights p of the cohort that add up to 1) and
returns the server's models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy import ndarray as Array

RNG = np.random.default_rng(5)
M, P, K = 5, 4, 6
A, T, NOISE = 0.3 + RNG.random((M, P)), RNG.standard_normal((M, P)), 0.3 * RNG.standard_normal((K, M, P))
Rounds = Sequence[tuple[Sequence[int], Sequence[int], Array]]
Models = Iterator[Array]


def full(m: int, y: Array) -> Array:
    """Return grad F_m(y)."""
    return A[m] * (y - T[m])


def g(m: int, k: int, y: Array) -> Array:
    """Return the stochastic gradient of step k."""
    return full(m, y) + NOISE[k, m]


def sgd(m: int, x: Array, steps: int, eta: float, rho: float = 0.0) -> Array:
    """Return where local SGD ends, with a proximal term rho."""
    y = x
    for k in range(steps):
        y = y - eta * (g(m, k, y) + rho * (y - x))
    return y


def fedopt(second: Callable[[Array, Array], Array], rounds: Rounds, eta: float, eta_g: float, beta1: float,
           tau: float, v0: float) -> Models:
    """Reddi et al., Algorithm 2."""
    x, mom, v = np.zeros(P), np.zeros(P), np.full(P, v0)
    for cohort, steps, p in rounds:
        delta = sum(pm * (sgd(m, x, steps[m], eta) - x) for m, pm in zip(cohort, p, strict=True))
        mom = beta1 * mom + (1 - beta1) * delta
        v = second(v, delta)
        x = x + eta_g * mom / (np.sqrt(v) + tau)
        yield x


def fedavgm(rounds: Rounds, eta: float, eta_g: float, beta: float) -> Models:
    """Hsu et al."""
    x, v = np.zeros(P), np.zeros(P)
    for cohort, steps, p in rounds:
        v = beta * v + sum(pm * (sgd(m, x, steps[m], eta) - x) for m, pm in zip(cohort, p, strict=True))
        x = x + eta_g * v
        yield x


def fednova(rounds: Rounds, eta: float, rho: float, mu: float) -> Models:
    """Wang et al.: y is the start less eta times a weighted sum of gradients; the weights are kept as a vector a."""
    x = np.zeros(P)
    for cohort, steps, p in rounds:
        d, tau = [], []
        for m in cohort:
            y, u, a = x, np.zeros(P), np.zeros(0)
            for k in range(steps[m]):
                u = rho * u + g(m, k, y)
                y = y - eta * (u + mu * (y - x))
                # How much each gradient so far counts in (x - y) / eta: older ones shrink, and come again by momentum.
                a = (1 - eta * mu) * np.append(a, 0) + rho ** np.arange(k, -1, -1)
            d.append((x - y) / (eta * a.sum()))
            tau.append(a.sum())
        x = x - eta * (p @ np.array(tau)) * (p @ np.array(d))
        yield x


def feddyn(rounds: Rounds, eta: float, alpha: float) -> Models:
    """Acar et al., Algorithm 1, with plain means."""
    x, h, lam = np.zeros(P), np.zeros(P), np.zeros((M, P))
    for cohort, steps, _ in rounds:
        ends = []
        for m in cohort:
            y = x
            for k in range(steps[m]):
                y = y - eta * (g(m, k, y) - lam[m] + alpha * (y - x))
            lam[m] = lam[m] - alpha * (y - x)
            ends.append(y)
        h = h - alpha / M * sum(y - x for y in ends)
        x = np.mean(ends, axis=0) - h / alpha
        yield x


def mime(rounds: Rounds, eta: float, eta_g: float, adam: tuple[float, float, float] | None, beta: float,
         lite: bool) -> Models:
    """Karimireddy et al., Algorithm 1."""
    x, mom, v = np.zeros(P), np.zeros(P), np.zeros(P)
    for cohort, steps, p in rounds:
        c = sum(pm * full(m, x) for m, pm in zip(cohort, p, strict=True))
        ends = []
        for m in cohort:
            y = x
            for k in range(steps[m]):
                grad = g(m, k, y) if lite else g(m, k, y) - g(m, k, x) + c
                if adam is None:
                    y = y - eta * ((1 - beta) * grad + beta * mom)
                else:
                    y = y - eta * ((1 - adam[0]) * grad + adam[0] * mom) / (np.sqrt(v) + adam[2])
            ends.append(y)
        x = x + eta_g * (p @ np.array(ends) - x)
        if adam is None:
            mom = (1 - beta) * c + beta * mom
        else:
            mom, v = (1 - adam[0]) * c + adam[0] * mom, (1 - adam[1]) * c**2 + adam[1] * v
        yield x


def fedexp(rounds: Rounds, eta: float, eps: float) -> Models:
    """Jhunjhunwala et al., Algorithm 1; yields the mean of the last two models."""
    x = np.zeros(P)
    for cohort, steps, p in rounds:
        delta = np.array([sgd(m, x, steps[m], eta) - x for m in cohort])
        step = max(1.0, (p @ (delta**2).sum(1)) / (2 * (((p @ delta) ** 2).sum() + eps)))
        last, x = x, x + step * (p @ delta)
        yield (last + x) / 2
