"""Configurations of run folders and overrides, damaged and hostile: refused with one line, and never executed."""

from __future__ import annotations

import random
from pathlib import Path

from damage import damaged, many
from omegaconf import DictConfig

from fedlearn.config.build import build_node
from fedlearn.config.compose import recompose
from fedlearn.config.trust import check, read
from fedlearn.errors import ConfigError, FedlearnError

TEXT = """name: x
rounds: 5
algorithm:
  _target_: fedlearn.algorithms.fedavg.FedAvg
  lr: 0.1
model:
  _target_: torch.nn.Dropout
  p: 0.5
pipeline:
  clip: {_target_: fedlearn.pipeline.clip.Clip, norm: 1.0}
local: {steps: 3, optimizer: torch.optim.SGD}
"""
GROUPS = ("algorithm", "model", "pipeline.clip")
TARGETS = {"fedlearn.algorithms.fedavg.FedAvg", "fedlearn.pipeline.clip.Clip"}
HOSTILE = ("canary.sing", "canary", ".canary.sing", "torch.nn.canary.sing", "fedlearn.canary.sing", "canary.",
           "a.b.canary", "fedlearn.config.build.import_module", "torch.nn.modules.module.functools", "builtins.exec",
           "os.system", "pathlib.Path.touch", "fedlearn.backends.parcel.unpack", "fedlearn.backends.ray.backend.Actor",
           "torch.serialization.load", "torch.nn.Module.__init__", "???", "null", "[canary.sing]", "{a: canary.sing}",
           "${canary:}", "${oc.env:HOME}", "${oc.create:{_target_:canary.sing}}", "!!python/name:canary.sing",
           "!!python/object/apply:canary.sing []", "!!python/module:canary", "&a [*a]", "!canary.sing x")
PIECES = ("_target_: canary.sing", "_target_: {}", "hydra: {{searchpath: ['file://{}']}}", "defaults: [{}]",
          "optimizer: {}", "inner: {{_target_: {}}}", "- {}", "{}", "? {} : 1", "<<: {}", "clip: {{_target_: {}}}",
          "'pipeline.clip': {{_target_: {}}}", "address: {}", "callback: {}")


def hostile(r: random.Random) -> str:
    """Return the text with a line replaced by, or one more line with, what should not be there."""
    lines = TEXT.splitlines()
    at = r.randrange(len(lines))
    indent = lines[at][:len(lines[at]) - len(lines[at].lstrip())]
    if r.random() < 0.4 and ":" in lines[at]:
        new = f"{lines[at].partition(':')[0]}: {r.choice(HOSTILE)}"
    else:
        new = indent + r.choice(PIECES).format(r.choice(HOSTILE))
    lines[at:at + r.randrange(2)] = [new]
    return "\n".join(lines)


def given(r: random.Random) -> str:
    """Return a text that is hostile, damaged or both."""
    text = hostile(r) if r.random() < 0.6 else TEXT
    return damaged(text.encode(), r).decode(errors="replace") if r.random() < 0.6 else text


def options(folder: Path) -> Path:
    """Make a folder of options that names two classes."""
    for name, text in (("run", "rounds: 5\n"), ("algorithm/fedavg", "_target_: fedlearn.algorithms.fedavg.FedAvg\n"),
                       ("pipeline/clip", "clip:\n  _target_: fedlearn.pipeline.clip.Clip\n")):
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n{text}")
    return folder


def test_configurations_of_run_folders(room: Path, canary: Path, examples: int) -> None:
    base, accepted = options(room / "options"), 0

    def test(r: random.Random) -> None:
        nonlocal accepted
        try:
            cfg = read(given(r), trust=False)
            check(cfg, (), base)
            for path in GROUPS:
                node = cfg
                for name in path.split("."):
                    node = node.get(name) if isinstance(node, DictConfig) else None
                if isinstance(node, DictConfig) and node and node.get("_target_"):
                    made = build_node(node, path)
                    place = f"{type(made).__module__}.{type(made).__qualname__}"
                    assert place in TARGETS or place.startswith("torch.nn.modules.")
            accepted += 1
        except FedlearnError as error:
            assert "\n" not in str(error)
        assert not canary.exists()

    many(examples // 2, test)
    assert accepted > examples // 50, "most of what is merely another number is a configuration, too"


def test_run_folders_with_overrides(room: Path, canary: Path, examples: int) -> None:
    """What is typed may replace what was given, but lends it no trust."""
    base = options(room / "options")
    typed = ("rounds=7", "backend.workers=2", "+pipeline={a: 1}", "pipeline.clip.norm=2", "algorithm=fedavg",
             "~model", "pipeline={clip: {norm: 2}}", "+x.y=3", "algorithm={lr: 0.2}", "algorithm.lr=0.3", "name=y")

    def test(r: random.Random) -> None:
        try:
            cfg = recompose(given(r), r.sample(typed, r.randrange(3)), base=base,
                            allowed=("rounds", "backend", "pipeline", "algorithm", "model", "x", "name"))
        except FedlearnError as error:
            assert "\n" not in str(error)
            return
        for path in GROUPS[:2]:
            node = cfg.get(path)
            if isinstance(node, DictConfig) and node and node.get("_target_"):
                try:
                    build_node(node, path)
                except FedlearnError as error:
                    assert "\n" not in str(error)
        assert not canary.exists()

    many(examples // 5, test)


def test_overrides(room: Path, canary: Path, examples: int) -> None:
    """Nothing that is typed is executed while it is read, not even what the user may name."""
    base = options(room / "options")
    typed = ("rounds=7", "algorithm.lr=0.3", "pipeline.clip.norm=2e-3", "algorithm=fedavg", "~pipeline.clip",
             "+a.b=[1,2]", "model={_target_: canary.sing, p: 0.1}", "name='a value'", "name=${oc.env:HOME}",
             "name=${name}", "+c=${canary.sing:}", "hydra.searchpath=[file://.]", "algorithm@x=fedavg", "rounds=1,2",
             "rounds=range(3)")
    allowed = ("rounds", "algorithm", "pipeline", "a", "c", "model", "name")

    def test(r: random.Random) -> None:
        text = damaged(r.choice(typed).encode(), r).decode(errors="replace") if r.random() < 0.9 else r.choice(typed)
        try:
            cfg = recompose(TEXT, [text], base=base, allowed=allowed)
            assert set(cfg) >= {"name", "rounds", "local"}
        except ConfigError as error:
            assert "\n" not in str(error)
        assert not canary.exists()

    many(3 * examples // 10, test)
