"""The worker: it runs clients, and is the only caller of an algorithm's ``local_*``.

A client's local work is a pure function of (broadcast, client state, client data, seed, round,
client). The worker draws its mini-batches from a stream keyed by the last three, so it does not
matter which worker runs a client, when, or how often.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .contracts import ClientOracle, Msg, PeerAlgorithm, ServerAlgorithm, StepInfo, Tree
from .data.store import DatasetStore
from .errors import ClientError, ConfigError, FedlearnError
from .seeds import generator, torch_seed
from .states import States
from .vectors import tree_map
from .work import Record, Setup, Sum, Work, bytes_of

AHEAD = 16  # clients whose draws are made at a time: one after another they find their code still in the cache


def oracle_for(setup: Setup) -> ClientOracle:
    """Return a new oracle as a setup asks for it.

    Raises:
        ConfigError: if it cannot be had, or cannot stack clients where that is asked for.
    """
    low = {} if setup.precision == "float32" else {"precision": setup.precision}
    if low and "precision" not in signature(setup.task.oracle).parameters:
        raise ConfigError("precision", setup.precision, f"float32 with task {type(setup.task).__name__}",
                          "Its oracles compute in the dtype of the model.")
    oracle = setup.task.oracle(setup.oracle, **low)
    if setup.stack and not oracle.stacks and setup.oracle == "auto":
        oracle = setup.task.oracle("vmap", **low)     # refused by a task without one
    if setup.stack and not oracle.stacks:
        raise ConfigError("stack", True, f"false with oracle {type(oracle).__name__}",
                          "It works on one client at a time.")
    return oracle


class Worker:
    """Runs clients one after another, or stacked where the oracle can and ``stack`` is asked for."""

    def __init__(self, setup: Setup, through: bool = False) -> None:
        torch.set_num_threads(setup.threads)
        self.setup = setup
        self.oracle = oracle_for(setup)
        # The same for every worker, so that no stack shows who else is in it.
        self.largest = int(setup.task.sizes.max()) if setup.stack else 0
        self.states: States | None = None
        if isinstance(setup.algorithm, ServerAlgorithm):
            self.first = setup.algorithm.client_init(setup.task.initial(setup.seed))
            self.states = States(self.first, setup.states, through)

    def reduce(self, work: Work, clients: Sequence[int], into: Sum) -> list[Record]:
        """Run these clients of the work and add their weighted uploads to a sum.

        Raises:
            ClientError: naming the client and the round, whatever went wrong in its work.
        """
        algorithm = self.setup.algorithm
        assert isinstance(algorithm, ServerAlgorithm)
        weight = dict(zip(work.clients, work.weights, strict=True))
        records = []
        for client, msg, record in self.replies(work, clients):
            weights = {name: 1.0 if name in algorithm.unweighted else weight[client] for name in msg}
            into.add(msg, weights, client, work.round)
            records.append(record)
        return records

    def replies(self, work: Work, clients: Sequence[int]) -> Iterator[tuple[int, Msg, Record]]:
        """Yield (client, upload, record) of these clients; an upload is valid until the next."""
        algorithm, states = self.setup.algorithm, self.states
        assert isinstance(algorithm, ServerAlgorithm) and states is not None
        weight = dict(zip(work.clients, work.weights, strict=True))
        finished = (reply for group, draws in self._groups(work, clients)
                    for reply in self._stacked(work, group, draws, not self.setup.stack))
        for client, msg, state, steps, loss in finished:
            for stage in self.setup.pipeline.values():
                msg = stage.encode(msg, client, work.round)
            stateful = not (isinstance(state, tuple) and state == ())
            if stateful:
                states.put(client, work.key, state)
            yield client, msg, Record(client, int(self.setup.task.sizes[client]), steps, weight[client], loss,
                                      bytes_of(msg), stateful)

    def _groups(self, work: Work, clients: Sequence[int]) -> Iterator[tuple[Sequence[int], list[Sequence[Any]]]]:
        """Yield the clients that work together, each alone or in stacks, and their draws."""
        if self.setup.stack:
            for group in self._stacks(work, clients):
                yield group, [self._draws(work, m) for m in group]
            return
        for i in range(0, len(clients), AHEAD):
            some = clients[i:i + AHEAD]
            for m, draws in zip(some, [self._draws(work, m) for m in some], strict=True):
                yield [m], [draws]

    def _stacks(self, work: Work, clients: Sequence[int]) -> Iterator[Sequence[int]]:
        """Split clients into stacks for which there is room; those with equally many steps stay together."""
        sizes, local = self.setup.task.sizes, work.local
        room = self.oracle.room(local.batch_for(self.largest))
        ids = sorted(clients, key=lambda m: (-local.steps_for(int(sizes[m])), m))
        return (ids[i:i + room] for i in range(0, len(ids), room))

    def _stacked(self, work: Work, clients: Sequence[int], drawn: Sequence[Sequence[Any]], alone: bool = False
                 ) -> Iterator[tuple[int, Msg, Tree, int, float]]:
        """Yield (client, upload, new state, steps, mean loss) of one client, or of a stack of them.

        A stack is sorted by the number of steps and shrinks as clients finish, so that nobody is
        stepped under a mask. Alone, tensors are [P]; in a stack [clients, P].
        """
        setup, oracle, algorithm = self.setup, self.oracle, self.setup.algorithm
        assert isinstance(algorithm, ServerAlgorithm)
        draws = dict(zip(clients, drawn, strict=True))
        ids = sorted(clients, key=lambda m: (-len(draws[m]), m))
        counts = [len(draws[m]) for m in ids]
        states = [self._state(work, m) for m in ids]
        steps: int | Tensor
        if alone:
            self._seed(work, ids[0])
            b, c, steps = work.broadcast, states[0], counts[0]
        else:
            b = {name: v.expand(len(ids), -1) for name, v in work.broadcast.items()}
            c = tree_map(lambda *parts: torch.stack(parts), *states)
            steps = torch.tensor(counts).unsqueeze(1)
        try:
            oracle.enter(ids, [draws[m] for m in ids])
            y = algorithm.local_init(b, c)
            k = 0
            while ids:
                while k < counts[-1]:
                    oracle.at([draws[m][k] for m in ids])
                    factor = setup.schedule.factor(work.round, setup.rounds, k)
                    y = algorithm.local_step(y, b, c, oracle, StepInfo(work.round, k, steps, factor))
                    k += 1
                # The clients at the end of the stack have done their last step.
                left = sum(n > k for n in counts)
                done = y, b, c, steps
                if not alone:
                    done = tree_map(lambda t, left=left: t[left:], (y, b, c, steps))
                    y, b, c, steps = tree_map(lambda t, left=left: t[:left], (y, b, c, steps))
                factor = setup.schedule.factor(work.round, setup.rounds, max(k - 1, 0))
                msg, state = algorithm.local_finish(*done[:3], StepInfo(work.round, k, done[3], factor))
                for i, m in enumerate(ids[left:]):
                    loss = float(oracle.loss[left + i]) / max(oracle.calls, 1)
                    if alone:
                        yield m, msg, state, k, loss
                    else:  # a kept view of one row would keep the whole stack
                        kept = tree_map(lambda t, i=i: t[i].clone(), state)
                        yield m, tree_map(lambda t, i=i: t[i], msg), kept, k, loss
                ids, counts = ids[:left], counts[:left]
        except FedlearnError:
            raise
        except Exception as e:
            who = ids[0] if alone else min(ids)
            raise ClientError(who, work.round, f"its local work failed with {type(e).__name__}: {e}") from e

    def peer(self, algorithm: PeerAlgorithm, work: Work, node: int, state: Tree) -> tuple[Tree, Record]:
        """Return a node's state after its local steps of a round, before it exchanges."""
        draws = self._draws(work, node)
        self._seed(work, node)
        self.oracle.enter([node], [draws])
        for k, draw in enumerate(draws):
            self.oracle.at([draw])
            factor = self.setup.schedule.factor(work.round, self.setup.rounds, k)
            state = algorithm.local_step(state, self.oracle, StepInfo(work.round, k, len(draws), factor))
        loss = float(self.oracle.loss[0]) / max(self.oracle.calls, 1)
        sent = bytes_of(algorithm.outgoing(state))
        return state, Record(node, int(self.setup.task.sizes[node]), len(draws), 1.0, loss, sent, False)

    def _draws(self, work: Work, client: int) -> Sequence[Any]:
        return self.setup.task.draws(client, generator(self.setup.seed, "local", work.key, client), work.local)

    def _state(self, work: Work, client: int) -> Tree:
        assert self.states is not None
        version = work.versions.get(client)
        return self.first if version is None else self.states.get(client, version)

    def _seed(self, work: Work, client: int) -> None:
        """Seed the global streams that a model (dropout) or a data set (augmentation) may draw from.

        ``torch.manual_seed`` keeps, for every device that is not in use, the call and a formatted
        traceback until the process ends: 1.5 ms and a leak per client and round.
        """
        seed = torch_seed(self.setup.seed, "torch", work.key, client)
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)
        if isinstance(getattr(self.setup.task, "store", None), DatasetStore):
            random.seed(seed)
            np.random.seed(seed % 2**32)
