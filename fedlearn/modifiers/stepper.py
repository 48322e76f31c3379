"""A torch optimiser as a pure step on vectors, and a trial of what it can do.

The state of a step goes in and comes out: ``{"parts": [...], "groups": [...], "rest": {}}``, all of ``state_dict()``,
whose step counters lie among the groups of some classes, among the tensors of others, and in ``"rest"``, what
belongs to no parameter, of a few. ``{}`` is no state yet.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from inspect import Parameter, signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..contracts import Tree, Vec
from ..errors import ConfigError, in_range, one_of
from ..vectors import views
from .optimizer_names import ELEMENTWISE, POWERS, ROUGH, locate, path_of
from .optimizer_state import give, hold, pack, unpack

Shapes = tuple[tuple[int, ...], ...]
TRIED: Shapes = ((9, 11), (11,), (3, 4, 3, 3))  # parameters that the trial steps, if it cannot step a vector
ROWS, WIDTH = 6, 7      # clients and their coordinates: so few that alone no kernel takes them together
MATRICES = frozenset({"Muon", "AdaMuon", "NorMuon", "AdaGO"})   # their groups say which parameters are matrices


@dataclass(frozen=True)
class Recipe:
    """How an optimiser is made; ``key`` is the section of the configuration that says so, for messages.

    ``lr`` None is the class's own default. ``shapes`` are those of the model's parameters, for a class that does not
    treat every coordinate by itself; without any the model is one vector.
    """

    key: str
    name: str
    lr: float | None = None
    options: tuple[tuple[str, Any], ...] = ()
    shapes: Shapes = field(default=(), repr=False)

    @cached_property
    def cls(self) -> type[torch.optim.Optimizer]:
        """The class, of which the options are known to be options.

        Raises:
            ConfigError: if there is none of this name, it cannot be used, or an option is unknown to it.
        """
        if self.lr is not None:
            in_range(f"{self.key}.lr", self.lr, above=0)
        cls = locate(f"{self.key}.optimizer", self.name)
        taken = signature(cls).parameters
        names = [n for n, p in taken.items() if p.kind is not Parameter.VAR_KEYWORD and n not in ("params", "lr")]
        where = "algorithm.lr" if self.key == "local" else f"{self.key}.lr"
        for name, _ in self.options:
            if name == "lr":
                raise ConfigError(f"{self.key}.options.lr", dict(self.options)["lr"], f"the step size as {where}")
            if name not in names:
                raise ConfigError(f"{self.key}.options.{name}", name, f"of {cls.__name__}, {one_of(names, name)}")
        return cls

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return a new optimiser of these parameters.

        Raises:
            ConfigError: if the class does not take them, or an option's value.
        """
        groups: list[Any] = parameters
        if self.cls.__name__ in MATRICES and path_of(self.cls).startswith("pytorch_optimizer."):
            flat, deep = ([p for p in parameters if (p.dim() > 1) is many] for many in (False, True))
            groups = [{"params": some, "use_muon": some is deep} for some in (deep, flat) if some]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                given: dict[str, Any] = {} if self.lr is None else {"lr": self.lr}
                return self.cls(groups, **given, **dict(self.options))
        except Exception as error:
            raise ConfigError(f"{self.key}.options", dict(self.options), f"what {self.cls.__name__} takes",
                              _said(error)) from None


class Stepper:
    """Makes steps with one optimiser, which is lent to whoever's state and vector it is given."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.curved = "hessian" in signature(recipe.cls.step).parameters
        self.made: tuple[Any, torch.optim.Optimizer, list[nn.Parameter], Tree] | None = None

    def __reduce__(self) -> tuple:
        return type(self), (self.recipe,)

    def step(self, x: Vec, g: Vec, state: Tree, factor: float = 1.0, curvature: Vec | None = None) -> Tree:
        """Change x [..., P] by one step along the gradient g, which is used up, and return the next state.

        ``factor`` multiplies the step size; ``curvature`` [..., P] is an estimate of the Hessian's diagonal. The
        tensors of ``state`` may be changed in place.
        """
        optimizer, parameters, fresh = self._optimizer(x)
        xs, gs = self._parts(x), self._parts(g)
        state = give(state) if x.dim() > 1 else state
        optimizer.state.clear()
        for i, (p, part, slope) in enumerate(zip(parameters, xs, gs, strict=True)):
            p.data, p.grad = part, slope
            if state:
                optimizer.state[p] = state["parts"][i]
        common = state or deepcopy(fresh)
        optimizer.state.update(common["rest"])
        for group, kept, first in zip(optimizer.param_groups, common["groups"], fresh["groups"], strict=True):
            members = group["params"]
            group.clear()
            group.update(kept, lr=first["lr"] * factor, params=members)
        made: Any = optimizer
        made.step(**({"hessian": self._parts(curvature)} if self.curved and curvature is not None else {}))
        for p, part in zip(parameters, xs, strict=True):
            if p.data_ptr() != part.data_ptr():
                part.copy_(p.detach())
            p.grad = None
        after = {"parts": [dict(optimizer.state[p]) for p in parameters], **_common(optimizer)}
        return hold(after) if x.dim() > 1 else after

    def wants_curvature(self, state: Tree) -> bool:
        """Return whether the next step takes a new estimate of the Hessian's diagonal."""
        if not self.curved:
            return False
        period = dict(self.recipe.options).get("update_period", 1)
        return not state or state["groups"][0].get("step", 0) % period == 0

    def _optimizer(self, x: Vec) -> tuple[torch.optim.Optimizer, list[nn.Parameter], Tree]:
        kind = x.dtype, x.device
        if self.made is None or self.made[0] != kind:
            parameters = [nn.Parameter(torch.zeros_like(part)) for part in self._parts(x)]
            made = self.recipe.build(parameters)
            fresh = _common(made)
            if not all("lr" in group for group in fresh["groups"]):
                raise ConfigError(f"{self.recipe.key}.optimizer", self.recipe.name, "an optimiser with a step size lr")
            self.made = kind, made, parameters, deepcopy(fresh)
        return self.made[1:]

    def _parts(self, x: Vec) -> list[Tensor]:
        return views(x, [torch.Size(s) for s in self.recipe.shapes]) if self.recipe.shapes else [x]


