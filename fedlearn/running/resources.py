"""What a run needs of memory and disk, worked out before it starts, against what there is.

The estimates are of what is surely held, vectors by vectors: activations, the allocator's waste and caches come on top.
They are there to refuse hopeless runs in one line instead of letting the system kill a process hours later; a run that
might do is let start. Nothing is allocated for them: shapes are worked out on torch's meta device.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..contracts import PeerAlgorithm, ServerAlgorithm, StepInfo, Tree
from ..errors import ResourceError
from ..experiment import Experiment
from ..tracking import human_bytes
from ..tracking.run_folder import RunFolder
from ..vectors import tree_flat
from ..work import Setup
from ..worker.stacking import oracle_for

PROCESS = 100 * 2**20   # bytes of its own that a process with torch takes at least
LINES = 2**20           # of a run's lines and its configuration
SWITCH = "check_resources=false starts the run all the same"


@dataclass(frozen=True)
class Sizes:
    """Bytes of what a run holds: one model, the server's or all nodes' state, a broadcast, an upload, a client's state.

    ``total`` is the sum's buffer, or whatever the uploads of a round are gathered in.
    """

    model: int
    server: int
    broadcast: int
    upload: int
    total: int
    state: int


@dataclass(frozen=True)
class Need:
    """Bytes that are needed, and how they came about."""

    bytes: int
    text: str


def sizes_of(e: Experiment, setup: Setup) -> Sizes:
    """Return the sizes of a run's parts; what an algorithm does not tell without real numbers counts as one model."""
    x = setup.task.initial(setup.seed).to("meta")
    model, algorithm = size_of(x), setup.algorithm
    at_a_time = e.clients_at_a_time
    if isinstance(algorithm, PeerAlgorithm):
        node = model
        with suppress(Exception):
            node = size_of(algorithm.node_init(x.clone()))
        return Sizes(model, len(setup.task.sizes) * node, 0, model, len(setup.task.sizes) * model, 0)
    server = broadcast = upload = model
    state = 0
    with suppress(Exception):
        state = size_of(algorithm.client_init(x.clone()))
        held = algorithm.server_init(x.clone())
        server = size_of(held)
        sent = dict(algorithm.broadcast(held))
        broadcast = size_of(sent)
        upload = size_of(_upload(algorithm, sent, algorithm.client_init(x.clone())))
    limbs = 1 if setup.reduce == "fast" else 2
    total = upload * limbs * (at_a_time if algorithm.individual or e.protocol.verb == "submit" else 1)
    return Sizes(model, server, broadcast, upload, total, state)


def memory_of(e: Experiment, setup: Setup, sizes: Sizes) -> Need:
    """Return the memory that a run takes on this host, beside what it holds already."""
    workers, here = workers_of(e)
    rows = 1
    if setup.stack:
        each = -(-e.clients_at_a_time // max(workers, 1))
        with suppress(Exception):
            rows = max(1, min(each, oracle_for(setup).room(e.plan(0).batch_for(int(setup.task.sizes.max())))))
    # A worker's y and the gradient of its step; on another device they are not this memory's.
    working = 0 if _elsewhere(e) else 2 * rows * sizes.model
    held = min(setup.state_memory * 2**20, e.clients_at_a_time * sizes.state) if workers == 1 else 0
    own = sizes.server + sizes.total + held + (0 if getattr(e.backend, "dedicated", False) or _apart(e) else working)
    shared = sizes.broadcast if here else 0
    each = working + sizes.total + PROCESS
    stack = f" for {rows} clients in a stack" if rows > 1 else ""
    text = (f"coordinator {human_bytes(own)} (server state {human_bytes(sizes.server)}, sum {human_bytes(sizes.total)}"
            + (f", client states {human_bytes(held)}" if held else "") + f", the rest local work{stack})")
    if here:
        text += (f" + broadcast {human_bytes(shared)} + {here} other worker{'s' * (here > 1)} x {human_bytes(each)} "
                 f"(sum {human_bytes(sizes.total)}, local work{stack} {human_bytes(working)}, the process "
                 f"{human_bytes(PROCESS)})")
    return Need(own + shared + here * each, text)


def check_memory(e: Experiment, setup: Setup) -> None:
    """Refuse a run that this host's memory cannot hold.

    Raises:
        ResourceError: with the arithmetic.
    """
    there, limit = available()
    if there is None:
        return
    sizes = sizes_of(e, setup)
    need = memory_of(e, setup, sizes)
    if need.bytes <= there:
        return
    workers, _ = workers_of(e)
    advice = [word for word, helps in (
        ("fewer backend.workers", workers > 1), ("stack=false", setup.stack is True),
        ("a smaller cohort", setup.stack is True or sizes.total > 2 * sizes.upload),
        ("reduce=fast", setup.reduce == "exact"), ("a smaller state_memory", sizes.state > 0)) if helps]
    raise ResourceError(f"memory does not suffice: {need.text} = {human_bytes(need.bytes)} at least; available: "
                        f"{human_bytes(there)} ({limit}); use {', '.join([*advice, 'a smaller model'])}, or a host "
                        f"with more ({SWITCH})")


def check_disk(e: Experiment, folder: RunFolder) -> None:
    """Refuse a run whose folder cannot be written to, or has no room for two checkpoints and the model.

    Raises:
        ResourceError: with the arithmetic.
    """
    setup = Setup(algorithm=e.algorithm, task=e.task, schedule=e.schedule, rounds=e.rounds, clock=e.clock, seed=e.seed)
    sizes = sizes_of(e, setup)
    probe = folder.path / f".room-{os.getpid()}"
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"?")
        free = shutil.disk_usage(folder.path).free
    except OSError as error:
        raise ResourceError(f"{folder.path} cannot be written to: found {error.strerror}; allowed: a folder on a disk "
                            "with room that this user may write to; make room, or name another place with runs="
                            ) from error
    finally:
        with suppress(OSError):
            probe.unlink()
    states = e.clients_at_a_time * sizes.state
    need = 2 * (sizes.server + states) + sizes.model + LINES
    if need > free:
        raise ResourceError(f"disk does not suffice at {folder.path}: 2 checkpoints x (server state "
                            f"{human_bytes(sizes.server)} + client states {human_bytes(states)}) + model "
                            f"{human_bytes(sizes.model)} + lines {human_bytes(LINES)} = {human_bytes(need)}; "
                            f"available: {human_bytes(free)}; make room, or name another place with runs= ({SWITCH})")


