"""Counter-based dropout: whether an element is kept is a function of a seed and of the element's place.

Nothing is stored between forward and backward: the mask is computed again. Every backend draws the same mask.

Mapping. An element stands at (row, head, column) of dropout site `site`; operations without heads use head 0, and
the row is the packed token index. One call of Philox4x32 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011; 7 rounds, the fewest that pass BigCrush) serves eight neighbouring columns:

    counter = (column // 8, row, head, site)         key = (seed mod 2**32, seed div 2**32)
    word    = output[(column % 8) // 2]              half = its low 16 bits for even columns, its high 16 for odd
    keep    = half >= threshold                      threshold = round(p * 2**16)

Kept elements are scaled by 1 / (1 - threshold / 2**16), so that the expectation is exact.
"""

import torch
from torch import Tensor

ROUNDS = 7
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
COLUMNS_PER_CALL = 8
_MASK32 = 0xFFFFFFFF


def threshold(p: float) -> int:
    """Number of the 2**16 equally likely halves that drop an element, for a dropout probability in [0, 1)."""
    return min(round(p * 65536), 65535)


def keep_scale(p: float) -> float:
    """What kept elements are multiplied by."""
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


def keep_mask(seed: Tensor, site: int, rows: Tensor, columns: int, p: float, heads: Tensor | None = None) -> Tensor:
    """The mask of `columns` columns for each row (and head).

    Args:
        seed: (1,) int64.
        site: which dropout of the model this is, in [0, 2**32).
        rows: int64 packed token indices, any shape.
        columns: number of columns.
        p: dropout probability in [0, 1).
        heads: int64 head indices that broadcast against `rows`; None: head 0.

    Returns:
        Bool tensor of the broadcast shape of `rows` and `heads`, plus (columns,); True is kept.
    """
    head = torch.zeros_like(rows) if heads is None else heads
    calls = torch.arange(-(-columns // COLUMNS_PER_CALL), device=rows.device)
    counter = (calls, rows[..., None], head[..., None], torch.full_like(seed, site))
    words = torch.stack(philox(counter, (seed & _MASK32, (seed >> 32) & _MASK32)), -1)
    # The low 32 bits of each int64 are its first half; less 2**15, the 16-bit halves compare as signed numbers.
    halves = words.view(torch.int32)[..., ::2].contiguous().view(torch.int16).flatten(-2) ^ -32768
    return halves[..., :columns] >= threshold(p) - 32768