def _common(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return what an optimiser keeps beside the states of its parameters."""
    return {"groups": [{name: v for name, v in group.items() if name != "params"} for group in optimizer.param_groups],
            "rest": {name: v for name, v in optimizer.state.items() if not isinstance(name, Tensor)}}


class Verdict(NamedTuple):
    """What a trial found.

    ``unstackable`` says why clients cannot be stacked ("": they can), ``random`` whether it draws random numbers,
    ``unsteady`` whether the last bits of a coordinate depend on what stands beside it.
    """

    unstackable: str
    random: bool
    unsteady: bool = False


@lru_cache(maxsize=64)
def tried(recipe: Recipe) -> Verdict:
    """Try an optimiser out and return what was found.

    Raises:
        ConfigError: if it cannot make steps, or keeps something outside its ``state_dict()``.
    """
    name, key = recipe.cls.__name__, f"{recipe.key}.optimizer"
    plain = Recipe(recipe.key, recipe.name, recipe.lr, recipe.options)
    small = plain if not recipe.shapes else Recipe(*_fields(plain), TRIED)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            x, gs = _problem(1, sum(torch.Size(s).numel() for s in small.shapes) or 67, torch.float64)
            whole = _run(small, x[0], [g[0] for g in gs], 1)
            again = _run(small, x[0], [g[0] for g in gs], 2)
            packed = _run(small, x[0], [g[0] for g in gs], 1, apart=True)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(key, recipe.name, "an optimiser that takes a gradient and makes a step",
                              _said(error)) from None
        random = not torch.equal(whole, again)
        if not random and not torch.equal(whole, packed):
            raise ConfigError(key, recipe.name, "an optimiser whose state is all in its state_dict()",
                              "Its steps differ when a run is resumed.")
        if not whole.isfinite().all():
            raise ConfigError(key, recipe.name, "an optimiser whose steps are finite",
                              "On a small trial they were not; look at its options.")
        if path_of(recipe.cls) not in ELEMENTWISE:
            return Verdict(f"{name} does not treat every coordinate of the model by itself.", random)
        if random:
            return Verdict(f"{name} draws random numbers.", random)
        if not _by_itself(plain, torch.float64, partial(torch.allclose, rtol=1e-9, atol=1e-12)):
            return Verdict(f"{name} with these options does not treat every coordinate by itself.", random)
        rough = path_of(recipe.cls) in ROUGH or any(option in POWERS for option, _ in recipe.options)
        bits = not rough and all(_by_itself(plain, dtype, torch.equal) for dtype in (torch.float64, torch.float32))
    return Verdict("", False, not bits)


def _fields(recipe: Recipe) -> tuple[str, str, float | None, tuple[tuple[str, Any], ...]]:
    return recipe.key, recipe.name, recipe.lr, recipe.options


def _problem(rows: int, size: int, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Return points [rows, size] and gradients: small, large, and almost orthogonal to the points."""
    stream = torch.Generator().manual_seed(7)
    x, *gs = (torch.randn(rows, size, generator=stream, dtype=torch.float64) for _ in range(6))
    turned = torch.zeros_like(x)
    even = size - size % 2
    turned[:, 0:even:2], turned[:, 1:even:2] = -x[:, 1:even:2], x[:, 0:even:2]
    gs = [turned + 1e-3 * x, gs[0], 1e3 * gs[1], 1e-3 * gs[2], gs[3] + turned]
    return x.to(dtype), [g.to(dtype) for g in gs]


def _run(recipe: Recipe, x: Tensor, gs: list[Tensor], seed: int = 0, apart: bool = False,
         stepper: Stepper | None = None) -> Tensor:
    """Return the point after some steps.

    ``apart``: each is made with an optimiser that somebody else had before, from the bytes of the state.
    """
    torch.manual_seed(seed)
    stepper, x = stepper or Stepper(recipe), x.clone()
    state: Tree = {}
    for g in gs:
        if apart:
            stepper, state = Stepper(recipe), unpack(pack(state)) if state else {}
            stepper.step(x + 1, g + 1, {}, curvature=g.abs() + 1)
        state = stepper.step(x, g.clone(), state, curvature=g.abs())
    return x


def _by_itself(recipe: Recipe, dtype: torch.dtype, same: Callable[[Tensor, Tensor], bool]) -> bool:
    """Return whether a coordinate's steps are the same whatever stands beside it, in whatever shape."""
    x, gs = _problem(ROWS, WIDTH, dtype)
    run = partial(_run, recipe, stepper=Stepper(recipe))
    whole = run(x, gs)
    rows = torch.stack([run(x[i], [g[i] for g in gs]) for i in range(len(x))])
    parts = slice(0, 3), slice(3, None)
    columns = torch.cat([run(x[:, part].clone(), [g[:, part] for g in gs]) for part in parts], 1)
    turned = run(x.flip(0), [g.flip(0) for g in gs]).flip(0)
    deep = run(x[..., None, None], [g[..., None, None] for g in gs])[..., 0, 0]
    return all(same(whole, other) for other in (rows, columns, turned, deep))


def _said(error: Exception) -> str:
    return f"It says: {' '.join(str(error).split()).rstrip('.')}."
