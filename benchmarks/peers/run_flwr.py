"""Flower as a contestant: its simulation runtime with Ray actors of one core and one thread each."""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Iterable

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.peers.flwr_app import app
from benchmarks.speed.case import Case
from benchmarks.speed.pace import Pace


class PreparedCohorts(FedAvg):
    """Flower's FedAvg on the prepared cohorts: the m-th node is client m."""

    def __init__(self, case: Case, folder: str) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.case, self.folder = case, folder

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
                        ) -> Iterable[Message]:
        """Send the model to the nodes of the round's cohort, with the place of each in it."""
        while len(nodes := list(grid.get_node_ids())) < len(self.case.offsets) - 1:
            time.sleep(0.05)  # they register while the first round begins
        cohort = self.case.cohort
        for i, m in enumerate(self.case.cohorts[server_round - 1]):
            place = ConfigRecord({"place": (server_round - 1) * cohort + i, "folder": self.folder})
            yield Message(RecordDict({"arrays": arrays, "config": place}), dst_node_id=nodes[int(m)],
                          message_type=MessageType.TRAIN)


def main() -> None:
    """Run the case in a folder and leave the final model in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("model")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--actors", type=int, default=2)
    args = parser.parse_args()
    pace = Pace(args.whole)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    case = Case.open(args.folder)
    server = ServerApp()
    names = list(case.module().state_dict())

    def after(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Flower's hook for evaluation on the server, called before the first round and after each."""
        pace.lap() if server_round else pace.ready("torch", "numpy", "flwr", "ray")
        return None

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        """Run all rounds."""
        result = PreparedCohorts(case, os.path.abspath(args.folder)).start(
            grid, ArrayRecord(case.module().state_dict()), num_rounds=case.rounds, evaluate_fn=after)
        state = result.arrays.to_torch_state_dict()
        vector = torch.cat([state[name].reshape(-1) for name in names])
        np.save(args.model, vector.numpy())
        pace.final(case.accuracy_of(vector))

    run_simulation(server, app, num_supernodes=len(case.offsets) - 1,
                   backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0},
                                   "init_args": {"num_cpus": args.actors, "include_dashboard": False}})


if __name__ == "__main__":
    main()
