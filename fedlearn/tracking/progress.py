"""Progress of a run as it goes: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from io import TextIOBase
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import ConfigError, one_of
from . import human_bytes, human_seconds
from .run_folder import RunFolder

if TYPE_CHECKING:
    from rich.live import Live

KINDS = ("auto", "bar", "plain", "none")
EVERY = 10.0  # seconds between plain lines, unless another tenth of the rounds is done


class Progress:
    """A tracker that shows round, losses, accuracy, bytes and times on ``file`` (standard error).

    ``kind`` is auto (a bar on a terminal, else plain), bar, plain or none. If ``file`` is closed or
    its reader goes away, the run goes on unseen.

    Raises:
        ConfigError: if ``kind`` is none of these.
    """

    def __init__(self, kind: str, rounds: int, title: str = "", file: TextIO | None = None) -> None:
        if kind not in KINDS:
            raise ConfigError("progress", kind, one_of(KINDS, kind))
        stream = _Quiet(sys.stderr if file is None else file)
        if kind == "auto":
            kind = "bar" if stream.isatty() and os.environ.get("TERM") != "dumb" else "plain"
        self.kind, self.rounds, self.title, self.stream = kind, rounds, title, stream
        self.latest: dict[str, float] = {}  # the last value of every metric: evaluations may be rare
        self.up = self.down = self.evaluated = self.aside = 0.0
        self.done = self.first = 0
        self.began = self.spoke = monotonic()
        self.live: Live | None = None
        self.said = ""  # what the bar says besides

    def started(self, folder: Path | None, config: Mapping[str, Any]) -> None:
        """Start the clock; a run that goes on keeps the totals of its earlier rounds."""
        self.began = self.spoke = monotonic()
        for line in RunFolder(folder).metrics() if folder else ():
            self._take(line)
        self.first, self.evaluated, self.aside = self.done, 0.0, 0.0
        if self.kind == "bar":
            self._open_bar()

    def round(self, metrics: Mapping[str, Any]) -> None:
        """Show the metrics of a round."""
        tenths = 10 * self.done // max(self.rounds, 1)
        self._take(metrics)
        if self.kind == "bar":
            if self.live is None:
                self._open_bar()
            assert self.live is not None
            self.live.update(self, refresh=True)
        elif self.kind == "plain":
            due = monotonic() - self.spoke >= EVERY or 10 * self.done // max(self.rounds, 1) > tenths
            if due or self.done <= self.first + 1 or self.done == self.rounds:
                self.spoke = monotonic()
                self.stream.write("  ".join([self._head(), *self._facts(), self._times()]) + "\n")
                self.stream.flush()

    def say(self, text: str) -> None:
        """Say something on standard error, or below the bar; a signal's handler may, in the middle of anything."""
        self.said = text
        if self.live is None:
            with suppress(OSError, ValueError):
                os.write(sys.stderr.fileno(), f"{text}\n".encode())

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Leave the last state on the screen."""
        self.close()

    def close(self) -> None:
        """Give the terminal back; more than once is fine."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, metrics: Mapping[str, Any]) -> None:
        self.done = int(metrics.get("round", self.done))
        self.up += metrics.get("bytes_up", 0)
        self.down += metrics.get("bytes_down", 0)
        seconds = metrics.get("seconds", {})
        self.evaluated += seconds.get("evaluate", 0.0)
        self.aside += seconds.get("aside", 0.0)
        self.latest |= {k: v for k, v in metrics.items() if isinstance(v, int | float)}

    def _head(self) -> str:
        counter = f"round {self.done:>{len(str(self.rounds))}}/{self.rounds}"
        return f"{self.title}  {counter}" if self.title else counter

    def _facts(self) -> list[str]:
        facts = []
        if "train_loss" in self.latest:
            facts.append(f"train loss {self.latest['train_loss']:.4g}")
        if "test_accuracy" in self.latest:
            facts.append(f"test accuracy {self.latest['test_accuracy']:.1%}")
        elif other := [k for k in sorted(self.latest) if k.startswith("test_")]:
            name = "test_loss" if "test_loss" in other else other[0]
            facts.append(f"{name.replace('_', ' ')} {self.latest[name]:.4g}")
        if self.up or self.down:
            facts.append(f"up {human_bytes(self.up)}  down {human_bytes(self.down)}")
        return facts

    def _times(self) -> str:
        gone, done = monotonic() - self.began, self.done - self.first
        text = human_seconds(gone)
        parts = [("evaluation", self.evaluated), ("evaluation aside", self.aside)]
        if shown := [f"{name} {human_seconds(s)}" for name, s in parts if s >= 1]:
            text += f" ({', '.join(shown)})"
        if done > 0 and self.done < self.rounds:
            text += f"  left {human_seconds(gone / done * (self.rounds - self.done))}"
        return text

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.live import Live

        # The stream counts as a terminal: who says bar gets one. The refreshing thread keeps the clock going.
        console = Console(file=self.stream, force_terminal=True)  # type: ignore[arg-type]
        self.live = Live(self, console=console, refresh_per_second=2, redirect_stdout=False,
                         redirect_stderr=self.stream.isatty())
        self.live.start()

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        row = Table.grid(padding=(0, 2), expand=False)
        bar = ProgressBar(total=max(self.rounds, 1), completed=self.done, width=30)
        row.add_row(Text(self._head(), style="bold", no_wrap=True), bar, Text(self._times(), no_wrap=True))
        told = [*self._facts(), self.said] if self.said else self._facts()
        facts = Text("  " + "  ·  ".join(told), style="cyan", no_wrap=True, overflow="ellipsis")
        return Group(row, facts)


class _Quiet(TextIOBase):
    """A stream that stops writing, rather than fail the run, when nobody is there to read it."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            if self.stream is not None:
                self.stream.write(text)
        except UnicodeEncodeError:
            assert self.stream is not None
            self.stream.write(text.encode("ascii", "replace").decode())
        except (OSError, ValueError):
            self.stream = None
        return len(text)

    def flush(self) -> None:
        try:
            if self.stream is not None:
                self.stream.flush()
        except (OSError, ValueError):
            self.stream = None

    def isatty(self) -> bool:
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        if self.stream is None:
            raise OSError("closed")
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.stream, "encoding", None) or "utf-8"
