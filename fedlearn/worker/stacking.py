"""What a worker computes gradients with, and whether it computes its clients in stacks."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature

import torch

from ..contracts import ClientOracle, LocalPlan
from ..errors import ConfigError
from ..oracles.representation import representing
from ..oracles.steady import steady
from ..work import Setup


def oracle_for(setup: Setup) -> ClientOracle:
    """Return a new oracle as a setup asks for it.

    Raises:
        ConfigError: if it cannot be had, or cannot stack clients where that is asked for.
    """
    low = {} if setup.precision == "float32" else {"precision": setup.precision}
    if low and "precision" not in signature(setup.task.oracle).parameters:
        raise ConfigError("precision", setup.precision, f"float32 with task {type(setup.task).__name__}",
                          "Its oracles compute in the dtype of the model.")
    if getattr(setup.algorithm, "representations", False):
        return representing(setup.task, type(setup.algorithm).__name__, setup.oracle, low)
    oracle = setup.task.oracle(setup.oracle, **low)
    if setup.stack and not oracle.stacks and setup.oracle == "auto":
        oracle = setup.task.oracle("vmap", **low)     # refused by a task without one
    if setup.stack and not oracle.stacks:
        raise ConfigError("stack", True, f"false with oracle {type(oracle).__name__}",
                          "It works on one client at a time.")
    return oracle


def pays_to_stack(setup: Setup, local: LocalPlan) -> bool:
    """Return whether stacks are quicker for this task and, tried out here, show no client who else is in them."""
    if getattr(setup.algorithm, "unstackable", "") or getattr(setup.algorithm, "unsteady", False):
        return False
    if hasattr(setup.task, "stand_in"):     # not all data is here, and everybody is to decide alike
        setup = replace(setup, task=setup.task.stand_in())
    oracle, sizes = oracle_for(setup), setup.task.sizes
    batch = local.batch_for(int(sizes.max()))
    if not oracle.stacks or not getattr(oracle, "pays_to_stack", lambda batch: False)(batch):
        return False
    before = torch.get_num_threads()
    torch.set_num_threads(setup.threads)    # as in the workers: other numbers of threads may decide otherwise
    try:
        return steady(oracle, sizes, setup.task.initial(setup.seed), batch)
    except Exception:
        return False    # the run will meet it, and say of which client
    finally:
        torch.set_num_threads(before)
