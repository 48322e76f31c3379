"""The verbs of the command line, each a function from its arguments to the exit code.

What a verb needs is imported by the verb: `fedlearn --help` shall not wait for torch.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlearn.arguments import OVERRIDES, Parser, add_run, groups_text, verb_parser
from fedlearn.config import catalog
from fedlearn.errors import DataError, FedlearnError, Stopped

if TYPE_CHECKING:
    from fedlearn.config.assemble import Parts
    from fedlearn.tracking.run_folder import RunFolder

EXAMPLES = """examples:
  fedlearn run
  fedlearn run algorithm=scaffold heterogeneity=dirichlet heterogeneity.alpha=0.1 rounds=100
  fedlearn run backend=ray backend.workers=2 cohort=5 local.steps=10
  fedlearn run pipeline=[clip] pipeline.clip.norm=2
  fedlearn run --cfg job algorithm=fedadam        (prints what would run)
"""


def run(argv: list[str]) -> int:
    """Compose, check and run an experiment, or print its configuration."""
    parser = verb_parser("run", "Run an experiment: one option of each group, and settings.",
                   OVERRIDES, groups_text(), EXAMPLES)
    parser.add_argument("overrides", nargs="*", metavar="override", help="what differs from the defaults")
    parser.add_argument("--cfg", choices=["job"], help="print the composed configuration, check it, and stop")
    args = parser.parse_intermixed_args(argv)
    from fedlearn.config.compose import compose

    cfg = compose(args.overrides, args.config_dir)
    if args.cfg:
        return _print_checked(cfg)
    return _perform(cfg, f"# fedlearn run {shlex.join(args.overrides)}\n")


def resume(argv: list[str]) -> int:
    """Continue a run from its newest good checkpoint."""
    from fedlearn.config.compose import RESUMABLE, recompose

    parser = verb_parser("resume", "Continue a run from its newest good checkpoint.",
                   f"overrides may change {', '.join(RESUMABLE)}; the result is the same wherever it runs.\n",
                   "examples:\n  fedlearn resume latest\n  fedlearn resume fedavg-digits backend=torchrun\n"
                   "  fedlearn resume runs/fedavg-digits/20261122-005601-a1b2c3 rounds=200\n")
    add_run(parser)
    parser.add_argument("overrides", nargs="*", metavar="override", help="what changes, as in backend=ray")
    args = parser.parse_intermixed_args(argv)
    if args.run is None:
        parser.error("found no RUN; allowed: a run's folder, its name, its id or latest")
    from fedlearn.tracking.run_folder import RunFolder

    folder = RunFolder.open(args.run, args.runs)
    text = folder.config_text()
    cfg = recompose(text, args.overrides, args.config_dir, trust=args.trust)
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    if args.overrides:
        header += f"# fedlearn resume {shlex.join([args.run, *args.overrides])}\n"
    return _perform(cfg, header, folder)


def show(argv: list[str]) -> int:
    """Show a run, finished or not, or how a task's data is split."""
    parser = verb_parser("show", "Show a run: partition, table and curves; or a partition without a run.",
                   "examples:\n  fedlearn show latest\n  fedlearn show fedavg-digits --cfg job\n"
                   "  fedlearn show partition task=digits heterogeneity=dirichlet heterogeneity.alpha=0.1\n")
    add_run(parser, ", or the word partition")
    parser.add_argument("overrides", nargs="*", metavar="override",
                        help="with partition: what to split and how")
    parser.add_argument("--cfg", choices=["job"], help="print the configuration only")
    parser.add_argument("--out", type=Path, metavar="PNG", help="with partition: the picture (partition.png)")
    args = parser.parse_intermixed_args(argv)
    if args.run is None:
        parser.error("found no RUN; allowed: a run's folder, its name, its id, latest, or the word partition")
    from fedlearn.config.assemble import parts
    from fedlearn.config.compose import compose, recompose

    if args.run == "partition":
        # A cohort plays no role; few clients shall not be refused because of its default.
        cfg = compose(["cohort=null", *args.overrides], args.config_dir)
        if args.cfg:
            return _print_checked(cfg)
        _show_partition(parts(cfg), args.out or Path("partition.png"))
        return 0
    if args.overrides or args.out:
        parser.error(f"found {' '.join([*args.overrides, *(['--out'] if args.out else [])])} with a run; "
                     "allowed: overrides and --out only with the word partition")
    from fedlearn.tracking.report import curves, refusals, table
    from fedlearn.tracking.run_folder import RunFolder

    folder = RunFolder.open(args.run, args.runs)
    text = folder.config_text()
    if args.cfg:
        print(text, end="")
        return 0
    made, metrics = parts(recompose(text, [], trust=args.trust)), folder.metrics()
    if hasattr(made.task, "load"):
        try:
            _show_partition(made, folder.path / "partition.png")
        except DataError as error:  # a run may be looked at where its data is not
            print("partition:", error)
        print()
    print(table([(str(made.settings.name), metrics)]))
    if refused := refusals(folder.events()):
        print(refused)
    if metrics:
        curves([(str(made.settings.name), metrics)], folder.path / "curves.png")
        print("\ncurves:", folder.path / "curves.png")
    print("config:", folder.config)
    print("".join(f"  {line[2:]}\n" for line in text.splitlines() if line.startswith("# ")), end="")
    return 0


