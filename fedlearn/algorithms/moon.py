"""MOON: a client's representations are drawn to those of the global model, away from its own old ones.

Q. Li, B. He, D. Song, "Model-Contrastive Federated Learning", CVPR 2021, Algorithm 1.

    client m:   y_0 = x;  y_{k+1} = y_k - eta grad [f_m(y) + mu l_con(y)] at y_k;  Delta_m = y_K - x
                l_con = mean over the mini-batch of
                        -log( e^{cos(z, z_glob) / T} / (e^{cos(z, z_glob) / T} + e^{cos(z, z_prev) / T}) )
                z, z_glob, z_prev: the representation of a sample by y, by x and by p_m;  p_m <- y_K
    server:     x <- x + eta_g sum_m w_m Delta_m

======  ==============  =======  ================================================================
symbol  field           default  where the default comes from
======  ==============  =======  ================================================================
eta     lr              0.1      as FedAvg here; the paper has 0.01 with momentum 0.9
eta_g   server_lr       1.0      the paper's plain averaging
mu      mu              1.0      the authors' code; the paper tunes over {0.1, 1, 5, 10}; 0 is FedAvg
T       temperature     0.5      the paper
p_m     (client state)           the client's last local model; the initial model at first, as in their code
======  ==============  =======  ================================================================

Deviations: the representation is what goes into the model's last Linear layer. The paper puts a
projection head of two layers before that one: where it is wanted it is a matter of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, ServerState, StepInfo, Vec
from ..errors import in_range


@dataclass(frozen=True)
class Moon(ServerAlgorithm):
    """Local SGD on the loss and a contrast of representations; each client keeps its last model [P]."""

    lr: float = 0.1
    mu: float = 1.0
    temperature: float = 0.5
    server_lr: float = 1.0

    coordinatewise: ClassVar[bool] = True
    representations: ClassVar[bool] = True
    unstackable: ClassVar[str] = "It compares the representations of three models, one client at a time."

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.mu", self.mu, least=0)
        in_range("algorithm.temperature", self.temperature, above=0)
        in_range("algorithm.server_lr", self.server_lr, above=0)

    def client_init(self, x0: Vec) -> Vec:
        return x0.clone()

    def objective(self, loss: Tensor, z: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Return the loss plus mu l_con, with ``others`` the representations by x and by p_m."""
        alike, old = (F.cosine_similarity(z, other, dim=-1) for other in others)
        # -log(e^a / (e^a + e^b)) = softplus(b - a)
        return loss + self.mu * F.softplus((old - alike) / self.temperature).mean()

    def local_step(self, y: Vec, b: Msg, c: Vec, oracle: Oracle, info: StepInfo) -> Vec:
        return y.add_(oracle.grad_of(y, (b["x"], c), self.objective), alpha=-self.lr * info.lr_factor)

    def local_finish(self, y: Vec, b: Msg, c: Vec, info: StepInfo) -> tuple[Msg, Vec]:
        return {"dx": y - b["x"]}, y

    def server_update(self, s: ServerState, mean: Msg, info: RoundInfo) -> ServerState:
        return ServerState(s.x + self.server_lr * info.lr_factor * mean["dx"])
