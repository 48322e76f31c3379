"""From a composed configuration to a history: what the command line and the benchmarks run."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..tracking.run_folder import RunFolder
    from .execute import History


def perform(cfg: Any, header: str = "", folder: RunFolder | None = None) -> tuple[RunFolder | None, History]:
    """Run a configuration and return its folder and history.

    It runs in a new run folder, or goes on in ``folder``, or in that of the same launch, from where that stands;
    ``header`` is written above the configuration there. Ranks other than 0 serve rank 0 and have no folder.
    """
    from ..config.assemble import assemble, parts
    from ..config.compose import to_dict, to_yaml
    from ..tracking.run_folder import RunFolder
    from .execute import checkpoint_of, execute
    from .launched import launch_of
    from .profile import Profile

    made = parts(cfg)
    settings, name = made.settings, str(made.settings.name)
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1 and type(made.backend).__name__ != "Torchrun":
        raise ConfigError("backend", type(made.backend).__name__,
                          f"backend=torchrun on {ranks} torchrun ranks", "Each rank would run everything by itself.")
    experiment = assemble(made)
    if other_rank():  # rank 0 keeps the folder and does the talking
        return None, execute(experiment, grace=settings.stop.grace, check_resources=settings.check_resources)
    launch = launch_of(settings.launch, to_yaml(cfg)) if folder is None else None
    begun = launch.find(settings.runs, name) if launch else None
    folder, resuming = folder or begun, (folder or begun) is not None
    if folder is None:
        folder = RunFolder.create(settings.runs, name)
        if launch:
            launch.mark(folder)
    with folder.claim():
        start = checkpoint_of(experiment, folder) if resuming else None
        if begun is None or not begun.config.exists():
            folder.write_config(header + to_yaml(cfg))
        trackers = [part.tracker() for part in made.tracking.values()]
        if settings.progress != "none":
            _log_to_stderr(name)
        profile = Profile() if settings.profile else None
        history = execute(experiment, folder, trackers, settings.progress, name, to_dict(cfg), start, profile,
                          settings.stop.grace, settings.check_resources)
        if profile:
            print(profile.table(), end="\n\n")
        return folder, history


def other_rank() -> bool:
    """Say whether torchrun started this process as a rank other than 0."""
    return int(os.environ.get("RANK", 0)) > 0


def _log_to_stderr(name: str) -> None:
    """Show what the run itself has to say, such as where its work runs."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{name}  %(message)s"))
    logger = logging.getLogger("fedlearn")
    logger.handlers, logger.level = [handler], logging.INFO
