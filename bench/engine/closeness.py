"""Check of a provider's results against the oracle's: without it no figure is written."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FLOAT32 = 1e-5
"""Greatest error in float32, relative to the largest magnitude."""
TIMES = 2
"""Greatest error in 16 bits over that of plain PyTorch in the same dtype, beyond one rounding of the right value."""


class WrongResultError(Exception):
    """A provider's result differs from the oracle's."""


class Closeness(NamedTuple):
    """Greatest absolute error over all results, and greatest error as a share of the error that is allowed."""

    error: float
    share: float


def compare(found: Sequence[Tensor], expected: Sequence[Tensor], plain: Sequence[Tensor] | None) -> Closeness:
    """Compare results with the oracle's.

    Args:
        found: the output and gradients.
        expected: the same in float32 or float64.
        plain: the same by plain PyTorch in the 16-bit dtype of `found`; None for float32.

    Raises:
        WrongResultError: a result is too far off, is not finite, or has another shape.
    """
    if len(found) != len(expected):
        raise WrongResultError(f"{len(found)} results, expected {len(expected)}")
    errors, shares = [], []
    for index, (one, right) in enumerate(zip(found, expected, strict=True)):
        name = "the output" if index == 0 else f"gradient {index}"
        if one.shape != right.shape:
            raise WrongResultError(f"{name} has shape {tuple(one.shape)}, expected {tuple(right.shape)}")
        error = _distance(one, right)
        largest = float(right.abs().max()) if right.numel() else 0.0
        if plain is None:
            allowed = FLOAT32 * max(largest, 1e-3)
        else:
            allowed = TIMES * _distance(plain[index], right) + torch.finfo(plain[index].dtype).eps / 2 * largest
        if not error <= allowed:  # a comparison with NaN is False
            raise WrongResultError(f"error of {name} {error:.2g}, at most {allowed:.2g}: no figure is written")
        errors.append(error)
        shares.append(error / allowed if allowed else 0.0)
    return Closeness(max(errors), max(shares))


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one.to(other.dtype) - other).abs().max()) if one.numel() else 0.0
