"""The local work of clients, one after another or in stacks: the only caller of an algorithm's ``local_*``.

A client's local work is a pure function of (broadcast, client state, client data, seed, round,
client). Its mini-batches are drawn from a stream keyed by the last three, so it does not
matter which worker runs a client, when, or how often.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import torch

from ..contracts import Msg, PeerAlgorithm, ServerAlgorithm, StepInfo, Tree
from ..data.store import DatasetStore
from ..errors import ClientError, LateReply
from ..faults import arm, at
from ..oracles.directions import Directed
from ..seeds import generator, torch_seed
from ..vectors import tree_map
from ..work import Record, Setup, Work, bytes_of
from .stacking import oracle_for
from .states import States
from .watch import Found, InStep, Late, Timed, Watched, blamed, place

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


class Local:
    """Runs clients one after another, or in stacks where the setup says so."""

    def __init__(self, setup: Setup, through: bool = False) -> None:
        torch.set_num_threads(setup.threads)
        arm(setup.faults)
        self.setup = setup
        self.steps_done = 0     # also those that are only begun: who looks on sees that it goes on
        self.oracle: Any = oracle_for(setup)
        if getattr(setup.algorithm, "directions", False):
            self.oracle = Directed(self.oracle)
        # The same for every worker, so that no stack shows who else is in it.
        self.largest = int(setup.task.sizes.max()) if setup.stack else 0
        self.states: States | None = None
        self.lenient = setup.on_bad_update != "stop"
        self.timed: tuple[Work | None, float] = None, 0.0   # the work that has a deadline, and that
        if isinstance(setup.algorithm, ServerAlgorithm):
            self.first = setup.algorithm.client_init(setup.task.initial(setup.seed))
            self.states = States(self.first, setup.states, through, setup.state_memory * 2**20)

    def _drawn(self, work: Work, clients: Sequence[int], refused: list[ClientError] | None) -> dict[int, Sequence[Any]]:
        """Return the draws of clients, but of those from whose data none can be had."""
        drawn = {}
        for m in clients:
            try:
                drawn[m] = self._draws(work, m)
            except Exception as e:
                self._leave_out(blamed(e, m, work, "when its mini-batches were drawn"), refused)
        return drawn

    def _one_by_one(self, work: Work, clients: Sequence[int], refused: list[ClientError] | None) -> Iterator[Done]:
        """Yield what clients made of the work; tensors are [P]."""
        for i in range(0, len(clients), AHEAD):
            drawn = self._drawn(work, clients[i:i + AHEAD], refused)
            with suppress(Exception):   # it will be met again, by the client that it comes from
                if hasattr(self.oracle, "expect"):
                    self.oracle.expect(list(drawn), list(drawn.values()))
            for m, draws in drawn.items():
                self._seed(work, m)
                try:
                    yield self._alone(work, m, draws)
                except Late as e:
                    self._leave_out(LateReply(m, work.round, f"{e}"), refused)
                except Exception as e:
                    self._leave_out(blamed(e, m, work), refused)

    def _algorithm(self, work: Work) -> Any:
        """Return the algorithm that works, looking at the clock where there is a deadline."""
        algorithm = work.algorithm_of(self.setup)
        if work.deadline is None:
            return algorithm
        if self.timed[0] is not work:
            self.timed = work, monotonic() + work.deadline
        return Timed(algorithm, self.timed[1])

    def _alone(self, work: Work, client: int, draws: Sequence[Any], watched: Watched | None = None) -> Done:
        setup, oracle, algorithm, b = self.setup, self.oracle, watched or self._algorithm(work), work.broadcast
        c, steps, before = self._state(work, client), len(draws), work.local.before
        k, factor, total = -1, 1.0, 0.0
        try:
            self._enter(work, [client], [draws])
            y = algorithm.local_init(b, c)
            for k, draw in enumerate(draws):
                self.steps_done += 1
                at("train", work.round)
                oracle.at([draw])
                factor = setup.schedule.factor(work.round, setup.rounds, k, before + k) * work.local.lr_factor
                y = algorithm.local_step(y, b, c, oracle, StepInfo(work.round, k, steps, factor, before + k, total))
                total += factor
        except (Late, Found):
            raise
        except Exception as e:
            raise InStep(k, steps) from e
        msg, state = algorithm.local_finish(y, b, c,
                                            StepInfo(work.round, steps, steps, factor, before + steps, total))
        return Done([client], {name: v.unsqueeze(0) for name, v in msg.items()},
                    [] if work.prelude or _stateless(state) else [state],
                    steps, [float(oracle.loss[0]) / max(oracle.calls, 1)])

    def _stacks(self, work: Work, clients: Sequence[int], refused: list[ClientError] | None) -> Iterator[Done]:
        """Yield what clients made of the work, in stacks for which there is room; tensors are [clients, P]."""
        sizes, local = self.setup.task.sizes, work.local
        room = self.oracle.room(local.batch_for(self.largest))
        # Those with equally many steps stay together.
        order = sorted(clients, key=lambda m: (-local.steps_for(int(sizes[m])), m))
        for i in range(0, len(order), room):
            draws = self._drawn(work, order[i:i + room], refused)
            while draws:
                try:
                    for done in self._stacked(work, draws):
                        for m in done.clients:
                            del draws[m]
                        yield done
                        del done
                except Late as e:
                    for m in sorted(draws):
                        self._leave_out(LateReply(m, work.round, f"{e}"), refused)
                    draws = {}
                except Exception as e:
                    for m in self._culprits(work, draws, e, refused):
                        del draws[m]    # the others of the stack run again without it

    def _culprits(self, work: Work, draws: Mapping[int, Sequence[Any]], e: Exception,
                  refused: list[ClientError] | None) -> list[int]:
        """Return those of a stack that failed whose work fails alone, too."""
        found: list[int] = []
        for m in sorted(draws):
            try:
                deque(self._stacked(work, {m: draws[m]}), 0)
            except Late:
                return found
            except Exception as own:
                self._leave_out(blamed(own, m, work), refused)
                found.append(m)
        if not found:
            raise blamed(e, min(draws), work)
        return found

    def _stacked(self, work: Work, draws: Mapping[int, Sequence[Any]], watched: Watched | None = None
                 ) -> Iterator[Done]:
        """Yield what a stack of clients made of the work.

        It is sorted by the number of steps and shrinks as clients finish, so that nobody is stepped under a mask.
        """
        setup, oracle, algorithm, before = self.setup, self.oracle, watched or self._algorithm(work), work.local.before
        ids = sorted(draws, key=lambda m: (-len(draws[m]), m))
        counts = [len(draws[m]) for m in ids]
        b: Msg = {name: v.expand(len(ids), -1) for name, v in work.broadcast.items()}
        c = tree_map(lambda *parts: torch.stack(parts), *(self._state(work, m) for m in ids))
        steps = torch.tensor(counts).unsqueeze(1)
        k, factor, total = -1, 1.0, 0.0
        try:
            self._enter(work, ids, [draws[m] for m in ids])
            y, k = algorithm.local_init(b, c), 0
        except Exception as e:
            raise InStep(k, counts[0]) from e
        while ids:
            try:
                while k < counts[-1]:
                    self.steps_done += 1
                    at("train", work.round)
                    oracle.at([draws[m][k] for m in ids])
                    factor = setup.schedule.factor(work.round, setup.rounds, k, before + k) * work.local.lr_factor
                    y = algorithm.local_step(y, b, c, oracle, StepInfo(work.round, k, steps, factor, before + k, total))
                    k, total = k + 1, total + factor
            except (Late, Found):
                raise
            except Exception as e:
                raise InStep(k, counts[0]) from e
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
        draws = self._drawn(work, [node], None)[node]
        self._seed(work, node)
        k = -1
        try:
            self.oracle.enter([node], [draws])
            for k, draw in enumerate(draws):
                self.oracle.at([draw])
                t = work.local.before + k
                factor = self.setup.schedule.factor(work.round, self.setup.rounds, k, t)
                state = algorithm.local_step(state, self.oracle, StepInfo(work.round, k, len(draws), factor, t))
        except Exception as e:
            raise blamed(e, node, work, place(k, len(draws))) from e
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

    def _leave_out(self, error: ClientError, refused: list[ClientError] | None) -> None:
        """Note what a client is left out for, or raise it."""
        if refused is None or not (self.lenient or isinstance(error, LateReply)):
            raise error
        error.__cause__ = None  # its traceback holds all that the client worked on
        refused.append(error)


def _stateless(state: Tree) -> bool:
    return isinstance(state, tuple) and state == ()
