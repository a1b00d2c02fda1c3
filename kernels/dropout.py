"""Counter-based dropout: a mask that is a function of a seed and of each element's position.

Nothing is stored between forward and backward: the mask is computed again. Every backend draws the same mask.

One call of Philox4x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; 7 rounds, the fewest
that pass BigCrush) gives four words, that is eight halves of 16 bits, and serves eight elements:

    key = (seed mod 2**32, seed div 2**32)      counter = (call, row, head, site)
    half = low 16 bits of output[word] for even columns, high 16 for odd ones
    keep = half >= threshold                    threshold = round(p * 2**16)

Kept elements are scaled by 1 / (1 - threshold / 2**16), so that the expectation is exact. `site` numbers the dropouts
of a model. Which eight elements share a call follows from what one thread of a GPU holds, so that a kernel computes
each call once and moves no random number between threads:

    packed rows, element (row, column): eight neighbouring columns, as a thread loads them.
        call = column // 8      row = the packed token index      head = 0      word = column % 8 // 2
    attention scores (row, column) of the sequence that begins at token `start`: rows r and r + 8 by columns c, c + 1,
    c + 8 and c + 9, as a tensor core's accumulator lies in a thread.
        call = column // 16 * 4 + column % 8 // 2      row = start + (row without its bit of value 8)
        word = 2 * (row // 8 % 2) + column // 8 % 2
"""

from typing import NamedTuple

import torch
from torch import Tensor

ROUNDS = 7
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_MASK32 = 0xFFFFFFFF


class Dropout(NamedTuple):
    """Dropout of one tensor; no dropout is None. The module says how the mask follows from it.

    Attributes:
        p: probability of dropping an element, in [0, 1).
        seed: (1,) int64 on the tensor's device, drawn once a forward.
        site: number of this dropout among those of the model, in [0, 2**32).
    """

    p: float
    seed: Tensor
    site: int


def threshold(p: float) -> int:
    """Number of the 2**16 equally likely halves that drop an element, for a dropout probability in [0, 1)."""
    return min(round(p * 65536), 65535)


def keep_scale(p: float) -> float:
    """Factor of kept elements."""
    return 65536 / (65536 - threshold(p))


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Philox4x32 on int64 tensors that hold unsigned 32-bit words.

    Args:
        counter: four tensors that broadcast against each other.
        key: two tensors that broadcast against them.

    Returns:
        Four tensors of the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The product wraps in int64, but its bits are those of the unsigned product.
        even, odd = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((odd >> 32) & _MASK32) ^ c1 ^ k0,
            odd & _MASK32,
            ((even >> 32) & _MASK32) ^ c3 ^ k1,
            even & _MASK32,
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & _MASK32, (k1 + KEY_STEPS[1]) & _MASK32
    return c0, c1, c2, c3


def keep_rows(seed: Tensor, site: int, rows: Tensor, columns: int, p: float) -> Tensor:
    """Mask of packed rows.

    Args:
        seed: (1,) int64.
        site: number of this dropout among those of the model, in [0, 2**32).
        rows: (n,) int64 packed token indices.
        columns: number of columns.
        p: dropout probability in [0, 1).

    Returns:
        (n, columns) bool; True for elements that are kept.
    """
    calls = torch.arange(-(-columns // 8), device=rows.device)
    counter = (calls, rows[:, None], torch.zeros_like(seed), torch.full_like(seed, site))
    return _keep(counter, seed, p).flatten(-2)[:, :columns]


def drop_rows(x: Tensor, dropout: Dropout | None) -> Tensor:
    """Dropout of packed rows by torch operations; x: (total_tokens, columns), its first row the batch's first."""
    if dropout is None or not dropout.p:
        return x
    rows = torch.arange(x.shape[0], device=x.device)
    return x * keep_rows(dropout.seed, dropout.site, rows, x.shape[1], dropout.p) * keep_scale(dropout.p)


def keep_scores(seed: Tensor, site: int, starts: Tensor, num_heads: int, length: int, p: float) -> Tensor:
    """Mask of the attention scores of sequences of one length (or padded to it).

    Args:
        seed: (1,) int64.
        site: number of this dropout among those of the model, in [0, 2**32).
        starts: (sequences,) packed index of each sequence's first token.
        num_heads: number of heads.
        length: rows and columns.
        p: dropout probability in [0, 1).

    Returns:
        (sequences, num_heads, length, length) bool; True for elements that are kept.
    """
    patches = max(1, -(-length // 16))
    positions = torch.arange(patches * 16, device=seed.device).view(patches, 2, 8)
    rows = starts.long().view(-1, 1, 1, 1) + positions[:, 0].reshape(-1, 1)
    heads = torch.arange(num_heads, device=seed.device).view(-1, 1, 1)
    calls = torch.arange(patches * 4, device=seed.device)
    kept = _keep((calls, rows, heads, torch.full_like(seed, site)), seed, p)
    # (sequence, head, row patch, row in 8, column patch, pair in 4, lower, right, odd)
    kept = kept.view(starts.shape[0], num_heads, patches, 8, patches, 4, 2, 2, 2)
    kept = kept.permute(0, 1, 2, 6, 3, 4, 7, 5, 8).reshape(starts.shape[0], num_heads, patches * 16, patches * 16)
    return kept[..., :length, :length]


def _keep(counter: tuple[Tensor, ...], seed: Tensor, p: float) -> Tensor:
    """Mask of each call's elements, (..., 8) bool."""
    words = torch.stack(philox(counter, (seed & _MASK32, (seed >> 32) & _MASK32)), -1)
    # The low 32 bits of each int64 are its first half; less 2**15, the 16-bit halves compare as signed numbers.
    halves = words.view(torch.int32)[..., ::2].contiguous().view(torch.int16) ^ -32768
    return halves >= threshold(p) - 32768
