"""Varlen attention of inference on a CPU: each sequence alone by torch's fused attention, on views of the packed rows.

No scores are written to memory. Very short sequences of one length are gathered, so that one call computes them. In 16
bits the keys of a longer one reach into the next sequence, up to whole tiles of oneDNN's, and a mask hides those.
"""

import math
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows_cpu import computes_plainly

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Others (float64) are computed as in training, to the bit."""
LONGEST_TOGETHER = 16
"""Most tokens of sequences that are gathered: for longer ones the copy takes longer than a call of their own."""
FEWEST_TOGETHER = 4
TILE, SHORTEST_TILED = 16, 64
"""Keys that a tile holds, and fewest tokens of a sequence that torch computes by tiles."""


def takes(qkv: Tensor) -> bool:
    """True if `attention_cpu` computes these operands."""
    return qkv.device.type == "cpu" and qkv.dtype in DTYPES and computes_plainly(qkv)


class Sequences(NamedTuple):
    """The sequences of a batch, as this file computes them.

    Attributes:
        lengths: of each, and at the end the rows behind the last one.
        alone: indices of those that are computed alone.
        together: (sequences, length) int64 rows of those of one length that are gathered.
    """

    lengths: list[int]
    alone: list[int]
    together: list[Tensor]

    @classmethod
    def of(cls, cu_seqlens: Tensor, total_tokens: int) -> "Sequences":
        """From (num_sequences + 1,) offsets on a CPU."""
        offsets = cu_seqlens.tolist()
        lengths = [end - start for start, end in pairwise(offsets)]
        by_length: dict[int, list[int]] = {}
        alone = []
        for index, length in enumerate(lengths):
            if length > LONGEST_TOGETHER:
                alone.append(index)
            elif length:
                by_length.setdefault(length, []).append(index)
        together = []
        for length, indices in by_length.items():
            if len(indices) < FEWEST_TOGETHER:
                alone += indices
            else:
                together.append(cu_seqlens[torch.tensor(indices), None].long() + torch.arange(length))
        return cls([*lengths, total_tokens - offsets[-1]], alone, together)


def attention_cpu(qkv: Tensor, sequences: Sequences) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V of each sequence by itself.

    Args:
        qkv: (total_tokens, 3, num_heads, head_dim).
        sequences: of the batch.

    Returns:
        (total_tokens, num_heads, head_dim); 0 behind the last sequence.
    """
    if qkv.dtype == torch.float32:
        return _compute(qkv, sequences, tiled=False)
    out = _compute(qkv, sequences, tiled=True)
    # 0 * infinity is NaN: a hidden value that is not finite shows.
    return out if math.isfinite(out.sum(dtype=torch.float32)) else _compute(qkv, sequences, tiled=False)


def _compute(qkv: Tensor, sequences: Sequences, tiled: bool) -> Tensor:
    """`attention_cpu`; tiled: with keys up to whole tiles."""
    lengths, total = sequences.lengths, qkv.shape[0]
    out = qkv.new_empty(total, *qkv.shape[2:])
    # (1, num_heads, total_tokens, head_dim)
    query, key, value = qkv.permute(1, 2, 0, 3).unsqueeze(1).unbind(0)
    starts = list(accumulate(lengths, initial=0))
    seen = qkv.new_zeros(max(lengths) + TILE)  # the mask of a sequence ends in a few of the last TILE
    seen[-TILE:] = -math.inf
    for index in sequences.alone:
        start, length = starts[index], lengths[index]
        keys, mask = length, None
        if tiled and length >= SHORTEST_TILED and length % TILE and start + length - length % -TILE <= total:
            keys = length - length % -TILE
            mask = seen[-TILE - length :][:keys].expand(1, 1, 1, keys)
        heads = F.scaled_dot_product_attention(
            query.narrow(2, start, length), key.narrow(2, start, keys), value.narrow(2, start, keys), mask
        )
        out.narrow(0, start, length).copy_(heads[0].transpose(0, 1))
    for rows in sequences.together:
        places = rows.flatten()
        taken = qkv.index_select(0, places).unflatten(0, rows.shape).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(*taken.unbind(0))
        out.index_copy_(0, places, heads.transpose(1, 2).flatten(0, 1).to(out.dtype))
    out[starts[-2] :].zero_()
    return out
