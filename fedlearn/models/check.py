"""What a model must be so that it can be averaged over clients."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import ModelError


def check_model(model: nn.Module) -> None:
    """Refuse a model that cannot be trained federatedly as it is.

    Raises:
        ModelError: for layers with running statistics (naming their paths), for parameters that
            have no shape yet, and for a model without trainable parameters.
    """
    running = [f"{path or 'the model itself'} ({type(module).__name__})"
               for path, module in model.named_modules()
               if getattr(module, "running_mean", None) is not None
               or getattr(module, "track_running_stats", False) is True]
    if running:
        raise ModelError(f"model: found running statistics in {', '.join(running)}, which averaging and "
                         "partial participation break; allowed: layers without them; replace by "
                         "torch.nn.GroupNorm(groups, channels).")
    lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise ModelError(f"model: found parameters without a shape: {', '.join(lazy)}; allowed: initialised "
                         "parameters; call the model once on a sample batch first.")
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError(f"model: {type(model).__name__} has no trainable parameters; allowed: at least one "
                         "with requires_grad=True.")


def require_shape(model: str, in_shape: tuple[int, ...], fits: bool, allowed: str) -> None:
    """Check that a model can be built for samples of shape ``in_shape``.

    Raises:
        ModelError: naming both.
    """
    if not fits:
        raise ModelError(f"model={model}: found samples of shape {list(in_shape)}; allowed: {allowed}; "
                         "choose another model for this task.")
