"""FedLab as a contestant: its serial trainer, over slices or over DataLoaders."""

from __future__ import annotations

import argparse
import logging

import numpy as np
import torch
from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer
from fedlab.contrib.algorithm.basic_server import SyncServerHandler
from fedlab.utils.aggregator import Aggregators
from fedlab.utils.serialization import SerializationTool
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.speed.case import Case
from benchmarks.speed.pace import Pace


class Visits:
    """What FedLab calls a dataset: mini-batches by the position in the prepared cohorts."""

    def __init__(self, case: Case, loader: bool) -> None:
        self.case, self.loader = case, loader

    def get_dataloader(self, place: int, batch_size: int) -> object:
        """Return the mini-batches of one visit."""
        x, y = self.case.visit(place)
        if self.loader:
            return DataLoader(TensorDataset(x, y), batch_size)
        return list(zip(x.split(batch_size), y.split(batch_size), strict=True))


class Trainer(SGDSerialClientTrainer):
    """FedLab's SGD, which also uploads the number of samples (as its FedAvg asks for)."""

    def local_process(self, payload: list[torch.Tensor], id_list: list[int]) -> None:
        """Train these visits from the broadcast."""
        for place in id_list:
            pack = self.train(payload[0], self.dataset.get_dataloader(place, self.batch_size))
            samples = int(self.dataset.case.starts[place + 1] - self.dataset.case.starts[place])
            self.cache.append([*pack, torch.tensor([float(samples)])])


class Server(SyncServerHandler):
    """FedLab's synchronous server, weighting by the number of samples."""

    def global_update(self, buffer: list[list[torch.Tensor]]) -> None:
        """Average what the cohort sent."""
        weights = torch.cat([pack[1] for pack in buffer])
        average = Aggregators.fedavg_aggregate([pack[0] for pack in buffer], weights)
        SerializationTool.deserialize_model(self._model, average)


def main() -> None:
    """Run the case in a folder and leave the final model in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("model")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--loader", action="store_true", help="batches from a DataLoader instead of slices")
    args = parser.parse_args()
    pace = Pace(args.whole)
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    case = Case.open(args.folder)
    clients = len(case.offsets) - 1
    trainer = Trainer(case.module(), clients)
    trainer.setup_dataset(Visits(case, args.loader))
    trainer.setup_optim(1, case.batch, case.lr)
    server = Server(case.module(), case.rounds, case.cohort / clients)
    server.num_clients = clients
    assert server.num_clients_per_round == case.cohort
    pace.ready("torch", "numpy", "fedlab")
    for r in range(case.rounds):
        trainer.local_process(server.downlink_package, list(range(r * case.cohort, (r + 1) * case.cohort)))
        for pack in trainer.uplink_package:
            server.load(pack)
        pace.lap()
    np.save(args.model, server.model_parameters.numpy())
    pace.final(case.accuracy_of(server.model_parameters))


if __name__ == "__main__":
    main()
