"""What the rendezvous store holds: its keys, who waits for them, and who was not let in."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from .wire import LONGEST, Refused

LINES, PERIOD = 10, 60.0   # lines of log about strangers in so many seconds
OK, WRONG, LATE = b"ok", b"wrong", b"late"


class Waiting:
    """Somebody who waits for keys; ``answer`` is set, and ``call`` called, when all have values or time is up."""

    def __init__(self, verb: bytes, keys: Sequence[bytes], call: Callable[[], None], until: float = 0.0) -> None:
        self.verb, self.keys, self.call, self.until = verb, keys, call, until
        self.answer: list[bytes] | None = None


class Table:
    """Keys and values, and who waits for them; any thread may use it."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.waiting: dict[bytes, list[Waiting]] = {}   # under the first key that each misses
        self.lock = threading.RLock()

    def do(self, words: Sequence[bytes]) -> list[bytes]:
        """Do what a question asks for, and return the answer."""
        match list(words):
            case [b"set", *pairs] if pairs and len(pairs) % 2 == 0:
                with self.lock:
                    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                        self._put(key, value)
                return [OK]
            case [b"check", *keys]:
                with self.lock:
                    return [OK, _truth(all(key in self.values for key in keys))]
            case [b"add", key, amount]:
                with self.lock:
                    try:
                        total = b"%d" % (int(self.values.get(key, b"0")) + int(amount))
                    except ValueError:
                        return [WRONG, b"the value of %s is no number" % key]
                    self._put(key, total)
                return [OK, total]
            case [b"append", key, value]:
                with self.lock:
                    longer = self.values.get(key, b"") + value
                    if len(longer) > LONGEST // 2:
                        return [WRONG, b"the value of %s gets too long" % key]
                    self._put(key, longer)
                return [OK]
            case [b"swap", key, expected, desired]:
                with self.lock:
                    found = self.values.get(key)
                    if found == expected or (found is None and not expected):
                        self._put(key, desired)
                        found = desired
                return [OK, expected if found is None else found]
            case [b"delete", key]:
                with self.lock:
                    return [OK, _truth(self.values.pop(key, None) is not None)]
            case [b"count"]:
                return [OK, b"%d" % len(self.values)]
        raise Refused("a question that is not understood")

    def wait(self, waiting: Waiting) -> None:
        """Answer as soon as all of somebody's keys have values, which may be at once."""
        with self.lock:
            missing = next((key for key in waiting.keys if key not in self.values), None)
            if missing is not None:
                self.waiting.setdefault(missing, []).append(waiting)
                return
            took = [self.values[key] for key in waiting.keys] if waiting.verb == b"take" else []
            waiting.answer = [OK, *took]
        waiting.call()

    def forget(self, waiting: Waiting) -> None:
        """Let somebody wait no longer."""
        with self.lock:
            for key in [key for key, queue in self.waiting.items() if waiting in queue]:
                self.waiting[key].remove(waiting)
                if not self.waiting[key]:
                    del self.waiting[key]

    def _put(self, key: bytes, value: bytes) -> None:
        self.values[key] = value
        for waiting in self.waiting.pop(key, ()):
            self.wait(waiting)


class Refusals:
    """Who was refused: ``count`` of them all, the ``recent`` ones, and a log of few lines."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log, self.count, self.recent = log, 0, deque[tuple[str, str]](maxlen=32)
        self.lines = self.hidden = 0
        self.since = time.monotonic()

    def note(self, where: str, address: str, what: str) -> None:
        """Note that somebody at an address was refused, and why."""
        self.count += 1
        self.recent.append((address, what))
        self.look()
        if self.lines < LINES:
            self.lines += 1
            self.log(f"the rendezvous store at {where} refused a connection from {address}: {what}")
        else:
            self.hidden += 1

    def look(self, end: bool = False) -> None:
        """Log how many were not logged, when it is time."""
        if end or time.monotonic() - self.since > PERIOD:
            if self.hidden:
                self.log(f"the rendezvous store refused {self.hidden} more connections")
            self.lines = self.hidden = 0
            self.since = time.monotonic()


def _truth(value: bool) -> bytes:
    return b"1" if value else b"0"