def workers_of(e: Experiment) -> tuple[int, int]:
    """Return how many workers there are, and how many of them are processes on this host beside this one."""
    backend = e.backend
    if hasattr(backend, "ranks"):
        workers = backend.ranks()
        # Under torchrun every rank of this host counts itself and the others alike.
        return workers, min(workers, int(os.environ.get("LOCAL_WORLD_SIZE", workers))) - 1
    workers = getattr(backend, "workers", 1)
    if not _apart(e):
        return 1, 0
    return workers, 0 if getattr(backend, "address", None) or os.environ.get("RAY_ADDRESS") else workers


def available() -> tuple[int | None, str]:
    """Return the bytes of memory that are free for this process, and what limits them; None where nobody says."""
    found: list[tuple[int, str]] = []
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append((1024 * int(line.split()[1]), "free memory"))
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if not kinds:
                found += _headroom(Path("/sys/fs/cgroup"), path, "memory.max", "memory.current", "inactive_file")
            elif "memory" in kinds.split(","):
                found += _headroom(Path("/sys/fs/cgroup/memory"), path, "memory.limit_in_bytes",
                                   "memory.usage_in_bytes", "total_inactive_file")
    return min(found) if found else (None, "")


def _headroom(root: Path, path: str, limit: str, usage: str, cache: str) -> list[tuple[int, str]]:
    """Return what a control group and those above it leave free; a container may see itself at the root."""
    found, place = [], root / path.lstrip("/")
    for group in (place, *place.parents):
        if group != root and root not in group.parents:
            break
        with suppress(OSError, ValueError):     # no file, or the word "max"
            most, used = int((group / limit).read_text()), int((group / usage).read_text())
            kept = [int(line.split()[1]) for line in (group / "memory.stat").read_text().splitlines()
                    if line.split()[0] == cache]
            found.append((max(0, most - used + sum(kept)), f"control group limit {human_bytes(most)}"))
    return found


def size_of(tree: Tree) -> int:
    """Return the bytes of the tensors of a tree; one that is in it twice counts once."""
    seen: dict[int, Tensor] = {id(t): t for t in tree_flat(tree).values()}
    return sum(t.numel() * t.element_size() for t in seen.values())


def _upload(algorithm: ServerAlgorithm, sent: dict[str, Tensor], state: Tree) -> Tree:
    info = StepInfo(0, 1, 1, 1.0, 1, 1.0)
    return dict(algorithm.local_finish(algorithm.local_init(sent, state), sent, state, info)[0])


def _apart(e: Experiment) -> bool:
    """Return whether all work is done in other processes than this one."""
    return hasattr(e.backend, "workers") and not hasattr(e.backend, "ranks")


def _elsewhere(e: Experiment) -> bool:
    """Return whether work is done, at some ranks at least, on another device than the host's memory."""
    asked = getattr(e.backend, "devices", "cpu")
    return any(d != "cpu" for d in ([asked] if isinstance(asked, str) else asked)) and torch.cuda.is_available()
