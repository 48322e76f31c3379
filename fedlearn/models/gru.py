"""A recurrent language model with gated recurrent units.

Cho et al.: Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
Translation, EMNLP 2014; in the place of the LSTM of McMahan et al., AISTATS 2017, section 3 (an
embedding of 8 dimensions, 256 units, next-character prediction).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import in_range
from .check import require_shape


@dataclass(frozen=True)
class GRU:
    """Embedding of ``embedding`` dimensions, ``depth`` recurrent layers of ``width`` units."""

    embedding: int = 32
    width: int = 128
    depth: int = 1

    def __post_init__(self) -> None:
        in_range("model.embedding", self.embedding, least=1)
        in_range("model.width", self.width, least=1)
        in_range("model.depth", self.depth, least=1)

    def build(self, in_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Return a module: tokens int64 [n, L] in 0 to classes - 1 -> logits [n, L, classes].

        Raises:
            ModelError: if the samples are not sequences.
        """
        require_shape("gru", in_shape, len(in_shape) == 1, "token sequences [length]")
        return NextToken(classes, self.embedding, self.width, self.depth)


class NextToken(nn.Module):
    """Embed, recur, predict at every position."""

    def __init__(self, classes: int, embedding: int, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(classes, embedding)
        self.recur = nn.GRU(embedding, width, depth, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.recur(self.embed(tokens))
        return self.head(hidden)
