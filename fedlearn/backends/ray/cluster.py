"""The Ray cluster: started here, closed to strangers, or joined; and whether it is still there.

A cluster that is started here listens on the loopback address only, and its processes talk to nobody who does not
know a token that is drawn for it and lives in their environment. Ray reads its environment once per process: it is
told to read it again before and after, so that the token of one cluster is not taken for that of the next.

A driver whose raylet or GCS is gone is not told so by Ray: its calls wait, and some end the process without a word.
Hence ``Watch``, which knocks.

Ray itself, ``api``, is handed in: it is imported in one place.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from ...errors import ConfigError, WorkerError

NICENESS = "RAY_worker_niceness"
# Ray nices its workers to 15 and counts users, unless it is told not to when its cluster starts.
QUIET = {NICENESS: "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
PROMPT = {"free_objects_period_milliseconds": 0}  # Ray gathers freed objects for a second: gigabytes here
KNOCK = 10.0    # seconds that a cluster may take to answer at all
LOOK = 1.0      # seconds between two looks at whether a cluster is still there
GONE = 20.0     # seconds without a GCS after which it is lost; after 60 Ray ends the process
RESUME = "`fedlearn resume` continues a run from its last checkpoint"


def start(api: Any, cpus: int, store: int, folder: Path, niceness: int = 0) -> None:
    """Start a cluster on this machine, for this process and whoever it gives the token to: nobody.

    Raises:
        ConfigError: if the installed Ray knows no tokens.
        WorkerError: if it does not start.
    """
    _check_tokens(api)
    settings = {**QUIET, NICENESS: str(niceness), "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_AUTH_TOKEN_PATH": None}
    with environment(settings), _on_loopback(api), _signals_kept():
        _read_again(api)
        try:
            api.init(address="local", num_cpus=cpus, object_store_memory=store, include_dashboard=False,
                     log_to_driver=False, logging_level="ERROR", _temp_dir=str(folder), _system_config=PROMPT)
        except Exception as e:
            raise WorkerError(f"Ray did not start: {last_line(e)}") from e


def stop(api: Any) -> None:
    """End the cluster that was started here, and forget its token."""
    try:
        api.shutdown()
    except BaseException:   # also Ctrl-C in the middle of it
        api.shutdown()
        raise
    finally:
        _read_again(api)


def join(api: Any, address: str, token: str | None) -> None:
    """Connect to a cluster that runs already; ``token`` is the path of a file with its token, where it wants one.

    Raises:
        ConfigError: if the installed Ray knows no tokens, or the file cannot be read.
        WorkerError: if no cluster answers, or it refuses the token.
    """
    _check_tokens(api)
    settings: dict[str, str | None] = dict(QUIET)
    if token is not None:
        try:
            found = Path(token).expanduser().read_text().strip()
        except (OSError, ValueError) as e:
            raise ConfigError("backend.token", token, "the path of a readable file with the cluster's token",
                              f"({e})") from e
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": found, "RAY_AUTH_TOKEN_PATH": None}
    with environment(settings), _signals_kept():
        try:
            _read_again(api)
            _knock(api, address)
            api.init(address=address, log_to_driver=False, logging_level="ERROR")
        except WorkerError:
            raise
        except Exception as e:
            raise WorkerError(f"no Ray cluster at {address}: {last_line(e)}") from e


class Watch:
    """Looks whether the cluster that this process is connected to is still there."""

    def __init__(self, api: Any, timeout: float) -> None:
        node = api._private.worker._global_node     # None behind a proxy, which says by itself what happens
        self.raylet = node and node.raylet_socket_name
        self.gcs = node and _split(node.gcs_address)
        self.patience = min(timeout / 2, GONE)
        self.silent: float | None = None    # since when the GCS does not answer
        self.looked = 0.0

    def look(self) -> None:
        """Check now and then: rounds may go on for a while without a cluster, until Ray ends the process.

        Raises:
            WorkerError: as ``check`` does.
        """
        now = time.monotonic()
        if now - self.looked > LOOK:
            self.looked = now
            self.check()

    def check(self) -> None:
        """Look at both.

        Raises:
            WorkerError: if the raylet is gone, or the GCS for some time.
        """
        self.check_raylet()
        if self.gcs is None:
            return
        try:
            socket.create_connection(self.gcs, timeout=self.patience).close()
        except OSError as e:
            now = time.monotonic()
            self.silent = self.silent or now
            if now - self.silent >= self.patience or isinstance(e, TimeoutError):
                raise WorkerError(f"the Ray cluster is lost: its GCS at {self.gcs[0]}:{self.gcs[1]} does not answer "
                                  f"({e}); {RESUME}") from e
        else:
            self.silent = None

    def check_raylet(self) -> None:
        """Look at the raylet of this machine: without it Ray ends the process, with code 1, at any use of its store.

        Hence right before that. Of one that dies between the look and the use nobody can tell: the run just ends.

        Raises:
            WorkerError: if it is gone.
        """
        if not self.raylet:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(self.raylet)
            except (ConnectionRefusedError, FileNotFoundError) as e:
                raise WorkerError(f"the Ray cluster is lost: its raylet on this machine is gone; {RESUME}") from e
            except OSError:
                pass    # too busy to answer, and there

    def there(self) -> bool:
        """Return whether nothing speaks against the cluster."""
        try:
            self.check()
        except WorkerError:
            return False
        return self.silent is None


@contextmanager
def hushed(api: Any) -> Iterator[None]:
    """Let Ray not print what its processes died of between the lines of a run; events tell it."""
    worker = api._private.worker
    before = getattr(worker, "print_to_stdstream", None)
    if before is not None:
        worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        if before is not None:
            worker.print_to_stdstream = before


def kill_outright(api: Any, pid: int) -> None:
    """Kill an actor's process of a cluster of our own: Ray asks one to end, and a frozen one does not hear it."""
    node = api._private.worker._global_node
    raylets = [info.process.pid for info in node.all_processes.get("raylet", [])] if node else []
    with suppress(OSError, ValueError, IndexError):
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if parent in raylets:
            os.kill(pid, signal.SIGKILL)


