"""What the verbs of the command line have in common: a parser, its texts, and arguments that several verbs take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from fedlearn.config import catalog

OVERRIDES = """overrides:
  group=option      choose an option of a group, as in algorithm=scaffold
  group.key=value   set one of its keys, as in algorithm.lr=0.05
  key=value         set a setting of the run, as in rounds=100 or local.steps=10
  +key=value        add a key, for classes of your own
  --config-dir DIR  adds DIR/<group>/<name>.yaml to the options
"""


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Exit with 2 after one line on stderr."""
        self.exit(2, f"error: {message} (`{self.prog} --help` helps)\n")


def verb_parser(name: str, about: str, *after: str) -> Parser:
    """Return the parser of a verb; ``after`` are paragraphs below its arguments."""
    parser = Parser(prog=f"fedlearn {name}", description=about, epilog="\n".join(after))
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="a folder with more options")
    return parser


def add_run(parser: Parser, more: str = "") -> None:
    """Let a verb take a run folder, which may have been given to the user."""
    parser.add_argument("run", metavar="RUN", nargs="?", help=f"a run's folder, its name, its id or latest{more}")
    parser.add_argument("--runs", type=Path, default="runs", metavar="DIR", help="where runs are (runs)")
    parser.add_argument("--trust", action="store_true",
                        help="the run folder is yours: its configuration may name any class, also of this folder")


def groups_text() -> str:
    """List the groups and the names of their options, for the help."""
    known = catalog.options()
    wide = max(map(len, known), default=0)
    lines = (f"  {name:<{wide}}  {', '.join(options)}" for name, options in sorted(known.items()))
    return "groups and their options (`fedlearn list` describes them):\n" + "\n".join(lines) + "\n"
