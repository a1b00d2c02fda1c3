"""Bias, an activation (GELU or ReLU) and dropout in one pass.

    y = act(x + bias) * keep / (1 - p)
    gelu(u) = u Phi(u)      gelu'(u) = Phi(u) + u phi(u)      phi(u) = exp(-u**2 / 2) / sqrt(2 pi)
    relu(u) = max(u, 0)     relu'(u) = 1 where u > 0, else 0

x, y: (total_tokens, intermediate_size), M x N in the kernels; bias: (intermediate_size,). Backward:
dx = dy * keep / (1 - p) * act'(x + bias), dbias = sum dx, the sum over rows in two steps of fixed order: each program
adds up its rows, then torch adds up the programs' sums. GELU: Hendrycks and Gimpel, arXiv 1606.08415.

Phi, the normal distribution, is exact to float32's last digits without erf, which costs twice the instructions:

    Phi(-t) = exp2(t P(t) - 1), t >= 0      gelu(u) = relu(u) - |u| Phi(-|u|)

P is fitted by `python -m bench.tools.fit_gelu`. gelu errs by at most 1e-7 beyond half a unit in the last place, gelu'
by 3e-7; at -infinity they are 0, at infinity it and 1.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .common import Operation, cdiv, dropout_arguments, keep_rows, narrow, partition, widen
from .configs import row_config
from .dropout import Dropout, drop_rows
from .jit import jit

UNSPECIALIZED = ["M", "rows_per_program", "site", "threshold"]
P = (
    -1.43575886e-06, 2.30401323e-05, -0.000110896052, -0.000311937978, 0.00728072889, -0.0526361204, -0.459166994,
    -1.1511091,
)  # fmt: skip
"""Coefficients of the polynomial P, the highest power first."""
_P, _DEGREE = tl.constexpr(P), tl.constexpr(len(P) - 1)
_LIMIT = tl.constexpr(15.0)  # from here on Phi(-t) and phi(t) are less than float32 holds, so 0
_MINUS = tl.constexpr(-1.0)  # the compiler takes -t for 0 - t, an addition; a sign in a product costs nothing
_PHI_EXPONENT, _LOG2_PHI_0 = tl.constexpr(-0.5 * math.log2(math.e)), tl.constexpr(-0.5 * math.log2(2 * math.pi))


def bias_activation_dropout_oracle(
    x: Tensor, bias: Tensor | None, activation: str = "gelu", dropout: Dropout | None = None
) -> Tensor:
    """The operation by plain formulas, in the dtype of its operands."""
    biased = x if bias is None else x + bias
    return drop_rows(F.relu(biased) if activation == "relu" else F.gelu(biased), dropout)


@triton.jit
def _bounded(x):
    """|x|, but at most _LIMIT: infinity times 0 would be NaN."""
    return tl.minimum(tl.abs(x), _LIMIT, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _normal_tail(t):
    """Phi(-t) of t in [0, _LIMIT], float32."""
    p = tl.full(t.shape, _P[0], tl.float32)
    for i in tl.static_range(_DEGREE):
        p = tl.fma(p, t, _P[i + 1])
    return tl.exp2(tl.fma(p, t, -1.0))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """act(x), float32."""
    tl.static_assert(ACTIVATION == "gelu" or ACTIVATION == "relu")
    y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if ACTIVATION == "gelu":
        t = _bounded(x)
        y = tl.fma(t * _MINUS, _normal_tail(t), y)
    return y


@triton.jit
def _activate_and_differentiate(x, dy, ACTIVATION: tl.constexpr):
    """act(x), bit for bit as `activate` has it, and dy act'(x), float32."""
    y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if ACTIVATION == "gelu":
        t = _bounded(x)
        tail = _normal_tail(t)
        y = tl.fma(t * _MINUS, tail, y)
        phi = tl.exp2(tl.fma(t * t, _PHI_EXPONENT, _LOG2_PHI_0))
        slope = tl.fma(t * _MINUS, phi, tail)  # gelu'(-t), which is 1 - gelu'(t)
        return y, dy * tl.where(x < 0, slope, 1 - slope)
    return y, tl.where(x <= 0, 0.0, dy)


