"""Cases of the kernels that work on rows."""

from itertools import product

import pytest
import torch

from erniem_fast.ops import Dropout, draw_seed

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [(1, 48), (13, 100), (47, 16), (2, 768), (1, 4096)] + [(70_000, 768)] * torch.cuda.is_available()
"""Rows and columns: fewer and more rows than programs, with and without a tail."""
PROGRAMS = 5
"""Most programs of a backward pass where it is interpreted, so that few rows are more rows than programs."""
dropped = pytest.mark.parametrize("p", [0.0, 0.3])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def _is_quick(shape: tuple[int, int], dtype: torch.dtype, p: float, biased: bool) -> bool:
    """True for every dtype once, for a size without a tail, and for both values of each flag."""
    if shape == (47, 16):
        return dtype == torch.float32 and p > 0 and biased
    return shape == (13, 100) and (p > 0) == biased == (dtype == torch.float32)


swept = pytest.mark.parametrize(
    ("shape", "dtype", "p", "biased"),
    [
        pytest.param(*case, marks=() if _is_quick(*case) else pytest.mark.slow)
        for case in product(SIZES, DTYPES, (0.0, 0.3), (False, True))
    ],
    ids=str,
)
"""Sizes, dtypes, with and without dropout and bias: all of them are slow but a few."""


def dropout_of(p: float, device: torch.device, site: int = 3) -> Dropout | None:
    """A dropout with a fresh seed, or None for p = 0."""
    return Dropout(p, draw_seed(device), site) if p else None
