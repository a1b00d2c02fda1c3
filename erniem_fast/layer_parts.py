"""What a layer consists of, whatever its attributes are called."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from .fusion import DropoutLike


class AttentionParts(NamedTuple):
    """The parts of self-attention.

    Attributes:
        query, key, value: projections of (total_tokens, hidden_size) to (total_tokens, num_heads * head_dim).
        num_heads: heads, without the pruned ones.
        dropout: on the probabilities.
        layer: index of the layer.
        kept_heads: indices of the heads among those of a mask, where some were pruned; None: all.
        relative_scores: (batch, num_heads, seq_len, seq_len) of query and key (batch, num_heads, seq_len, head_dim),
            to be added before scaling; None for none. Computed densely.
        causal: True if a token sees those up to itself only, and the prefix.
    """

    query: nn.Module
    key: nn.Module
    value: nn.Module
    num_heads: int
    dropout: DropoutLike
    layer: int
    kept_heads: list[int] | None = None
    relative_scores: Callable[[Tensor, Tensor], Tensor] | None = None
    causal: bool = False


class LayerParts(NamedTuple):
    """The parts of a layer: attention, add and norm, feed-forward block, add and norm.

    Attributes:
        attention: the attention's parts with `out` behind them; or the module that holds both, which is called.
        out: projection of the joined heads; None where `attention` is a module.
        dropout1, norm1: behind the attention.
        linear1, activation, dropout, linear2: the feed-forward block.
        dropout2, norm2: behind the feed-forward block.
        layer: index of the layer.
    """

    attention: AttentionParts | nn.Module
    out: nn.Module | None
    dropout1: DropoutLike
    norm1: nn.Module
    linear1: nn.Module
    activation: nn.Module
    dropout: DropoutLike
    linear2: nn.Module
    dropout2: DropoutLike
    norm2: nn.Module
    layer: int

    def modules(self) -> list[nn.Module]:
        """The parts that are modules."""
        attention = self.attention
        inner = (attention.query, attention.key, attention.value, attention.dropout) if isinstance(
            attention, AttentionParts) else ()  # fmt: skip
        return [part for part in (*inner, *self) if isinstance(part, nn.Module)]
