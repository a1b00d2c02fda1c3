"""Varlen attention of inference on a CPU: each sequence alone by torch's fused attention, on views of the packed rows.

No scores are written to memory. Very short sequences of one length are gathered, so that one call computes them; in 16
bits all those of about one length, filled up to whole tiles.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows_cpu import computes_plainly

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Others (float64) are computed as in training, to the bit."""
TILE = 16
"""Keys of a tile of oneDNN's: in 16 bits torch's attention takes up to twice as long where the last one is not full."""
LONGEST_TOGETHER = 16
"""Most tokens of sequences that are gathered in float32: for longer ones the copy takes longer than a call of their
own."""
FEWEST_TOGETHER = 4
"""Fewest of them."""


def takes(qkv: Tensor) -> bool:
    """True if `attention_cpu` computes these operands."""
    return qkv.device.type == "cpu" and qkv.dtype in DTYPES and computes_plainly(qkv)


class Group(NamedTuple):
    """Sequences that one call computes.

    Attributes:
        rows: (sequences, length) int64 of theirs; behind the end of a shorter one its last row again.
        kept: (kept tokens,) int64 places among the flattened rows that are no repetitions; None: all.
        places: (kept tokens,) int64 rows of these.
        mask: (sequences, 1, 1, length), 0 and at repetitions minus infinity; None without any.
    """

    rows: Tensor
    kept: Tensor | None
    places: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, starts: Tensor, lengths: Tensor, longest: int, dtype: torch.dtype) -> "Group":
        """From (sequences,) first rows and lengths."""
        places = torch.arange(longest)
        rows = starts[:, None] + torch.minimum(places, lengths[:, None] - 1)
        real = places < lengths[:, None]
        if bool(real.all()):
            return cls(rows, None, rows.flatten(), None)
        mask = torch.zeros(real.shape, dtype=dtype).masked_fill_(~real, -torch.inf)
        return cls(rows, real.flatten().nonzero().squeeze(1), rows[real], mask[:, None, None])


class Sequences(NamedTuple):
    """The sequences of a batch, as this file computes them.

    Attributes:
        end: rows of all of them.
        alone: rows of each that is computed alone.
        groups: those that are computed together.
    """

    end: int
    alone: list[slice]
    groups: list[Group]

    @classmethod
    def of(cls, cu_seqlens: Tensor, dtype: torch.dtype) -> "Sequences":
        """From (num_sequences + 1,) offsets on a CPU; in 16 bits lengths are filled up to tiles."""
        offsets, tiled = cu_seqlens.tolist(), dtype != torch.float32
        lengths = [end - start for start, end in pairwise(offsets)]
        by_length: dict[int, list[int]] = {}
        for index, length in enumerate(lengths):
            if length:
                by_length.setdefault(length - length % -TILE if tiled else length, []).append(index)
        alone: list[slice] = []
        groups: list[Group] = []
        for longest, indices in by_length.items():
            is_worth_it = len(indices) >= FEWEST_TOGETHER and longest <= LONGEST_TOGETHER
            if tiled:
                is_worth_it = len(indices) > 1 or lengths[indices[0]] < longest
            if is_worth_it:
                chosen = torch.tensor(indices)
                starts = cu_seqlens[chosen].long()
                groups.append(Group.of(starts, cu_seqlens[chosen + 1] - starts, longest, dtype))
            else:
                alone += [slice(offsets[index], offsets[index + 1]) for index in indices]
        return cls(offsets[-1], alone, groups)


def attention_cpu(qkv: Tensor, sequences: Sequences) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V of each sequence by itself.

    Args:
        qkv: (total_tokens, 3, num_heads, head_dim).
        sequences: of the batch.

    Returns:
        (total_tokens, num_heads, head_dim); 0 behind the last sequence.
    """
    out = qkv.new_empty(qkv.shape[0], *qkv.shape[2:])
    for rows in sequences.alone:
        query, key, value = qkv[rows].permute(1, 2, 0, 3).unsqueeze(1).unbind(0)
        out[rows] = F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1)
    for group in sequences.groups:
        taken = qkv.index_select(0, group.rows.flatten()).unflatten(0, group.rows.shape).permute(2, 0, 3, 1, 4)
        queries, keys, values = taken.unbind(0)
        heads = F.scaled_dot_product_attention(queries, keys, values, group.mask).transpose(1, 2).flatten(0, 1)
        heads = heads if group.kept is None else heads.index_select(0, group.kept)
        out.index_copy_(0, group.places, heads.to(out.dtype))
    if sequences.end < out.shape[0]:
        out[sequences.end :].zero_()
    return out