def last_line(e: BaseException) -> str:
    """Return the end of what an error of Ray says, which is where the cause stands."""
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return (lines[-1] if lines else type(e).__name__)[:500]


def cause(e: BaseException) -> str:
    """Return in a few words what an actor was lost with: Ray names every cause that there might be."""
    if type(e).__name__ in ("ActorDiedError", "ActorUnavailableError", "WorkerCrashedError"):
        found = re.search(r"exit type: (\w+)", str(e))
        return "its process ended" + (f" ({found[1]})" if found else "")
    return last_line(e)


def _check_tokens(api: Any) -> None:
    if not hasattr(api._raylet, "AuthenticationTokenLoader"):
        raise ConfigError("backend", f"Ray {api.__version__}", "a Ray that can ask for a token (2.52 or newer)",
                          "Install it: pip install -U 'fedlearn[ray]'.")


def _read_again(api: Any) -> None:
    """Let Ray read the environment again: first the settings, or threads that still end would miss the token."""
    api._raylet.Config.initialize("")
    api._raylet.AuthenticationTokenLoader.instance().reset_cache()


def _knock(api: Any, address: str) -> None:
    """Ask a cluster once, and without what Ray prints meanwhile; ``ray.init`` asks twenty times.

    Raises:
        WorkerError: if nobody answers, or not without another token.
    """
    if "://" in address:
        return
    where = api._private.services.canonicalize_bootstrap_address(address)
    if where is None:
        return      # Ray says that it found none
    try:
        socket.create_connection(_split(where), timeout=KNOCK).close()
    except OSError as e:
        raise WorkerError(f"no Ray cluster at {where}: {e}; start one there, or let backend.address be null to have "
                          "one on this machine") from e
    with _stderr_silenced():
        try:
            api._raylet.GcsClient(address=where)
        except api.exceptions.AuthenticationError as e:
            given = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
            raise WorkerError(f"the Ray cluster at {where} wants its token and got {'another' if given else 'none'}; "
                              "name the file that holds it with backend.token, or with RAY_AUTH_MODE=token and "
                              "RAY_AUTH_TOKEN_PATH in the environment") from e


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


@contextmanager
def environment(settings: Mapping[str, str | None]) -> Iterator[None]:
    """Have these variables in the environment, those with None not."""
    before = {name: os.environ.get(name) for name in settings}
    _set(settings)
    try:
        yield
    finally:
        _set(before)


def _set(settings: Mapping[str, str | None]) -> None:
    for name, value in settings.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _on_loopback(api: Any) -> Iterator[None]:
    """Let a cluster that starts be one of this machine only, as Ray has it where it supports no others."""
    constants = api._private.ray_constants
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put back what was to be done on SIGTERM: ``ray.init`` lets it end the process."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if current_thread() is main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _stderr_silenced() -> Iterator[None]:
    """Drop what is written to the standard error output, also by those who know no ``sys.stderr``."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
