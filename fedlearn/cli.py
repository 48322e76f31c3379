"""The command line: ``fedlearn VERB ...``, the verbs at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from fedlearn import verbs
from fedlearn.arguments import Parser
from fedlearn.errors import ConfigError, DataError, FedlearnError, Stopped, one_of

ABOUT = "Federated optimisation with intermittent communication, on real processes."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0, or that of what went wrong, as docs/errors.md lists them."""
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except Stopped as stop:
        from fedlearn.running.perform import other_rank

        if not other_rank():
            print(" ".join(str(stop).split()), file=sys.stderr)
        return stop.code
    except FedlearnError as error:
        from fedlearn.running.perform import other_rank

        if not (isinstance(error, ConfigError | DataError) and other_rank()):  # rank 0 says the same
            print("error:", " ".join(str(error).split()), file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("interrupted; `fedlearn resume RUN` continues a run from its last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `fedlearn list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SystemExit as end:  # argparse, after --help or an error
        return int(end.code or 0)


def _main(argv: list[str]) -> int:
    top = Parser(prog="fedlearn", description=ABOUT, usage="fedlearn VERB ... | --version | --help",
                 epilog="verbs:\n" + "".join(f"  {name:<8} {about}\n" for name, (_, about) in VERBS.items())
                 + "\n`fedlearn VERB --help` tells more.")
    top.add_argument("--version", action="store_true", help="print the version and exit")
    if not argv:
        top.print_help()
        return 0
    verb, rest = argv[0], argv[1:]
    if verb in VERBS:
        trusted = verb not in GIVEN or "--trust" in rest or "partition" in rest
        if trusted and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # classes of the user's own, by _target_; also without `python -m`
        return VERBS[verb][0](rest)
    if not verb.startswith("-"):
        top.error(f"found verb {verb!r}; allowed: {one_of(VERBS, verb)}")
    if top.parse_args(argv).version:
        from fedlearn import __version__

        print("fedlearn", __version__)
    return 0


GIVEN = ("resume", "show")  # verbs that read a run folder, which may have been given to the user
VERBS = {"run": (verbs.run, "run an experiment; Hydra overrides follow"),
         "resume": (verbs.resume, "continue a run to the result of an undisturbed one"),
         "list": (verbs.list_options, "list algorithms, tasks, heterogeneity levels, backends, ..."),
         "show": (verbs.show, "show a run, or how a task's data is split over clients"),
         "chaos": (verbs.chaos, "rehearse failures: the same run under faults on purpose"),
         "split": (verbs.split, "split a task's data over machines, which keep it"),
         "token": (verbs.token, "write a new secret, for a run's ranks on several hosts")}
