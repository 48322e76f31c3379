"""Imports go downwards only, and each heavy library is imported in one place."""

from __future__ import annotations

import ast
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "fedlearn").rglob("*.py"))
GROUND = {"contracts", "vectors", "seeds", "errors", "faults", "draws", "pacing"}
FIRST = {"algorithms", "modifiers", "pipeline", "reducers", "policies", "data", "models"}
WORK = GROUND | FIRST | {"tasks", "oracles", "work", "worker", "experiment", "combinations"}
ALL = WORK | {"backends", "protocols", "tracking", "checkpoint", "config"}
MAY_IMPORT = {
    **dict.fromkeys(GROUND, GROUND),
    **dict.fromkeys(FIRST, GROUND),
    "tasks": GROUND | {"data", "models", "policies", "oracles"},
    "oracles": GROUND | {"data", "models"},
    **dict.fromkeys(["work", "experiment", "combinations"], WORK),
    **dict.fromkeys(["sealed", "tracking"], GROUND),
    "checkpoint": GROUND | {"sealed"},
    "worker": WORK | {"sealed"},
    "backends": WORK,
    "protocols": WORK | {"backends"},
    "config": ALL,
    "running": ALL,
    "api": ALL | {"running"},
    "chaos": GROUND | {"backends", "config", "tracking", "checkpoint"},
    "arguments": {"config"},
    "verbs": ALL | {"running", "chaos", "arguments"},
    "cli": ALL | {"running", "arguments", "verbs"},
    **dict.fromkeys(["__init__", "__main__"], ALL | {"running", "api", "cli"}),
}
CONCRETE = ("fedlearn.backends.inprocess", "fedlearn.backends.torchrun", "fedlearn.backends.ray")
ONLY_IN = {
    "torch.distributed": "backends/torchrun/*.py",
    "ray": "backends/ray/*.py",
    "wandb": "tracking/wandb_sink.py",
    "tensorboard": "tracking/tensorboard_sink.py",
    "hydra": "config/*.py",
    "omegaconf": "config/*.py",
}


def imports(path: Path, root: Path = ROOT) -> set[str]:
    """Return the dotted names that a file imports or reaches as ``torch.distributed`` does."""
    package = path.relative_to(root).parent.parts
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.add(f"{node.value.id}.{node.attr}")
    return names


def faults(path: Path, root: Path = ROOT) -> list[str]:
    """Return what a file imports that it must not."""
    place = path.relative_to(root / "fedlearn")
    floor = place.parts[0].removesuffix(".py")
    assert floor in MAY_IMPORT, f"{place}: a new room; say in MAY_IMPORT on which floor it is"
    found = []
    for name in imports(path, root):
        head, _, rest = name.partition(".")
        room = rest.partition(".")[0]
        known = (root / "fedlearn" / room).is_dir() or (root / "fedlearn" / f"{room}.py").is_file()
        if head == "fedlearn" and known and room not in MAY_IMPORT[floor] | {floor}:
            found.append(f"{place} imports fedlearn.{room}")
        if floor == "protocols" and name.startswith(CONCRETE):
            found.append(f"{place} knows a concrete backend, {name}")
        for library, only in ONLY_IN.items():
            if f"{name}.".startswith(f"{library}.") and not fnmatch(str(place), only):
                found.append(f"{place} uses {library}, which only {only} may")
    return sorted(set(found))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    assert faults(path) == []


@pytest.mark.parametrize(("place", "line", "fault"), [
    ("algorithms/a.py", "from fedlearn.data import store", "imports fedlearn.data"),
    ("algorithms/a.py", "from ..data import store", "imports fedlearn.data"),
    ("algorithms/a.py", "from fedlearn import api", "imports fedlearn.api"),
    ("contracts.py", "def f():\n    import fedlearn.worker.worker", "imports fedlearn.worker"),
    ("protocols/a.py", "from fedlearn.backends.torchrun.group import Group", "knows a concrete backend"),
    ("worker.py", "import torch\nx = torch.distributed.get_rank()", "uses torch.distributed"),
    ("worker.py", "from torch import distributed", "uses torch.distributed"),
    ("config/a.py", "import ray", "uses ray"),
    ("api.py", "from omegaconf import OmegaConf", "uses omegaconf"),
])
def test_a_wrong_import_is_found(tmp_path: Path, place: str, line: str, fault: str) -> None:
    for room in [*MAY_IMPORT, "backends/torchrun"]:
        (tmp_path / "fedlearn" / room).mkdir(parents=True, exist_ok=True)
    path = tmp_path / "fedlearn" / place
    if path.is_dir():
        path.rmdir()
    path.write_text(line)
    assert any(fault in found for found in faults(path, tmp_path))


def test_allowed_imports_pass(tmp_path: Path) -> None:
    path = tmp_path / "fedlearn" / "backends" / "torchrun" / "ranks.py"
    path.parent.mkdir(parents=True)
    (tmp_path / "fedlearn" / "worker.py").touch()
    path.write_text("import torch.distributed as dist\nfrom fedlearn.worker.worker import run\nimport rays")
    assert faults(path, tmp_path) == []