def list_options(argv: list[str]) -> int:
    """Print the options of one group or of all, each with its description and citation."""
    parser = verb_parser("list", "List what can be chosen, each with one line and its citation.",
                   "examples:\n  fedlearn list\n  fedlearn list algorithms\n  fedlearn list heterogeneity\n"
                   "  fedlearn list optimizers     (for local.optimizer and server.optimizer)\n")
    parser.add_argument("group", nargs="?", help="a group, in the singular or the plural; without: all")
    args = parser.parse_args(argv)
    if args.group in ("optimizer", "optimizers"):
        return _list_optimizers()
    groups = catalog.options(args.config_dir)
    chosen = [catalog.group_named(args.group, groups)] if args.group else sorted(groups)
    for group in chosen:
        if not args.group:
            print(f"{group}:")
        wide = max(len(name) for name in groups[group])
        for option in groups[group].values():
            cite = f"  [{option.cite}]" if option.cite else ""
            traffic = f"  ({option.traffic})" if option.traffic and args.group else ""
            print(f"{'' if args.group else '  '}{option.name:<{wide}}  {option.about}{cite}{traffic}")
    return 0


def chaos(argv: list[str]) -> int:
    """Rehearse failures: a run under faults on purpose, compared with the undisturbed one."""
    from fedlearn.chaos import rehearse

    parser = verb_parser("chaos", "Rehearse failures: run undisturbed, then under faults on purpose, and compare.",
                   OVERRIDES, rehearse.EXAMPLES)
    return rehearse.main(parser, argv)


def split(argv: list[str]) -> int:
    """Split a task's data over machines, a folder for each of them."""
    parser = verb_parser("split", "Split a task's data over machines: OUT/1, OUT/2, ... hold some of the clients each, "
                   "OUT/coordinator only what all may know and the test set. Each is a folder for task=private.",
                   OVERRIDES, "examples:\n  fedlearn split data --machines 3 task=digits clients=30\n"
                   "  launch/compose.sh run torchrun --nodes 3 --data data task=private\n"
                   "\nHow machines write folders of their own data: docs/private-data.md.\n")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--machines", type=int, required=True, metavar="N", help="how many machines hold data")
    parser.add_argument("overrides", nargs="*", metavar="override", help="what to split and how")
    args = parser.parse_intermixed_args(argv)
    if args.machines < 1:
        parser.error(f"found --machines {args.machines}; allowed: a whole number from 1")
    from fedlearn.config import assemble
    from fedlearn.config.compose import compose
    from fedlearn.data.deal import deal

    made = assemble.parts(compose(["cohort=null", *args.overrides], args.config_dir))
    raw, store = assemble.split(made)
    try:
        held = deal(store, args.machines, args.out, raw.classes, raw.class_names, (raw.test_x, raw.test_y))
    except OSError as error:
        raise DataError(f"{args.out}: found {error.strerror}; allowed: a folder that can be made and written to, on a "
                        "disk with room; name another one") from None
    for i, clients in enumerate(held, 1):
        print(f"{args.out / str(i)}  {len(clients)} clients, {int(store.sizes[clients].sum())} samples")
    print(f"{args.out / 'coordinator'}  no client, {len(raw.test_x)} test samples")
    return 0


def token(argv: list[str]) -> int:
    """Write a new secret, by which the ranks of a run on several hosts know one another."""
    parser = Parser(prog="fedlearn token", description="Write a new secret into a file, for the ranks of a run on "
                    "several hosts: give every host the same file, and name it with backend.token=FILE.")
    parser.add_argument("file", type=Path, metavar="FILE", help="a file that does not exist yet; only you can read it")
    args = parser.parse_args(argv)
    from fedlearn.backends.torchrun.token import write_token

    write_token(args.file)
    return 0


def _list_optimizers() -> int:
    """Print the optimisers that can be named, where each comes from, and whether clients may be stacked."""
    from fedlearn.modifiers.optimizer_names import known

    found = known()
    name, path = max(map(len, found)), max(len(o.path) for o in found.values())
    for one in found.values():
        print(f"{one.name:<{name}}  {one.path:<{path}}  {one.about}")
    if not any(one.path.startswith("pytorch_optimizer.") for one in found.values()):
        print("\nmore after: pip install 'fedlearn[optimizers]'")
    return 0


def _perform(cfg: Any, header: str, folder: RunFolder | None = None) -> int:
    """Run a configuration and print the result."""
    from fedlearn.running.perform import perform
    from fedlearn.tracking.report import refusals, table
    from fedlearn.tracking.run_folder import RunFolder

    try:
        _, history = perform(cfg, header, folder)
    except Stopped as stop:
        if stop.history and stop.history.folder:
            print(table([(cfg.name, stop.history.metrics)]))
        raise
    if history.folder:
        print(table([(cfg.name, history.metrics)]))
        if refused := refusals(RunFolder(history.folder).events()):
            print(refused)
        print(f"model   sha256 {history.sha256}\nfolder  {history.folder}")
    return 0


def _show_partition(made: Parts, picture: Path) -> None:
    """Print the counts per client and class, and draw them."""
    from fedlearn.config.assemble import split
    from fedlearn.data.picture import counts, counts_table, heat_map

    raw, store = split(made)
    table = counts(store, raw.classes)
    natural = type(made.heterogeneity).__name__ == "Natural"
    try:
        heat_map(table, picture, f"{type(made.task).__name__}, {made.heterogeneity}, seed {made.settings.seed}")
    except OSError as error:
        raise FedlearnError(f"{picture}: {error.strerror}; name another place with --out") from None
    print(counts_table(table, raw.group_names if natural else None))
    print("\npartition:", picture)


def _print_checked(cfg: Any) -> int:
    """Print a configuration, then check it."""
    from fedlearn.config.assemble import parts
    from fedlearn.config.compose import to_yaml

    print(to_yaml(cfg), end="", flush=True)
    parts(cfg)
    return 0