@jit(do_not_specialize=UNSPECIALIZED)
def _activation_fwd_kernel(
    x_ptr,  # (M, N)
    bias_ptr,  # (N,)
    y_ptr,  # (M, N)
    seed_ptr,  # (1,) int64
    M,
    N: tl.constexpr,
    site,
    threshold,
    keep_scale,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    APPLY_DROPOUT: tl.constexpr,
    USE_PTX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A block of BLOCK_M rows and BLOCK_N columns a program."""
    num_blocks_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    start_m = tl.program_id(0) // num_blocks_n * BLOCK_M
    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(0) % num_blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    mask = (start_m + offs_m < M)[:, None] & mask_n[None, :]
    base = start_m.to(tl.int64) * N
    offsets = offs_m[:, None] * N + offs_n[None, :]
    x = widen(tl.load(x_ptr + base + offsets, mask=mask, other=0.0), USE_PTX)
    if HAS_BIAS:
        x += widen(tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0), USE_PTX)[None, :]

    y = activate(x, ACTIVATION)
    if APPLY_DROPOUT:
        keep = keep_rows(tl.load(seed_ptr), site, start_m + offs_m[:, None], offs_n[None, :], threshold, USE_PTX)
        y = tl.where(keep, y * keep_scale, 0.0)

    tl.store(y_ptr + base + offsets, narrow(y, y_ptr.dtype.element_ty), mask=mask)


@jit(do_not_specialize=UNSPECIALIZED)
def _activation_bwd_kernel(
    dy_ptr,  # (M, N)
    x_ptr,  # (M, N)
    bias_ptr,  # (N,)
    dx_ptr,  # (M, N)
    y_ptr,  # (M, N), if RECOMPUTE_Y
    dbias_ptr,  # (chunks of rows, N) float32
    seed_ptr,  # (1,) int64
    M,
    N: tl.constexpr,
    rows_per_program,
    site,
    threshold,
    keep_scale,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RECOMPUTE_Y: tl.constexpr,
    APPLY_DROPOUT: tl.constexpr,
    USE_PTX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """BLOCK_N columns of a chunk of rows_per_program rows a program."""
    num_blocks_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    chunk = tl.program_id(0) // num_blocks_n
    begin_m = chunk * rows_per_program
    end_m = tl.minimum(begin_m + rows_per_program, M)
    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(0) % num_blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    seed = begin_m.to(tl.int64)
    if APPLY_DROPOUT:
        seed = tl.load(seed_ptr)
    bias = tl.zeros((BLOCK_N,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    dbias = tl.zeros((BLOCK_N,), tl.float32)
    offsets = offs_m[:, None] * N + offs_n[None, :]

    for start_m in tl.range(begin_m, end_m, BLOCK_M, num_stages=NUM_STAGES):
        mask = (start_m + offs_m < end_m)[:, None] & mask_n[None, :]
        base = tl.cast(start_m, tl.int64) * N
        x = widen(tl.load(x_ptr + base + offsets, mask=mask, other=0.0), USE_PTX) + bias[None, :]
        dy = widen(tl.load(dy_ptr + base + offsets, mask=mask, other=0.0), USE_PTX)

        if APPLY_DROPOUT:
            keep = keep_rows(seed, site, start_m + offs_m[:, None], offs_n[None, :], threshold, USE_PTX)
            dy = tl.where(keep, dy * keep_scale, 0.0)
        y, dx = _activate_and_differentiate(x, dy, ACTIVATION)
        if HAS_BIAS:
            dbias += tl.sum(dx, 0)

        tl.store(dx_ptr + base + offsets, narrow(dx, dx_ptr.dtype.element_ty), mask=mask)
        if RECOMPUTE_Y:
            if APPLY_DROPOUT:
                y = tl.where(keep, y * keep_scale, 0.0)
            tl.store(y_ptr + base + offsets, narrow(y, y_ptr.dtype.element_ty), mask=mask)
    if HAS_BIAS:
        tl.store(dbias_ptr + chunk.to(tl.int64) * N + offs_n, dbias, mask=mask_n)


def launch_forward(
    x: Tensor, bias: Tensor | None, activation: str, dropout: Dropout | None, out: Tensor | None = None
) -> Tensor:
    """Launch the forward kernel; the result is written to `out` if given, which may be x."""
    y = torch.empty_like(x) if out is None else out
    m, n = x.shape
    config = row_config("activation_fwd", x.device, n)
    if x.numel():
        _activation_fwd_kernel[(cdiv(m, config.block_m) * cdiv(n, config.block_n),)](
            x, x if bias is None else bias, y, M=m, N=n, ACTIVATION=activation, HAS_BIAS=bias is not None,
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, num_warps=config.num_warps, **dropout_arguments(dropout, x),
        )  # fmt: skip
    return y


def launch_backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, activation: str, dropout: Dropout | None, recompute_y: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward kernel: (dx, dbias, y), of which dbias is empty without a bias, y without recompute_y."""
    dx, dbias, y = _fake_backward(dy, x, bias, activation, dropout, recompute_y)
    m, n = x.shape
    if not x.numel():
        return dx, dbias.zero_(), y
    config = row_config("activation_bwd", x.device, n)
    chunks, rows_per_program = partition(m, config)
    partial = x.new_empty((chunks, n if bias is not None else 0), dtype=torch.float32)
    _activation_bwd_kernel[(chunks * cdiv(n, config.block_n),)](
        dy, x, x if bias is None else bias, dx, y, partial, M=m, N=n, rows_per_program=rows_per_program,
        ACTIVATION=activation, HAS_BIAS=bias is not None, RECOMPUTE_Y=recompute_y, BLOCK_M=config.block_m,
        BLOCK_N=config.block_n, NUM_STAGES=config.num_stages, num_warps=config.num_warps,
        **dropout_arguments(dropout, x),
    )  # fmt: skip
    return dx, partial.sum(0).to(dbias.dtype), y


def _fake_backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, activation: str, dropout: Dropout | None, recompute_y: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dbias = x.new_empty(0) if bias is None else torch.empty_like(bias)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, dbias, torch.empty_like(dx) if recompute_y else x.new_empty(0, x.shape[1])


def _save(ctx: Any, args: tuple[Any, ...], y: Tensor) -> tuple[Tensor | None, ...]:
    x, bias, ctx.activation, _ = args
    return x, bias


def _grad(
    ctx: Any, dy: Tensor, saved: list[Tensor | None], dropout: Dropout | None
) -> tuple[Tensor | None, Tensor | None]:
    x, bias = saved
    dx, dbias, _ = bias_activation_dropout_backward(dy, x, bias, ctx.activation, dropout, False)
    return dx, None if bias is None else dbias


bias_activation_dropout_backward = Operation(
    "bias_activation_dropout_backward",
    "(Tensor dy, Tensor x, Tensor? bias, str activation, Dropout? dropout, bool recompute_y) "
    "-> (Tensor, Tensor, Tensor)",
    launch_backward,
    _fake_backward,
)
bias_activation_dropout = Operation(
    "bias_activation_dropout",
    "(Tensor x, Tensor? bias, str activation, Dropout? dropout) -> Tensor",
    lambda x, bias, activation, dropout: launch_forward(x, bias, activation, dropout),
    lambda x, bias, activation, dropout: torch.empty_like(x, memory_format=torch.contiguous_format),
    _save,
    _grad,
)
