"""Losses of rows of logits, and the logits replaced by their gradients, in one launch.

    loss = log(sum(exp(logits))) - logits[target]      G = scale (softmax(logits) - one_hot(target))

logits: (rows, vocab_size), M x N in the kernel, of any of the dtypes in `common.DTYPES`, a row PITCH elements behind
the one before it; losses: (rows,) float32. Rows whose target is -100 get a loss and a gradient of 0. Statistics and
exponentials are float32, by powers of two.

A program takes a row and goes through it twice: once for the maximum and the sum, which each lane keeps for its own
columns and corrects as the maximum grows (Milakov and Gimelshein, arXiv 1805.02867), and once to replace it. So a logit
is read twice and written once, the least where rows are longer than the caches of a chunk's programs.
"""

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .common import narrow, uses_ptx, widen
from .configs import row_config
from .jit import jit

_IGNORED = tl.constexpr(-100)
_LOG2_E, _LN_2 = tl.constexpr(math.log2(math.e)), tl.constexpr(math.log(2))
_LOWEST = tl.constexpr(-3.0e38)  # finite: minus infinity less itself would be NaN
_INFINITY = tl.constexpr(float("inf"))


def compare_oracle(logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Losses and gradients by plain formulas, in the dtype of the logits."""
    counted = targets != -100
    losses = F.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
    one_hot = F.one_hot(targets.clamp(min=0), logits.shape[1])
    return losses, torch.where(counted[:, None], scale * (logits.softmax(1) - one_hot), 0.0)


@triton.jit
def _load_scores(logits_ptr, offs_n, N, PITCH, USE_PTX: tl.constexpr):
    """Logits of a row times log2(e), minus infinity behind the last."""
    # The pitch divides by the width of a load, unlike N: the mask of a load ends there.
    scores = widen(tl.load(logits_ptr + offs_n, mask=offs_n < PITCH, other=0.0), USE_PTX)
    return tl.where(offs_n < N, scores * _LOG2_E, float("-inf"))


@jit()
def _cross_entropy_fwd_kernel(
    logits_ptr,  # (M, N), a row PITCH elements behind the one before it; replaced, if REPLACE
    targets_ptr,  # (M,) int64
    losses_ptr,  # (M,) float32
    N,
    PITCH,
    scale,
    log2_scale,
    REPLACE: tl.constexpr,
    USE_PTX: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A row a program."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * PITCH
    target = tl.load(targets_ptr + row)
    counted = target != _IGNORED
    target = tl.minimum(tl.maximum(target, 0), N - 1).to(tl.int32)
    wanted = tl.load(logits_ptr + target).to(tl.float32)
    columns = tl.arange(0, BLOCK_N)

    m_i = tl.full((BLOCK_N,), _LOWEST, tl.float32)
    l_i = tl.zeros((BLOCK_N,), tl.float32)
    for start_n in tl.range(0, N, BLOCK_N):
        scores = _load_scores(logits_ptr, start_n + columns, N, PITCH, USE_PTX)
        difference = scores - m_i
        grows = difference > 0
        # One exponential serves both cases: what the sum shrinks by, or what it grows by.
        factor = tl.exp2(-tl.abs(difference))
        l_i = tl.where(grows, tl.fma(l_i, factor, 1.0), l_i + factor)
        m_i = tl.where(grows, scores, m_i)
    m = tl.max(m_i, 0)
    total = tl.sum(l_i * tl.exp2(m_i - m), 0)
    lse = tl.where(m == _INFINITY, m - m, m + tl.log2(total))  # NaN of infinite logits, as by torch
    tl.store(losses_ptr + row, tl.where(counted, lse * _LN_2 - wanted, 0.0))

    if REPLACE:
        shift = lse - log2_scale
        # Every thread has read the target's logit before one of them replaces it.
        tl.debug_barrier()
        for start_n in tl.range(0, N, BLOCK_N):
            offs_n = start_n + columns
            grad = tl.exp2(_load_scores(logits_ptr, offs_n, N, PITCH, USE_PTX) - shift)
            grad = tl.where(offs_n == target, grad - scale, grad)
            grad = tl.where(counted, grad, 0.0)
            tl.store(logits_ptr + offs_n, narrow(grad, logits_ptr.dtype.element_ty, USE_PTX), mask=offs_n < PITCH)


def compare(logits: Tensor, targets: Tensor, losses: Tensor, scale: float | None) -> None:
    """Write the losses of rows; with a scale replace their logits by G.

    Args:
        logits: (rows, vocab_size), the first columns of rows that are a multiple of 16 long; overwritten, those behind
            the last one, too.
        targets: (rows,) int64.
        losses: (rows,) float32.
        scale: None: no gradient is needed.
    """
    rows, vocab_size = logits.shape
    config = row_config("cross_entropy_fwd", logits.device, vocab_size)
    factor = 1.0 if scale is None else scale
    _cross_entropy_fwd_kernel[(rows,)](
        logits, targets, losses, N=vocab_size, PITCH=logits.stride(0), scale=factor, log2_scale=math.log2(factor),
        REPLACE=scale is not None, USE_PTX=uses_ptx(logits.device), BLOCK_N=config.block_n,
        num_warps=config.num_warps,
    )  # fmt: skip
