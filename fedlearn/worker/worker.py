"""The worker: it runs clients, looks at what they send, and adds up what is good of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic

from ..contracts import Msg
from ..errors import ClientError, ConfigError, NonFiniteUpdate
from ..reducers.layout import Layout
from ..reducers.side_by_side import add_side_by_side
from ..work import Part, Record, Setup, Sum, Work, bytes_of
from .local import Done, Local
from .uploads import at_the_end, expected, judge, without
from .watch import Found, Watched, blamed, finite


class Worker(Local):
    """Runs clients and adds up their uploads, but for those that are to be left out."""

    def __init__(self, setup: Setup, through: bool = False) -> None:
        super().__init__(setup, through)
        self.asked: dict[bool, Layout | None] = {}      # of uploads, in preludes and in rounds proper
        self.looked_for: dict[bool, int] = {}           # the rounds in which these were found

    def reduce(self, work: Work, clients: Sequence[int], into: Sum) -> Part:
        """Run these clients of the work and add their weighted uploads to a sum, but for bad and late ones.

        Raises:
            ClientError: naming the client and the round, whatever went wrong in its work, unless bad updates are to be
                left out.
        """
        algorithm = work.algorithm_of(self.setup)
        weight = dict(zip(work.clients, work.weights, strict=True))
        share = into.most / len(work.clients) if self.lenient else None
        records: list[Record] = []
        refused: list[ClientError] = []
        for done in self._done(work, clients, refused):
            done, factors, peaks = self._good(work, done, weight, share, refused)
            if not done.clients:
                continue
            if algorithm.individual:
                add_side_by_side(into, done.msg, done.clients, work.clients, work.round, peaks)
            else:
                into.add_stack(done.msg, factors, done.clients, work.round, peaks)
            records += self._records(work, done, [weight[m] for m in done.clients])
            del done    # or its uploads would live until the next ones are there
        return Part(records, [self._explained(work, e) for e in refused])

    def replies(self, work: Work, clients: Sequence[int]) -> Iterator[tuple[int, Msg, Record]]:
        """Yield (client, upload, record) of these clients; an upload is valid until the next."""
        weight = dict(zip(work.clients, work.weights, strict=True))
        for done in self._done(work, clients, None):
            done, _, _ = self._good(work, done, weight, None, None)
            records = self._records(work, done, [weight[m] for m in done.clients])
            for i, record in enumerate(records):
                yield record.client, {name: v[i] for name, v in done.msg.items()}, record

    def _good(self, work: Work, done: Done, weight: Mapping[int, float], share: float | None,
              refused: list[ClientError] | None) -> tuple[Done, dict[str, list[float]], Sequence[float]]:
        """Return the good uploads of those that are done, their factors in the sum by name, and their largest entries.

        What is wrong with the others is noted in ``refused``, or raised where there is none or nobody is left out.
        """
        algorithm = work.algorithm_of(self.setup)

        def factors(clients: Sequence[int]) -> dict[str, list[float]]:
            weights, ones = [weight[m] for m in clients], [1.0] * len(clients)
            return {name: ones if algorithm.individual or name in algorithm.unweighted else weights
                    for name in done.msg}

        by_name = factors(done.clients)
        peaks, bad = judge(done.msg, by_name, done.clients, work.round, partial(self._asked, work), share,
                           self.setup.max_update_norm)
        if not bad:
            return done, by_name, peaks
        for error in bad.values():
            # A server that went astray is nobody's fault among the clients.
            astray = isinstance(error, NonFiniteUpdate) and not finite(dict(work.broadcast))
            if astray or refused is None or not self.lenient:
                raise self._explained(work, error)
            refused.append(error)
        kept = without(bad, range(len(done.clients)))
        done = Done(without(bad, done.clients), {name: v[kept] for name, v in done.msg.items()},
                    without(bad, done.states), done.steps, without(bad, done.losses))
        return done, factors(done.clients), without(bad, peaks)

    def _explained(self, work: Work, error: ClientError) -> ClientError:
        """Return an error with the local step at which a number that is none came up first.

        The client runs once more, watched: what it does is the same whenever it does it.
        """
        if not isinstance(error, NonFiniteUpdate) or (work is self.timed[0] and monotonic() > self.timed[1]):
            return error
        m, watched = error.client, Watched(work.algorithm_of(self.setup))
        since = "all its local steps were finite, what local_finish or the pipeline made of them was not"
        try:
            if not finite(dict(work.broadcast)):
                since = "the broadcast that it began from is so already"
            elif self.setup.stack:
                deque(self._stacked(work, {m: self._draws(work, m)}, watched), 0)
            else:
                self._seed(work, m)
                self._alone(work, m, self._draws(work, m), watched)
        except Found as e:
            since = str(e)
        except Exception:
            return error    # it says what it can
        found, _, advice = error.what.partition("; ")
        return type(error)(m, work.round, f"{found} ({since}); {advice}")

    def _asked(self, work: Work, found: Layout) -> Layout | None:
        """Return which uploads the algorithm asks for; None where that cannot be told beforehand.

        It is looked for again where others are found: an algorithm may ask for more in some rounds.
        """
        if self.asked.get(work.prelude) != found and self.looked_for.get(work.prelude) != work.round:
            setup, client = self.setup, work.clients[0]
            end = at_the_end(work.local, setup.schedule, work.round, setup.rounds, int(setup.task.sizes[client]))
            self.looked_for[work.prelude] = work.round
            known, failed = None, None
            for stepped in (False, True):   # most algorithms can say so without a step
                try:
                    known = expected(work.algorithm_of(setup), work.broadcast, self.first,
                                     list(setup.pipeline.values()), client, end, stepped)
                except ConfigError as e:
                    failed = e
                if known == found:
                    break
            if known is None and failed is not None and self.lenient:
                raise failed
            self.asked[work.prelude] = known
        return self.asked[work.prelude]

    def _records(self, work: Work, done: Done, weights: Sequence[float]) -> list[Record]:
        """Keep the clients' new states, and return what is known of their replies."""
        assert self.states is not None
        each, sizes = bytes_of(done.msg) // len(done.clients), self.setup.task.sizes
        for client, state in zip(done.clients, done.states, strict=False):
            self.states.put(client, work.key, state)
        return [Record(client, int(sizes[client]), done.steps, weight, loss, each, bool(done.states))
                for client, weight, loss in zip(done.clients, weights, done.losses, strict=True)]

    def _done(self, work: Work, clients: Sequence[int], refused: list[ClientError] | None) -> Iterator[Done]:
        """Yield what clients made of the work, as they send it: stages see one upload at a time.

        Clients whose work fails, or is not done in time, are left out.
        """
        stages = self.setup.pipeline.values()
        if self.states is not None:
            self.states.settle(work.versions)
        if expect := getattr(getattr(self.setup.task, "store", None), "expect", None):
            with suppress(Exception):   # it will be met again, by the client that it comes from
                expect(clients)     # the disk reads while the first of them train
        finished = (self._stacks if self.setup.stack else self._one_by_one)(work, clients, refused)
        if not stages:
            yield from finished
            return
        for done in finished:
            for i, client in enumerate(done.clients):
                msg: Msg = {name: v[i] for name, v in done.msg.items()}
                try:
                    for stage in stages:
                        msg = stage.encode(msg, client, work.round)
                except Exception as e:
                    self._leave_out(blamed(e, client, work), refused)
                    continue
                yield Done([client], {name: v.unsqueeze(0) for name, v in msg.items()}, done.states[i:i + 1],
                           done.steps, done.losses[i:i + 1])
