"""Poolings: from the hidden states of a batch's tokens to one vector a sequence.

A new pooling is a function here and its line in `POOLINGS`; `embed`, the command line and its help read the table.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..packing import PackedBatch

Function = Callable[[PackedBatch, Tensor, Tensor | None], Tensor]


class Pooling(NamedTuple):
    """One way to pool.

    Attributes:
        function: from the batch, its last hidden states (total_tokens, hidden_size) and its pooler's output
            (num_sequences, hidden_size) to vectors (num_sequences, hidden_size) of any floating dtype. The pooler's
            output is None unless `reads_pooler`, or if the model has no pooler.
        description: half a sentence for `--help`.
        reads_pooler: the checkpoint must hold the pooler's weights.
    """

    function: Function
    description: str
    reads_pooler: bool = False


def mean(batch: PackedBatch, hidden_states: Tensor, pooler_output: Tensor | None) -> Tensor:
    """Mean of a sequence's hidden states, special tokens included."""
    return batch.mean(hidden_states)


def cls(batch: PackedBatch, hidden_states: Tensor, pooler_output: Tensor | None) -> Tensor:
    """Last hidden state of a sequence's first token."""
    return batch.first(hidden_states)


POOLINGS = {
    "mean": Pooling(mean, "of all of a text's tokens, special tokens included"),
    "cls": Pooling(cls, "its first token's last hidden state (not the pooler's output)"),
}


def pool(
    batch: PackedBatch,
    hidden_states: Tensor,
    pooler_output: Tensor | None,
    poolings: Sequence[str],
    skip: Tensor | None,
) -> Tensor:
    """Join the vectors of several poolings, (num_sequences, len(poolings) * hidden_size)."""
    return torch.cat([POOLINGS[name].function(batch, hidden_states, pooler_output).float() for name in poolings], 1)
