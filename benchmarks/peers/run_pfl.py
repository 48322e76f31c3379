"""pfl-research as a contestant: its simulated backend, alone or on torchrun ranks."""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.speed.case import Case
from benchmarks.speed.pace import Pace


class Net(nn.Module):
    """The case's model with the two methods that pfl asks for."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch."""
        return cross_entropy(self.inner(x), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict:
        """No metrics: nothing is evaluated while the clock runs."""
        return {}


class NextVisit:
    """A user sampler that follows the prepared cohorts; what pfl fetches ahead starts again in front."""

    def __init__(self, visits: int) -> None:
        self.visits, self.next = visits, 0

    def __call__(self) -> int:
        self.next += 1
        return (self.next - 1) % self.visits


class Paced(TrainingProcessCallback):
    """Reports every round and waits for the next."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def after_central_iteration(self, aggregate_metrics: Metrics, model: PyTorchModel, *,
                                central_iteration: int) -> tuple[bool, Metrics]:
        """End a round."""
        self.pace.lap()
        return False, Metrics()


def main() -> None:
    """Run the case in a folder and leave the final model in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("model")
    parser.add_argument("--whole", action="store_true")
    args = parser.parse_args()
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    leader = int(os.environ.get("RANK", 0)) == 0
    pace = Pace(args.whole, leader, torch.distributed.barrier if ranks > 1 else None)
    torch.set_num_threads(1)
    np.random.seed(0)  # the same on every rank: pfl draws its seeds from here
    case = Case.open(args.folder)
    net = Net(case.module())
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), 1.0))
    sizes = np.diff(case.starts)
    data = FederatedDataset(lambda place: PyTorchTensorDataset(case.visit(place)), NextVisit(len(sizes)),
                            dict(enumerate(sizes.tolist())) if ranks > 1 else None)
    backend = SimulatedBackend(data, data, [WeightByDatapoints()])
    pace.ready("torch", "numpy", "pfl")
    plan = NNAlgorithmParams(case.rounds, evaluation_frequency=10**9, train_cohort_size=case.cohort,
                             val_cohort_size=None)
    local = NNTrainHyperParams(local_batch_size=case.batch, local_num_epochs=1, local_learning_rate=case.lr)
    FederatedAveraging().run(plan, backend, model, local, callbacks=[Paced(pace)], send_metrics_to_platform=False)
    if leader:
        vector = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
        np.save(args.model, vector.numpy())
        pace.final(case.accuracy(net.inner))
    if ranks > 1:  # a rank that leaves early can abort the others
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
