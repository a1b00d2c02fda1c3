"""Counter-based dropout: a mask that is a function of a seed and of each element's position.

Nothing is stored between forward and backward: the mask is computed again. Every backend draws the same mask.

The words come from Philox, which turns a counter and a key into random bits (Salmon et al., "Parallel random numbers:
as easy as 1, 2, 3", SC 2011). A call gives words of 32 bits; each half of 16 bits serves one element:

    keep = half >= threshold      threshold = round(p * 2**16)

Kept elements are scaled by 1 / (1 - threshold / 2**16), so that the expectation is exact. `site` numbers the dropouts
of a model. Which elements share a call follows from what one thread of a GPU holds, so that a kernel computes each call
once and moves no random number between threads:

    packed rows, element (row, column): Philox4x32 of 7 rounds; eight neighbouring columns, as a thread loads them.
        key = (seed mod 2**32, seed div 2**32)      counter = (column // 8, row, 0, site)
        row = the packed token index                word = column % 8 // 2
        half = low for even columns, high for odd ones

    attention scores (row, column) of the sequence that begins at token `start`: Philox2x32 of 7 rounds; rows r and
    r + 8 by columns c and c + 8, as a tensor core's accumulator lies in a thread, whichever of the two runs along it.
        (key, tweak) = the first two words of Philox4x32 of 10 rounds
            with counter (seed mod 2**32, seed div 2**32, site, 0) and key (0, 0)
        counter = (start + r, (head * 2**16 + c) xor tweak)      r, c = row and column without their bit of value 8
        word = row // 8 % 2                                      half = low if column // 8 % 2 is 0, else high

Seven rounds: of Philox4x32 the fewest that the paper lists as passing BigCrush; of Philox2x32 one more than its authors
ask for (the comment in philox.h of their library, Random123: no statistical flaws known from six rounds on).

Philox2x32 has a key of 32 bits only, less than seeds and sites have: that is why the tweak moves its counters as well.
Up to 2**16 heads and 2**16 columns, no two calls of a site share a counter.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ROUNDS = 7
KEY_ROUNDS = 10
"""Rounds of the call that makes a key of Philox2x32."""
MULTIPLIER_2 = 0xD256D193
"""Of Philox2x32; its key's step is the first of Philox4x32's."""
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


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, ...], rounds: int = ROUNDS) -> tuple[Tensor, ...]:
    """Philox4x32 on int64 tensors that hold unsigned 32-bit words.

    Args:
        counter: four tensors that broadcast against each other.
        key: two tensors that broadcast against them.
        rounds: number of rounds.

    Returns:
        Four tensors of the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
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


def philox_2(counter: tuple[Tensor, ...], key: Tensor, rounds: int = ROUNDS) -> tuple[Tensor, ...]:
    """Philox2x32, as `philox`: two words of a counter of two and a key of one."""
    c0, c1 = counter
    for _ in range(rounds):
        product = c0 * MULTIPLIER_2
        c0, c1 = ((product >> 32) & _MASK32) ^ key ^ c1, product & _MASK32
        key = (key + KEY_STEPS[0]) & _MASK32
    return c0, c1


def scores_key(seed: Tensor, site: int) -> tuple[Tensor, Tensor]:
    """(key, tweak), (1,) int64 each: what stands for a seed and a site in the mask of the scores."""
    none = torch.zeros_like(seed)
    key, tweak, _, _ = philox((*_words(seed), none + site, none), (none, none), KEY_ROUNDS)
    return key, tweak


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
    return _keep(philox(counter, _words(seed)), p).flatten(-2)[:, :columns]


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
    key, tweak = scores_key(seed, site)
    patches = max(1, -(-length // 16))
    places = torch.arange(patches * 16, device=seed.device).view(patches, 2, 8)[:, 0].reshape(-1)
    rows = (starts.long().view(-1, 1, 1, 1) + places[:, None]) & _MASK32
    heads = torch.arange(num_heads, device=seed.device).view(-1, 1, 1)
    kept = _keep(philox_2((rows, ((heads * 65536 + places) & _MASK32) ^ tweak), key), p)
    # (sequence, head, row patch, row in 8, column patch, column in 8, lower, right)
    kept = kept.view(starts.shape[0], num_heads, patches, 8, patches, 8, 2, 2)
    kept = kept.permute(0, 1, 2, 6, 3, 4, 7, 5).reshape(starts.shape[0], num_heads, patches * 16, patches * 16)
    return kept[..., :length, :length]


def _words(seed: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high 32 bits."""
    return seed & _MASK32, (seed >> 32) & _MASK32


def _keep(words: tuple[Tensor, ...], p: float) -> Tensor:
    """Mask of each call's elements, two a word, in the last dimension."""
    # The low 32 bits of each int64 are its first half; less 2**15, the 16-bit halves compare as signed numbers.
    halves = torch.stack(words, -1).view(torch.int32)[..., ::2].contiguous().view(torch.int16) ^ -32768
    return halves >= threshold(p) - 32768
