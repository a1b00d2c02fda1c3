"""Poolings: from the hidden states of a batch's tokens to one vector a sequence.

vectors = pool(batch, output.last_hidden_state, output.pooler_output, ("mean", "max"))

A new pooling is a function here and its line in `POOLINGS`; the engine, the command line and its help read the table.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..packing import PackedBatch

Function = Callable[[PackedBatch, Tensor, Tensor | None, Tensor | None], Tensor]


class Pooling(NamedTuple):
    """One way to pool.

    Attributes:
        function: from the batch, its last hidden states (total_tokens, hidden_size), its pooler's output
            (num_sequences, hidden_size) and how many tokens of each sequence to skip, (num_sequences,) integers or
            None, to vectors (num_sequences, hidden_size) of any floating dtype: zeros where no token is left. The
            pooler's output is None unless `reads_pooler`, or if the model has no pooler.
        description: half a sentence for `--help`.
        reads_pooler: the checkpoint must hold the pooler's weights.
    """

    function: Function
    description: str
    reads_pooler: bool = False


def pool(
    batch: PackedBatch,
    hidden_states: Tensor,
    pooler_output: Tensor | None,
    poolings: Iterable[str],
    skip: Tensor | None = None,
) -> Tensor:
    """Pool a batch in one or more ways, whose vectors are joined in order.

    Args:
        batch: whose sequences are pooled. No pooling waits for the device.
        hidden_states: (total_tokens, hidden_size) last hidden states; rows behind the last sequence are not read.
        pooler_output: (num_sequences, hidden_size) output of the model's pooler, or None.
        poolings: names in `POOLINGS`.
        skip: (num_sequences,) integers, tokens at the start of each sequence that are left out, such as a prompt's;
            None: no token is.

    Returns:
        (num_sequences, len(poolings) * hidden_size) float32; zeros where no token is left.
    """
    vectors = [POOLINGS[name].function(batch, hidden_states, pooler_output, skip).float() for name in poolings]
    return torch.cat(vectors, dim=-1)


def cls(batch: PackedBatch, hidden_states: Tensor, pooler_output: Tensor | None, skip: Tensor | None = None) -> Tensor:
    """Last hidden state of a sequence's first token."""
    starts, ends = _spans(batch, hidden_states, skip)
    return _take(hidden_states, starts, starts < ends)


def last_token(
    batch: PackedBatch, hidden_states: Tensor, pooler_output: Tensor | None, skip: Tensor | None = None
) -> Tensor:
    """Last hidden state of a sequence's last token."""
    starts, ends = _spans(batch, hidden_states, skip)
    return _take(hidden_states, ends - 1, starts < ends)


def mean(batch: PackedBatch, hidden_states: Tensor, pooler_output: Tensor | None, skip: Tensor | None = None) -> Tensor:
    """Mean of a sequence's hidden states, special tokens included."""
    starts, ends = _spans(batch, hidden_states, skip)
    return _sum(hidden_states, starts, ends) / (ends - starts).clamp(min=1)[:, None]


def mean_sqrt_len(
    batch: PackedBatch, hidden_states: Tensor, pooler_output: Tensor | None, skip: Tensor | None = None
) -> Tensor:
    """Sum of a sequence's hidden states by the root of their number."""
    starts, ends = _spans(batch, hidden_states, skip)
    return _sum(hidden_states, starts, ends) / (ends - starts).clamp(min=1)[:, None].sqrt()


def weighted_mean(
    batch: PackedBatch, hidden_states: Tensor, pooler_output: Tensor | None, skip: Tensor | None = None
) -> Tensor:
    """Mean of a sequence's hidden states, the k-th of its tokens k times (skipped tokens are counted, too)."""
    starts, ends = _spans(batch, hidden_states, skip)
    firsts, _ = _spans(batch, hidden_states)
    rows = torch.arange(hidden_states.shape[0], device=hidden_states.device)
    sequence = torch.searchsorted(ends, rows, right=True).clamp(max=batch.num_sequences - 1)
    weights = rows - firsts[sequence] + 1
    skipped, length = starts - firsts, ends - firsts
    total = (length * (length + 1) - skipped * (skipped + 1)) // 2
    return _sum(hidden_states, starts, ends, weights) / total.clamp(min=1)[:, None]


def maximum(
    batch: PackedBatch, hidden_states: Tensor, pooler_output: Tensor | None, skip: Tensor | None = None
) -> Tensor:
    """Greatest value of each column in a sequence's hidden states."""
    starts, ends = _spans(batch, hidden_states, skip)
    offsets = _offsets(starts, ends, hidden_states.shape[0])
    greatest = torch.segment_reduce(hidden_states.float(), "max", offsets=offsets)[1::2]
    # The greatest of no value is minus infinity.
    return greatest.masked_fill((starts == ends)[:, None], 0.0)


def _spans(batch: PackedBatch, rows: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """First row of each sequence behind those to skip, and the row behind its last: (num_sequences,) int64 each."""
    # In bounds whatever the offsets hold: those on a device are not read.
    offsets = batch.cu_seqlens.long().clamp(0, rows.shape[0]).cummax(0).values
    starts, ends = offsets[:-1], offsets[1:]
    return (starts if skip is None else torch.minimum(starts + skip.clamp(min=0), ends)), ends


def _offsets(starts: Tensor, ends: Tensor, total: int) -> Tensor:
    """Offsets of adjoining segments, from 0 to `total`: every other one, from the second on, is a span."""
    return torch.cat((starts.new_zeros(1), torch.stack((starts, ends), dim=1).flatten(), ends.new_full((1,), total)))


def _take(rows: Tensor, places: Tensor, kept: Tensor) -> Tensor:
    """Rows at `places`, (num_sequences, hidden_size); zeros where there is none."""
    if rows.shape[0] == 0:
        return rows.new_zeros((places.shape[0], rows.shape[1]))
    return rows.index_select(0, places.clamp(0, rows.shape[0] - 1)).masked_fill(~kept[:, None], 0.0)


def _sum(rows: Tensor, starts: Tensor, ends: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum of each span's rows, weighted by (total_tokens,) weights: (num_sequences, hidden_size) float32."""
    # On a CPU a third of segment_reduce's time.
    sums = F.embedding_bag(
        torch.arange(rows.shape[0], device=rows.device),
        rows.float(),
        _offsets(starts, ends, rows.shape[0]),
        mode="sum",
        per_sample_weights=None if weights is None else weights.float(),
        include_last_offset=True,
    )
    return sums[1::2]


POOLINGS = {
    "mean": Pooling(mean, "of all of a text's tokens, special tokens included"),
    "cls": Pooling(cls, "its first token's last hidden state (not the pooler's output)"),
    "max": Pooling(maximum, "the greatest value of each column"),
    "mean_sqrt_len": Pooling(mean_sqrt_len, "the sum by the root of the number of tokens"),
    "weightedmean": Pooling(weighted_mean, "the mean, the k-th token k times"),
    "lasttoken": Pooling(last_token, "its last token's last hidden state"),
}
