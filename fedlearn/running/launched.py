"""Launches: the same command started again by a launcher goes on with its run instead of beginning another.

A word names a launch: the setting ``launch``, or, where torchrun may restart its workers, one that is the same after
each of its restarts. A run keeps the word it was begun with in its folder. Only rank 0 looks; the others serve it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname

from ..errors import ResourceError
from ..tracking.run_folder import ID, RunFolder

FILE = "launch"


@dataclass(frozen=True)
class Launch:
    """A word, whether the user gave it, and whether the launcher has started this process before.

    A finished run of a word that was given is shown again; a launcher's own word may be used for many runs, and names
    a finished one only after a restart.
    """

    word: str
    given: bool
    restarted: bool = False

    def find(self, root: str | Path, name: str) -> RunFolder | None:
        """Return the newest run of this name that was begun with the word and is to be gone on with."""
        for path in sorted(Path(root, name).glob("*"), key=lambda path: path.name, reverse=True):
            try:
                same = ID.fullmatch(path.name) and (path / FILE).read_text(encoding="utf-8").strip() == self.word
            except OSError:
                continue
            if same:
                finished = (path / "model.json").exists()
                return RunFolder(path) if self.given or self.restarted or not finished else None
        return None

    def mark(self, folder: RunFolder) -> None:
        """Keep the word in the folder of a run that begins.

        Raises:
            ResourceError: if it cannot be written.
        """
        try:
            (folder.path / FILE).write_text(f"{self.word}\n", encoding="utf-8")
        except OSError as error:
            raise ResourceError(f"{folder.path / FILE} cannot be written ({error.strerror}); make room, or name "
                                "another place with runs=") from error


def launch_of(word: str | None, config: str) -> Launch | None:
    """Return the launch that this process belongs to, if it has one.

    ``word`` is the user's. Without one, a torchrun that may restart its workers is a launch for each configuration
    (YAML text): it is known by its run id, or else as the process that started this one.
    """
    if word is not None:
        return Launch(word, given=True)
    environ = os.environ
    if int(environ.get("TORCHELASTIC_MAX_RESTARTS") or 0) <= 0:
        return None
    run = environ.get("TORCHELASTIC_RUN_ID", "none")
    known = run if run != "none" else launcher()
    chosen = hashlib.sha256(config.encode()).hexdigest()[:16]
    return Launch(f"torchrun {known} {chosen}", given=False,
                  restarted=int(environ.get("TORCHELASTIC_RESTART_COUNT") or 0) > 0)


def launcher() -> str:
    """Return what no other process that starts others is called: host, boot, number and start of the parent."""
    parent = os.getppid()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        boot = began = "unknown"
    return f"{gethostname()}/{boot}/{parent}/{began}"
