"""Optimisers by name: the classes of torch.optim and of pytorch_optimizer, and what cannot be used of them.

A name is looked for without regard to case, first in torch.optim and then in pytorch_optimizer (H. Kim,
"pytorch_optimizer", 2021 to 2026, version 4.1.0); with dots it is the path of any class. So ``asgd`` is torch's
averaged SGD, not the adaptive one of pytorch_optimizer, and ``apollo`` the low-rank method, not ``apollodqn``.
Only ``muon`` comes from pytorch_optimizer, whose class also moves the parameters that are no matrices.
"""

from __future__ import annotations

import warnings
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple

import torch

from ..errors import ConfigError

LATER = frozenset({"muon"})     # of torch.optim, where pytorch_optimizer has the more general one
CLOSURE, FUSED = "It evaluates the loss itself, more than once in a step.", "It is fused with the backward pass."
TWO_MODELS, ALONE = "It trains one model and evaluates another.", "It exchanges gradients between processes itself."
AROUND, GPU = "It goes around another optimiser and is none itself.", "It needs CUDA kernels that are not installed."
REFUSED = {
    "lbfgs": CLOSURE, "bsam": CLOSURE, "alig": "It needs the loss itself in a step.", "lomo": FUSED, "adalomo": FUSED,
    "sparseadam": "It is for sparse gradients.", "adammini": "It takes a module, not its parameters.",
    "distributedmuon": ALONE, "demo": ALONE, "muonclip": "It looks into the attention of a module.",
    "a2grad": "It has no step size.", "fadam": "It computes in float32 only.", "spectralsphere": "It is for matrices.",
    "sara": "It is for models with low-rank parts.", "lorarite": "It is for pairs of low-rank matrices.",
    **dict.fromkeys(["conda", "scalableshampoo"], "It keeps more than tensors and numbers."),
    **dict.fromkeys(["dash", "spam", "stablespam"], "It keeps something outside its state_dict()."),
    **dict.fromkeys(["schedulefreesgd", "schedulefreeadamw", "schedulefreeradam"], TWO_MODELS),
    **dict.fromkeys(["sam", "gsam", "wsam", "looksam", "friendlysam", "lookahead", "trac", "orthograd",
                     "schedulefreewrapper", "pcgrad"], AROUND),
}
# Those whose source treats every coordinate by itself, and which state or options may make do otherwise.
ELEMENTWISE = frozenset(
    "torch.optim." + name for name in ("ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam",
                                       "RMSprop", "Rprop", "SGD")) | frozenset(
    "pytorch_optimizer." + name for name in (
        "ADOPT", "AccSGD", "AdEMAMix", "AdaBelief", "AdaBound", "AdaHessian", "AdaMod", "AdaPNM", "AdaSmooth",
        "AdamC", "Adan", "AggMo", "Ano", "BCOS", "DiffGrad", "DualAdam", "EXAdam", "FOCUS", "FTRL", "Grams",
        "GrokFastAdamW", "Kate", "LaProp", "Lion", "MSVAG", "PAdam", "PID", "PNM", "QHAdam", "QHM", "SGDW",
        "SRMM", "SignSGD", "SimplifiedAdEMAMix", "SophiaH", "Tiger", "VSGD", "Yogi"))

# Of those, what kernels compute with other last bits at the end of a tensor than within it: sigmoids, and powers that
# these options set, by default square roots.
ROUGH, POWERS = frozenset({"pytorch_optimizer.DiffGrad"}), frozenset({"hessian_power", "lr_power", "partial"})


class Known(NamedTuple):
    """An optimiser that can be named: where it comes from, and why it cannot be used ("" if it can)."""

    name: str
    path: str
    refused: str

    @property
    def about(self) -> str:
        """What there is to say about it."""
        if self.refused:
            return f"not here: {self.refused}"
        return ("each coordinate by itself: clients may be stacked" if self.path in ELEMENTWISE
                else "by parameters: clients work one after another")


def known() -> dict[str, Known]:
    """Return the optimisers that can be named, by lower-case name; of pytorch_optimizer where it is installed."""
    found = {name.lower(): f"torch.optim.{name}" for name, value in vars(torch.optim).items()
             if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
             and value is not torch.optim.Optimizer}
    for name, cls in _second().items():
        if name not in found or name in LATER:
            found[name] = f"pytorch_optimizer.{cls.__name__}"
    return {name: Known(name, path, REFUSED.get(name, "")) for name, path in sorted(found.items())}


def locate(key: str, name: str) -> type[torch.optim.Optimizer]:
    """Return the class that a name or a dotted path means.

    Raises:
        ConfigError: if there is none, or it cannot be used, with the reason.
    """
    if "." in name:
        return _by_path(key, name)
    lower = str(name).lower()
    if lower.startswith(("bnb", "torchao")):
        raise ConfigError(key, name, "an optimiser that runs anywhere", GPU)
    if lower in REFUSED:
        raise ConfigError(key, name, "an optimiser that takes a gradient and makes a step", REFUSED[lower])
    every = known()
    if lower not in every:
        more = "" if _second() else "; those of pytorch_optimizer after `pip install 'fedlearn[optimizers]'`"
        near = get_close_matches(lower, [n for n, o in every.items() if not o.refused], n=1)
        raise ConfigError(key, name, "a name that `fedlearn list optimizers` shows, or the dotted path of a class"
                          + (f" (did you mean {near[0]}?)" if near else "") + more)
    return _by_path(key, every[lower].path)


def path_of(cls: type) -> str:
    """Return the path by which a class is known here."""
    root = cls.__module__.partition(".")[0]
    if cls.__module__.startswith("torch.optim."):
        return f"torch.optim.{cls.__name__}"
    return f"{root}.{cls.__name__}" if root == "pytorch_optimizer" else f"{cls.__module__}.{cls.__name__}"


def _by_path(key: str, path: str) -> type[torch.optim.Optimizer]:
    module, _, name = path.rpartition(".")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: Any = getattr(import_module(module), name, None)
    except ImportError as error:
        hint = ("`pip install 'fedlearn[optimizers]'` brings it." if module == "pytorch_optimizer"
                else f"Python says: {error}.")
        raise ConfigError(key, path, "a class that can be imported", hint) from None
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ConfigError(key, path, "a subclass of torch.optim.Optimizer")
    if reason := REFUSED.get(name.lower()):
        raise ConfigError(key, path, "an optimiser that takes a gradient and makes a step", reason)
    return found


def _second() -> dict[str, type]:
    """Return what pytorch_optimizer has by name, nothing where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = import_module("pytorch_optimizer") and import_module("pytorch_optimizer.optimizer").OPTIMIZERS
    except ImportError:
        return {}
    return dict(found)
