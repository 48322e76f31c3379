"""The worker: it runs clients, and is the only caller of an algorithm's ``local_*``.

A client's local work is a pure function of (broadcast, client state, client data, seed, round,
client). The worker draws its mini-batches from a stream keyed by the last three, so it does not
matter which worker runs a client, when, or how often.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch

from .contracts import ClientOracle, LocalPlan, Msg, PeerAlgorithm, ServerAlgorithm, StepInfo, Tree
from .data.store import DatasetStore
from .errors import ClientError, ConfigError, FedlearnError
from .faults import arm, at
from .oracles.directions import Directed
from .oracles.representation import representing
from .oracles.steady import steady
from .reducers.side_by_side import add_side_by_side
from .seeds import generator, torch_seed
from .states import States
from .vectors import tree_map
from .work import Part, Record, Setup, Sum, Work, bytes_of

AHEAD = 16  # clients whose draws are made at a time: one after another they find their code still in the cache


class Done(NamedTuple):
    """What one or more clients that finished together made of the work.

    ``msg`` holds their uploads, [clients, P] each, valid until the next; ``states`` their new states, none where they
    keep none; ``steps`` how many steps each took, ``losses`` its mean mini-batch loss.
    """

    clients: Sequence[int]
    msg: Msg
    states: Sequence[Tree]
    steps: int
    losses: Sequence[float]


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


class Worker:
    """Runs clients one after another, or in stacks where the setup says so."""

    def __init__(self, setup: Setup, through: bool = False) -> None:
        torch.set_num_threads(setup.threads)
        arm(setup.faults)
        self.setup = setup
        self.oracle: Any = oracle_for(setup)
        if getattr(setup.algorithm, "directions", False):
            self.oracle = Directed(self.oracle)
        # The same for every worker, so that no stack shows who else is in it.
        self.largest = int(setup.task.sizes.max()) if setup.stack else 0
        self.states: States | None = None
        if isinstance(setup.algorithm, ServerAlgorithm):
            self.first = setup.algorithm.client_init(setup.task.initial(setup.seed))
            self.states = States(self.first, setup.states, through, setup.state_memory * 2**20)

    def reduce(self, work: Work, clients: Sequence[int], into: Sum) -> Part:
        """Run these clients of the work and add their weighted uploads to a sum.

        Raises:
            ClientError: naming the client and the round, whatever went wrong in its work.
        """
        algorithm = work.algorithm_of(self.setup)
        weight = dict(zip(work.clients, work.weights, strict=True))
        records = []
        for done in self._done(work, clients):
            weights, ones = [weight[m] for m in done.clients], [1.0] * len(done.clients)
            if algorithm.individual:
                add_side_by_side(into, done.msg, done.clients, work.clients, work.round)
            else:
                into.add_stack(done.msg, {name: ones if name in algorithm.unweighted else weights
                                          for name in done.msg}, done.clients, work.round)
            records += self._records(work, done, weights)
            del done    # or its uploads would live until the next ones are there
        return Part(records, [])

    def replies(self, work: Work, clients: Sequence[int]) -> Iterator[tuple[int, Msg, Record]]:
        """Yield (client, upload, record) of these clients; an upload is valid until the next."""
        weight = dict(zip(work.clients, work.weights, strict=True))
        for done in self._done(work, clients):
            records = self._records(work, done, [weight[m] for m in done.clients])
            for i, record in enumerate(records):
                yield record.client, {name: v[i] for name, v in done.msg.items()}, record

    def _records(self, work: Work, done: Done, weights: Sequence[float]) -> list[Record]:
        """Keep the clients' new states, and return what is known of their replies."""
        assert self.states is not None
        each, sizes = bytes_of(done.msg) // len(done.clients), self.setup.task.sizes
        for client, state in zip(done.clients, done.states, strict=False):
            self.states.put(client, work.key, state)
        return [Record(client, int(sizes[client]), done.steps, weight, loss, each, bool(done.states))
                for client, weight, loss in zip(done.clients, weights, done.losses, strict=True)]

    def _done(self, work: Work, clients: Sequence[int]) -> Iterator[Done]:
        """Yield what clients made of the work, as they send it: stages see one upload at a time."""
        stages = self.setup.pipeline.values()
        if self.states is not None:
            self.states.settle(work.versions)
        if expect := getattr(getattr(self.setup.task, "store", None), "expect", None):
            expect(clients)     # the disk reads while the first of them train
        finished = self._stacks(work, clients) if self.setup.stack else self._one_by_one(work, clients)
        if not stages:
            yield from finished
            return
        for done in finished:
            for i, client in enumerate(done.clients):
                msg: Msg = {name: v[i] for name, v in done.msg.items()}
                for stage in stages:
                    msg = stage.encode(msg, client, work.round)
                yield Done([client], {name: v.unsqueeze(0) for name, v in msg.items()}, done.states[i:i + 1],
                           done.steps, done.losses[i:i + 1])

    def _one_by_one(self, work: Work, clients: Sequence[int]) -> Iterator[Done]:
        """Yield what clients made of the work; tensors are [P]."""
        for i in range(0, len(clients), AHEAD):
            some = clients[i:i + AHEAD]
            drawn = [self._draws(work, m) for m in some]
            with suppress(Exception):   # it will be met again, by the client that it comes from
                if hasattr(self.oracle, "expect"):
                    self.oracle.expect(some, drawn)
            for m, draws in zip(some, drawn, strict=True):
                self._seed(work, m)
                try:
                    yield self._alone(work, m, draws)
                except FedlearnError:
                    raise
                except Exception as e:
                    raise _failed(m, work, e) from e

    def _alone(self, work: Work, client: int, draws: Sequence[Any]) -> Done:
        setup, oracle, algorithm, b = self.setup, self.oracle, work.algorithm_of(self.setup), work.broadcast
        c, steps, before = self._state(work, client), len(draws), work.local.before
        factor, total = 1.0, 0.0
        self._enter(work, [client], [draws])
        y = algorithm.local_init(b, c)
        for k, draw in enumerate(draws):
            at("train", work.round)
            oracle.at([draw])
            factor = setup.schedule.factor(work.round, setup.rounds, k, before + k) * work.local.lr_factor
            y = algorithm.local_step(y, b, c, oracle, StepInfo(work.round, k, steps, factor, before + k, total))
            total += factor
        msg, state = algorithm.local_finish(y, b, c,
                                            StepInfo(work.round, steps, steps, factor, before + steps, total))
        return Done([client], {name: v.unsqueeze(0) for name, v in msg.items()},
                    [] if work.prelude or _stateless(state) else [state],
                    steps, [float(oracle.loss[0]) / max(oracle.calls, 1)])

    def _stacks(self, work: Work, clients: Sequence[int]) -> Iterator[Done]:
        """Yield what clients made of the work, in stacks for which there is room; tensors are [clients, P]."""
        sizes, local = self.setup.task.sizes, work.local
        room = self.oracle.room(local.batch_for(self.largest))
        # Those with equally many steps stay together.
        order = sorted(clients, key=lambda m: (-local.steps_for(int(sizes[m])), m))
        for i in range(0, len(order), room):
            ids = order[i:i + room]
            draws = {m: self._draws(work, m) for m in ids}
            try:
                yield from self._stacked(work, draws)
            except FedlearnError:
                raise
            except Exception as e:
                for m in sorted(ids):   # who of them was it?
                    try:
                        list(self._stacked(work, {m: draws[m]}))
                    except Exception as own:
                        raise _failed(m, work, own) from own
                raise _failed(min(ids), work, e) from e

    def _stacked(self, work: Work, draws: Mapping[int, Sequence[Any]]) -> Iterator[Done]:
        """Yield what a stack of clients made of the work.

        It is sorted by the number of steps and shrinks as clients finish, so that nobody is stepped under a mask.
        """
        setup, oracle, algorithm, before = self.setup, self.oracle, work.algorithm_of(self.setup), work.local.before
        ids = sorted(draws, key=lambda m: (-len(draws[m]), m))
        counts = [len(draws[m]) for m in ids]
        b: Msg = {name: v.expand(len(ids), -1) for name, v in work.broadcast.items()}
        c = tree_map(lambda *parts: torch.stack(parts), *(self._state(work, m) for m in ids))
        steps = torch.tensor(counts).unsqueeze(1)
        self._enter(work, ids, [draws[m] for m in ids])
        y = algorithm.local_init(b, c)
        k, factor, total = 0, 1.0, 0.0
        while ids:
            while k < counts[-1]:
                at("train", work.round)
                oracle.at([draws[m][k] for m in ids])
                factor = setup.schedule.factor(work.round, setup.rounds, k, before + k) * work.local.lr_factor
                y = algorithm.local_step(y, b, c, oracle, StepInfo(work.round, k, steps, factor, before + k, total))
                k, total = k + 1, total + factor
            # The clients at the end of the stack have done their last step.
            left = sum(n > k for n in counts)
            done_y, done_b, done_c, done = tree_map(lambda t, left=left: t[left:], (y, b, c, steps))
            y, b, c, steps = tree_map(lambda t, left=left: t[:left], (y, b, c, steps))
            msg, state = algorithm.local_finish(done_y, done_b, done_c,
                                                StepInfo(work.round, k, done, factor, before + k, total))
            # A kept view of one row would keep the whole stack.
            states = [] if work.prelude or _stateless(state) else [tree_map(lambda t, i=i: t[i].clone(), state)
                                                   for i in range(len(ids) - left)]
            yield Done(ids[left:], msg, states, k, (oracle.loss[left:len(ids)] / max(oracle.calls, 1)).tolist())
            ids, counts = ids[:left], counts[:left]

    def peer(self, algorithm: PeerAlgorithm, work: Work, node: int, state: Tree) -> tuple[Tree, Record]:
        """Return a node's state after its local steps of a round, before it exchanges."""
        draws = self._draws(work, node)
        self._seed(work, node)
        self.oracle.enter([node], [draws])
        for k, draw in enumerate(draws):
            self.oracle.at([draw])
            t = work.local.before + k
            factor = self.setup.schedule.factor(work.round, self.setup.rounds, k, t)
            state = algorithm.local_step(state, self.oracle, StepInfo(work.round, k, len(draws), factor, t))
        loss = float(self.oracle.loss[0]) / max(self.oracle.calls, 1)
        sent = bytes_of(algorithm.outgoing(state))
        return state, Record(node, int(self.setup.task.sizes[node]), len(draws), 1.0, loss, sent, False)

    def _enter(self, work: Work, clients: Sequence[int], draws: Sequence[Sequence[Any]]) -> None:
        self.oracle.enter(clients, draws)
        if isinstance(self.oracle, Directed):
            self.oracle.follow([generator(self.setup.seed, "direction", work.key, m) for m in clients])

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


def _stateless(state: Tree) -> bool:
    return isinstance(state, tuple) and state == ()


def _failed(client: int, work: Work, e: Exception) -> ClientError:
    return ClientError(client, work.round, f"its local work failed with {type(e).__name__}: {e}")
