"""The yardstick: torch's DistributedDataParallel over gloo, with torch.optim.SGD, which synchronises at every step."""

# Annotations are not postponed here: torch looks at those of a hook.

from collections.abc import Iterable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.network.plan import HOSTS, Problem
from benchmarks.network.training import loss_of, model_of, samples
from fedlearn.vectors import digest

if TYPE_CHECKING:
    from benchmarks.network.rank import Clock

WARM = 3    # steps with step size 0 before the clock starts: the first one of all takes longer


def train(problem: Problem, task: Any, method: Mapping[str, Any], clock: "Clock", every: int) -> dict[str, Any]:
    """Train on all ranks of the default process group; with ``every`` look for the clock's target.

    Mini-batches are drawn before the clock starts, unless it only looks for the target. How many steps fit its limit is
    settled before, too, lest the ranks have to agree on it at every step. With ``wire`` bf16 gradients are rounded to
    bfloat16 and averaged as such.
    """
    rank = dist.get_rank()
    model = model_of(task, problem)
    wrapped, weights = DistributedDataParallel(model), list(model.parameters())
    if method["wire"] == "bf16":
        wrapped.register_comm_hook(None, rounded)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def step(x: torch.Tensor, y: torch.Tensor) -> float:
        began = perf_counter()
        optimizer.zero_grad()
        task.criterion(wrapped(task.prepare(x)), y).backward()
        optimizer.step()
        return perf_counter() - began

    warm = [step(*batch) for batch in samples(problem, task, rank, WARM)]
    optimizer.param_groups[0]["lr"] = method["lr"]
    steps = clock.rounds if not clock.limit else min(clock.rounds, max(clock.least, int(clock.limit / min(warm[1:]))))
    steps = int(told(steps))
    drawn: Iterable[Any] = samples(problem, task, rank, steps)
    if not every:
        drawn = list(drawn)
    dist.barrier()
    clock.round({"round": 0, "seconds": {}})
    for done, batch in enumerate(drawn, 1):
        step(*batch)
        line: dict[str, Any] = {"round": done, "seconds": {}}
        look = every and done % every == 0
        if look and rank == 0:
            began = perf_counter()
            loss = loss_of(task, weights)
            line |= {"test_loss": loss, "seconds": {"evaluate": perf_counter() - began}}
        clock.round(line)
        if look and told(clock.enough):
            break
    clock.loss = loss_of(task, weights) if rank == 0 else None
    final = torch.cat([w.detach().reshape(-1) for w in weights])
    return clock.answer() | {"sha256": digest(final)} if rank == 0 else {}


def rounded(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Average gradients in bfloat16: torch's own ``bf16_compress_hook``, which wants GPUs."""
    buffer = bucket.buffer()
    sent = dist.all_reduce(buffer.bfloat16().div_(HOSTS), async_op=True).get_future()
    return sent.then(lambda done: buffer.copy_(done.value()[0]))


def told(number: float) -> float:
    """Return rank 0's number at every rank."""
    there = torch.tensor([float(number)], dtype=torch.float64)
    dist.broadcast(there, 0)
    return there.item()
