"""From overrides to an experiment, and combinations that cannot run."""

from __future__ import annotations

import pytest
import torch

from fedlearn.config.assemble import assemble, experiment, parts
from fedlearn.config.compose import compose
from fedlearn.errors import ConfigError, FedlearnError


def test_the_defaults_become_an_experiment() -> None:
    e = experiment(compose(["seed=3", "clients=8", "cohort=4", "local.steps=2", "checkpoint.every=7"]))
    assert (e.rounds, e.cohort, e.seed, e.local.steps, e.checkpoint_every) == (50, 4, 3, 2, 7)
    assert len(e.task.sizes) == 8
    assert e.task.sizes.min() >= 10
    assert e.pipeline == {}


def test_the_seed_decides_partition_and_model_and_nothing_else_does() -> None:
    def made(seed: int) -> tuple[list[int], torch.Tensor]:
        task = experiment(compose([f"seed={seed}"])).task
        return task.sizes.tolist(), task.initial(seed)

    sizes, x = made(1)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again = made(1)
    assert torch.equal(before, torch.random.get_rng_state()), "the caller's random stream is left alone"
    assert sizes == again[0]
    assert torch.equal(x, again[1])
    other = made(2)
    assert sizes != other[0]
    assert not torch.equal(x, other[1])


def test_dtype_and_stages_arrive() -> None:
    e = experiment(compose(["dtype=float64", "pipeline=[clip]", "pipeline.clip.norm=2"]))
    assert e.task.initial(0).dtype == torch.float64
    assert e.pipeline["clip"].norm == 2


def test_a_module_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose(["model=none", "+model._target_=torch.nn.LazyLinear", "+model.out_features=10"])
    made = parts(cfg)
    assert isinstance(made.model, torch.nn.Module)


REFUSED = [
    (["algorithm=fedbuff", "protocol=synchronous"],
     "protocol: found 'Synchronous'; allowed: protocol=asynchronous with algorithm FedBuff."),
    (["protocol=gossip"], "protocol: found 'Gossip'; allowed: protocol=synchronous with algorithm FedAvg."),
    (["weighting=scheme1"],
     "weighting: found 'scheme1'; allowed: scheme1 only with sampling=proportional or sampling=temperature."),
    (["sampling=proportional"], "weighting: found 'ratio'; allowed: ratio only with sampling="),
    (["cohort=30"], "cohort: found 30; allowed: 1 to 20, the number of clients, or null for all."),
    (["model=none"], "model: found None; allowed: a model for task Digits. Choose one, as in model=mlp."),
    (["task=quadratic", "heterogeneity=dirichlet"],
     "heterogeneity: found 'Dirichlet'; allowed: heterogeneity=natural with task Quadratic."),
    (["task=quadratic", "model=mlp"], "model: found 'MLP'; allowed: model=none with task Quadratic."),
    (["algorithm._target_=fedlearn.models.mlp.MLP", "~algorithm.lr", "~algorithm.server_lr"],
     "algorithm._target_: found 'fedlearn.models.mlp.MLP'; allowed: a class with local_step()."),
    (["~algorithm"], "algorithm: found None; allowed: an option of the group"),
    (["algorithm.lr=-1"], "algorithm.lr: found -1.0; allowed: a number > 0."),
    (["algorithm.lr=abc"], "algorithm.lr: found 'abc'; allowed: a number."),
    (["heterogeneity.alpha=0"], "heterogeneity.alpha: found 0.0; allowed: a number"),
    (["local.steps=2", "local.epochs=1"], "local.steps: found 2; allowed: null while local.epochs is set."),
    (["+algorithm.mu=1"], "algorithm.mu: found 'mu'; allowed: one of lr, server_lr."),
    (["+foo=1"], "foo: found 'foo'; allowed: one of"),
    (["pipeline=[clip]", "pipeline.clip.norm=0"], "pipeline.clip.norm: found 0.0; allowed: a number > 0."),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[" ".join(o) for o, _ in REFUSED])
def test_what_cannot_run_is_refused_before_data_is_read(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parts(compose(overrides))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("overrides", "message"), [
    (["clients=1000", "cohort=10"], "1,?000"),
    (["heterogeneity=natural", "clients=null"], "natural"),
    (["clients=null"], "clients: found None"),
    (["algorithm=dsgd", "cohort=5"], "cohort: found 5"),
])
def test_what_the_data_cannot_give_is_refused(overrides: list[str], message: str) -> None:
    made = parts(compose(overrides))
    with pytest.raises(FedlearnError, match=message) as caught:
        assemble(made)
    assert "\n" not in str(caught.value)
