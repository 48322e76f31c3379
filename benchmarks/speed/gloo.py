"""The floor of synchronising two processes: one all_reduce of a float32 vector [P], under torchrun."""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist

from benchmarks.speed.pace import Pace


def main() -> None:
    """Run all_reduce at the harness's pace."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("parameters", type=int)
    parser.add_argument("rounds", type=int)
    args = parser.parse_args()
    dist.init_process_group("gloo")
    pace = Pace(leader=dist.get_rank() == 0, together=dist.barrier)
    torch.set_num_threads(1)
    vector = torch.full((args.parameters,), 0.5)
    pace.ready("torch")
    for _ in range(args.rounds):
        dist.all_reduce(vector)
        vector.mul_(0.5)
        pace.lap()
    pace.final(0.0)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
