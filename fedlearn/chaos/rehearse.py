"""The verb: an undisturbed run, then trials until enough faults were injected or the time is over."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from ..errors import ConfigError, FedlearnError, in_range
from . import network
from .hosts import across
from .report import Rehearsal, failures, limits_of, line_of, table, totals, write
from .schedule import Scene, trials
from .trial import Setting, Trial, quoted, run

EXAMPLES = """examples:
  fedlearn chaos algorithm=scaffold backend=torchrun backend.workers=3
  fedlearn chaos backend=ray rounds=30 --faults 50 --seed 7
  fedlearn chaos backend=torchrun --kinds kill,freeze --minutes 2
  fedlearn chaos backend=torchrun --kinds cut            (as root: hosts are network namespaces)

faults:
  kill     a worker or the coordinator gets SIGKILL, in the middle of a round, between rounds, around a checkpoint
  freeze   a worker is stopped (SIGSTOP)          hang     a worker never comes back from a client's work
  slow     a worker loses half a second           drop     a worker's answer is lost with its connection
  corrupt  a bit of a worker's answer flips       full     no space is left when the run's files are written
  cut      a host's link goes down, longer than anybody waits, and comes back
"""
PATIENCE = 60.0     # seconds that a command may take besides what the undisturbed run took
LIMITS = ("backend.timeout", "backend.hang")    # set for faults that only show when they are over
LEAST, MOST = 6, 30     # seconds of them: as long as workers took to start, within these
DOWN = 4                # times its limit after which a link that was cut comes up again at the latest


@dataclass(frozen=True)
class Asked:
    """What a rehearsal was asked for."""

    overrides: tuple[str, ...] = ()
    faults: int = 20
    seed: int = 0
    kinds: tuple[str, ...] = ()
    minutes: float = 10.0
    out: Path | None = None
    keep: bool = False
    config_dir: Path | None = None

    def __post_init__(self) -> None:
        in_range("--faults", self.faults, least=1, whole=True)
        in_range("--seed", self.seed, least=0, whole=True)
        in_range("--minutes", self.minutes, above=0)


def main(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """Rehearse as the command line says; 0 if every fault was survived with the undisturbed hash and no orphan."""
    parser.add_argument("overrides", nargs="*", metavar="override", help="of the run, as for `fedlearn run`")
    parser.add_argument("--faults", type=int, default=20, metavar="N", help="inject so many (20)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the schedule of faults (0)")
    parser.add_argument("--kinds", default="", metavar="KIND,...", help="only these (all that can happen, but cut)")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="start no run after so long (10)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="new folder of the report (runs/chaos/<name>-<time>)")
    parser.add_argument("--keep", action="store_true", help="keep the folders of runs that went well, too")
    args = parser.parse_intermixed_args(argv)
    kinds = tuple(filter(None, args.kinds.split(",")))
    asked = Asked(tuple(args.overrides), args.faults, args.seed, kinds, args.minutes, args.out, args.keep,
                  args.config_dir)
    with ended_by_sigterm():
        try:
            rehearsal, folder = rehearse(asked, partial(print, flush=True))
        except KeyboardInterrupt:
            print("interrupted; the run under way was ended, chaos.md tells of those before", file=sys.stderr)
            return 130
    print(f"\n{table(rehearsal.judged)}\n\n{totals([rehearsal])}{limits_of(rehearsal)}\nreport  {folder / 'chaos.md'}")
    for text in failures(rehearsal):
        print("failed ", text)
    if not rehearsal.injected:
        print("failed  no fault was reached: give the run more rounds, or more minutes")
    return 0 if rehearsal.good else 1


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: no trial outlives the rehearsal."""
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def rehearse(asked: Asked, say: Callable[[str], Any]) -> tuple[Rehearsal, Path]:
    """Run undisturbed, then under faults; return what came of it and where it is written down.

    Raises:
        ConfigError: if the configuration, a kind of fault or the folder cannot be used.
        FedlearnError: if the undisturbed run fails.
    """
    from ..config.compose import compose

    if "RANK" in os.environ:
        raise ConfigError("chaos", f"rank {os.environ['RANK']} of torchrun", "one process, without torchrun",
                          "It starts every run by itself; with backend=torchrun these start their ranks.")
    cfg = compose(list(asked.overrides), asked.config_dir)
    if cfg.faults is not None:
        raise ConfigError("faults", "a schedule", "null with chaos", "It draws its own, from --seed.")
    scene_of(cfg).kinds(asked.kinds)     # before anything runs
    if "cut" in asked.kinds and (reason := network.available()):
        raise ConfigError("--kinds", "cut", "where network namespaces can be made", reason)
    folder = _folder(asked.out or Path(cfg.runs) / "chaos" / f"{cfg.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    more = ("--config-dir", str(asked.config_dir.resolve())) if asked.config_dir else ()
    began, setting = time.monotonic(), Setting((*more, *asked.overrides), folder, 60 * asked.minutes + PATIENCE)
    undisturbed = run(setting, "undisturbed")
    if not undisturbed.ended:
        raise FedlearnError(f"the undisturbed run failed: {undisturbed.attempts[-1].last_words or 'it said nothing'}; "
                            f"all of it is in {undisturbed.home}")
    say(f"undisturbed  {undisturbed.seconds:5.1f} s, sha256 {undisturbed.sha256}")
    scene = scene_of(cfg, undisturbed)
    limit = limit_of(undisturbed)
    limits = tuple(f"{key}={limit}" for key in LIMITS if _has(cfg, key))
    setting = replace(setting, patience=PATIENCE + 10 * undisturbed.seconds + 10 * limit, limits=limits)
    rehearsal = Rehearsal(" ".join(["fedlearn chaos", shlex.join(asked.overrides)]).strip(), asked.seed, undisturbed,
                          limits=limits)
    kinds, scheduled = scene.kinds(asked.kinds), 0
    for number, drawn in enumerate(trials(scene, kinds, asked.seed), 1):
        faults = drawn[:asked.faults - rehearsal.injected]
        scheduled += len(faults)
        name = f"trial-{number:03d}"
        cut = next((fault for fault in faults if fault.kind == "cut"), None)
        with across(scene.workers, cut, DOWN * limit) if cut else nullcontext() as launch:
            trial = run(_with_token(setting, cfg) if cut else setting, name, faults, launch)
        rehearsal.trials.append(trial)
        rehearsal.seconds = time.monotonic() - began
        say(line_of(trial, undisturbed))
        write(rehearsal, folder)
        if not asked.keep and trial not in rehearsal.failed:
            shutil.rmtree(trial.home)
        # A schedule that is hardly ever reached comes to an end, too.
        enough = rehearsal.injected >= asked.faults or scheduled >= 2 * asked.faults + 10
        if enough or rehearsal.seconds > 60 * asked.minutes:
            break
    if not asked.keep and rehearsal.good:
        shutil.rmtree(undisturbed.home)
        (folder / "token").unlink(missing_ok=True)
    return rehearsal, folder


def _with_token(setting: Setting, cfg: Any) -> Setting:
    """Give ranks on several hosts the secret that they need to meet, if the configuration names none."""
    from ..backends.torchrun.token import write_token

    if cfg.backend.token is not None:
        return setting
    path = setting.folder / "token"
    if not path.exists():
        write_token(path)
    return replace(setting, overrides=(*setting.overrides, f"backend.token={quoted(path)}"))


def scene_of(cfg: Any, undisturbed: Trial | None = None) -> Scene:
    """Return what a configuration, and the undisturbed run of it, say about the faults that can happen."""
    name = str(cfg.backend["_target_"]).rpartition(".")[2]
    workers = int(cfg.backend.get("workers", 1))
    hang = (limit_of(undisturbed) if undisturbed else LEAST) if _has(cfg, "backend.hang") else 0
    return Scene(name, workers, int(cfg.rounds), int(cfg.checkpoint.every), _large(undisturbed), hang,
                 name == "Torchrun" and workers > 1)


def limit_of(undisturbed: Trial) -> int:
    """Return how many seconds a silent worker is waited for: as many as all took to start, within bounds."""
    first = min((when for _, when in undisturbed.rounds), default=0.0)
    return min(MOST, max(LEAST, ceil(first - undisturbed.attempts[0].began)))


def _large(undisturbed: Trial | None) -> bool:
    """Return whether torchrun ranks add partial sums up apart from their answers, as they do with large ones."""
    from ..backends.torchrun.bundle import SMALL

    folder = undisturbed and undisturbed.run_folder()
    lines = [line for line in folder.metrics() if line.get("clients") and line.get("bytes_up")] if folder else []
    # The sum has eight bytes for four of the upload.
    return bool(lines) and 2 * lines[-1]["bytes_up"] / lines[-1]["clients"] > SMALL


def _has(cfg: Any, key: str) -> bool:
    section, _, name = key.partition(".")
    return name in cfg[section]


def _folder(folder: Path) -> Path:
    """Make the folder of a rehearsal.

    Raises:
        ConfigError: if it cannot be made, or holds something already.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError("--out", str(folder), "a new or an empty folder")
    except OSError as error:
        raise ConfigError("--out", str(folder), "a folder that can be made",
                          f"The system says: {error.strerror}.") from None
    return folder.resolve()


