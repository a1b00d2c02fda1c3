"""Dropout as a function of (seed, site, place of the element): every backend draws the same mask.

Nothing is stored for backward, which draws the mask again. The mapping is described in `kernels/dropout.py`.
"""

from typing import Any

import torch
from torch import Tensor

from ..kernels.dropout import Dropout, keep_rows, keep_scale
from . import dropout_cpu

__all__ = ["Dropout", "check_dropout", "draw_seed", "dropout_rows"]


def draw_seed(device: torch.device) -> Tensor:
    """(1,) int64 from the device's default generator, so that `torch.manual_seed` governs dropout. No host sync."""
    return torch.randint(0, 2**62, (1,), dtype=torch.int64, device=device)


def check_dropout(dropout: Dropout | None, device: torch.device) -> None:
    """Check a dropout of operands on a device.

    Raises:
        ValueError: a probability outside [0, 1), or a seed that is no (1,) int64 tensor on the device.
    """
    if dropout is None:
        return
    p, seed, _ = dropout
    if not 0 <= p < 1:
        raise ValueError(f"dropout.p must lie in [0, 1), got {p}")
    if not isinstance(seed, Tensor) or seed.shape != (1,) or seed.dtype != torch.int64:
        got = f"{seed.dtype} {tuple(seed.shape)}" if isinstance(seed, Tensor) else repr(seed)
        raise ValueError(f"dropout.seed must be a (1,) int64 tensor, got {got}")
    if seed.device != device:
        raise ValueError(f"dropout.seed must be on {device}, where the operands are, got {seed.device}")


def dropout_rows(x: Tensor, dropout: Dropout | None) -> Tensor:
    """Apply a dropout to (total_tokens, size) rows, by torch."""
    if dropout is None or dropout.p == 0 or x.shape[0] == 0:
        return x
    return _DropoutRows.apply(x, dropout.seed, dropout.site, dropout.p)  # type: ignore[no-any-return]


def _drop(x: Tensor, seed: Tensor, site: int, p: float) -> Tensor:
    if dropout_cpu.takes(x):
        return dropout_cpu.drop_rows(x, seed, site, p)
    keep = keep_rows(seed, site, torch.arange(x.shape[0], device=x.device), x.shape[1], p)
    return torch.where(keep, x * keep_scale(p), 0.0)


class _DropoutRows(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, seed: Tensor, site: int, p: float) -> Tensor:
        return _drop(x, seed, site, p)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, seed, ctx.site, ctx.p = inputs
        ctx.save_for_backward(seed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (seed,) = ctx.saved_tensors
        return _drop(grads[0], seed, ctx.site, ctx.p), None, None, None
