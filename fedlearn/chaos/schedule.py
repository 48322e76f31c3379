"""Which faults happen in which rounds of which trial: a pure function of the seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from ..errors import ConfigError, one_of
from ..faults import COORDINATOR, KINDS, Fault

T = TypeVar("T")

# class of a backend -> points that its workers pass in every round
POINTS = {"InProcess": (), "Torchrun": ("receive", "train", "upload", "reduce", "idle"),
          "RayActors": ("receive", "train", "upload", "reduce", "idle")}
SAVING = ("checkpoint", "commit", "disk", "line")     # points whose rounds are those that are done
SLOW = 0.5      # seconds that a slow worker loses
PATIENT = 10    # times its limit that a worker hangs
MOST = 5        # faults in one trial


@dataclass(frozen=True)
class Scene:
    """What of a run decides which faults can happen in it, and when.

    ``backend`` is the name of its class, ``every`` the rounds between checkpoints; with ``large`` partial sums are
    added up by themselves, after the answers. ``hang`` is how many seconds a worker may take over a client (0: the
    backend has no such limit), ``hosts`` whether there are hosts whose links can be cut.
    """

    backend: str
    workers: int
    rounds: int
    every: int
    large: bool = False
    hang: float = 0.0
    hosts: bool = False

    def points(self) -> tuple[str, ...]:
        """Return the points that a run passes in which a fault can fire."""
        alone = self.backend == "Torchrun" and self.workers == 1
        reached = () if alone else POINTS.get(self.backend, ())
        small = self.backend == "Torchrun" and not self.large
        return (*(p for p in reached if p != "reduce" or not small), *COORDINATOR)

    def possible(self) -> dict[str, tuple[str, ...]]:
        """Return by kind of fault the points at which it can happen here."""
        here = self.points()
        found = {kind: tuple(p for p in points if p in here) for kind, points in KINDS.items()}
        missing = [kind for kind, there in (("hang", self.hang > 0), ("cut", self.hosts)) if not there]
        return {kind: points for kind, points in found.items() if points and kind not in missing}

    def slots(self, point: str) -> range | list[int]:
        """Return the rounds in which a point is passed, as a fault names them."""
        if point == "line":
            return range(1, self.rounds + 1)
        if point in SAVING:
            regular = range(self.every, self.rounds, self.every) if self.every else []
            return [*regular, self.rounds]
        return range(self.rounds)

    def kinds(self, asked: Sequence[str]) -> list[str]:
        """Return the kinds of faults that are to happen: those asked for, else all that can but a cut link.

        Raises:
            ConfigError: for one that does not exist, or cannot happen here.
        """
        possible = self.possible()
        for kind in asked:
            if kind not in KINDS:
                raise ConfigError("--kinds", kind, one_of(KINDS, kind))
            if kind not in possible:
                where = f"{self.workers} worker{'s' * (self.workers != 1)} of {self.backend}"
                raise ConfigError("--kinds", kind, f"with {where}, {one_of(possible)}", WHY_NOT.get(kind, ""))
        return sorted(asked or (kind for kind in possible if kind != "cut"))


WHY_NOT = {"hang": "Its backend has no limit on how long a client may take.",
           "cut": "It needs backend=torchrun with two workers or more, and to be asked for by name."}
ALONE = {"cut"}     # kinds that have a trial for themselves


def trials(scene: Scene, kinds: Sequence[str], seed: int) -> Iterator[tuple[Fault, ...]]:
    """Yield the faults of one trial after another, without an end.

    Kinds are dealt like cards, half of them kills, and so are the points of a kind: a few trials meet all of them.
    Within a trial no two faults fall into the same round, as long as there are others.
    """
    rng = Random(f"chaos/{seed}")
    possible = scene.possible()
    cards = [kind for kind in sorted(kinds)
             for _ in range(len(possible[kind]) if kind == "kill" else -(-len(possible[kind]) // 3))]
    deck = _deal(rng, cards)
    points = {kind: _deal(rng, possible[kind]) for kind in sorted(kinds)}
    most = max(1, min(MOST, scene.rounds // 3))
    while True:
        size, free = rng.randint(min(3, most), most), set(range(scene.rounds))
        faults: list[Fault] = []
        while len(faults) < size:
            kind = next(deck)
            if kind in ALONE:
                yield (_fault(scene, kind, next(points[kind]), set(free), rng),)
            else:
                faults.append(_fault(scene, kind, next(points[kind]), free, rng))
        yield tuple(sorted(faults, key=lambda fault: (fault.round, fault.point)))


def _fault(scene: Scene, kind: str, point: str, free: set[int], rng: Random) -> Fault:
    """Draw the round of a fault, and take it from those that are free."""
    shift = int(point in SAVING)    # the checkpoint of round 10 follows round 9 (from 0)
    slots = scene.slots(point)
    slot = rng.choice([s for s in slots if s - shift in free] or list(slots))
    free.discard(slot - shift)
    seconds: Mapping[str, float] = {"slow": SLOW, "hang": PATIENT * scene.hang, "cut": 1.0}
    return Fault(kind, point, slot, seconds.get(kind, 1.0))


def _deal(rng: Random, items: Sequence[T]) -> Iterator[T]:
    """Yield all items in some order, then all in another, and so on."""
    while items:
        yield from rng.sample(list(items), len(items))
