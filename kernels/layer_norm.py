"""Dropout, residual addition and layer-norm in one pass.

    z = residual + dropout(x + linear_bias)      y = (z - mean(z)) rstd(z) weight + bias

x, residual: (total_tokens, hidden_size), M x N in the kernels, of any of the dtypes in `common.DTYPES`; y and z have
the wider of their two dtypes; mean, rstd: (total_tokens,) float32, of z as it is stored; weight, bias, linear_bias:
(hidden_size,). Backward, with xhat = (z - mean) rstd:

    g = dy weight      dz = rstd (g - mean(g) - xhat mean(g xhat))      dresidual = dz      dx = dz * keep / (1 - p)
    dweight = sum dy xhat      dbias = sum dy      dlinear_bias = sum dx

The three sums over rows are made in two steps of fixed order: each program adds up its rows, then torch adds up the
programs' sums. Layer-norm: Ba et al., arXiv 1607.06450.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .common import (
    Operation,
    cdiv,
    dropout_arguments,
    drops,
    keep_rows,
    narrow,
    partition,
    round_to,
    row_blocks,
    widen,
)
from .configs import row_config
from .dropout import Dropout, drop_rows
from .jit import jit

UNSPECIALIZED = ["M", "rows_per_program", "site", "threshold"]


def dropout_add_layer_norm_oracle(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    linear_bias: Tensor | None,
    eps: float,
    dropout: Dropout | None = None,
) -> Tensor:
    """The operation by plain formulas, in the dtype of its operands."""
    x = drop_rows(x if linear_bias is None else x + linear_bias, dropout)
    return F.layer_norm(residual + x, weight.shape, weight, bias, eps)


@triton.jit
def row_block(CHUNKS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Offsets of rows and columns that broadcast to (CHUNKS, BLOCK_M, BLOCK_N)."""
    chunks, columns = tl.arange(0, CHUNKS), tl.arange(0, BLOCK_N)
    return tl.arange(0, BLOCK_M)[None, :, None], (chunks * BLOCK_N)[:, None, None] + columns[None, None, :]


@triton.jit
def terms(x, mask_n):
    """x, or in columns past the last -0.0, which a compiler may leave out of a sum, unlike 0.0."""
    return tl.where(mask_n, x, -0.0)


@triton.jit
def row_mean(x, mask_n, N: tl.constexpr):
    """(1, BLOCK_M, 1): means over the N columns of rows x (CHUNKS, BLOCK_M, BLOCK_N)."""
    return (tl.sum(tl.sum(terms(x, mask_n), 0), 1) / N)[None, :, None]


@triton.jit
def normalize(z, mask_n, eps, N: tl.constexpr):
    """(xhat, mean, rstd) of rows z (CHUNKS, BLOCK_M, BLOCK_N) float32."""
    mean = row_mean(z, mask_n, N)
    centred = z - mean
    rstd = tl.rsqrt(row_mean(centred * centred, mask_n, N) + eps)
    return centred * rstd, mean, rstd


@triton.jit
def normalize_grad(dy, xhat, weight, rstd, mask_n, N: tl.constexpr):
    """dz of rows."""
    g = dy * weight
    return (g - row_mean(g, mask_n, N) - xhat * row_mean(g * xhat, mask_n, N)) * rstd


@jit(do_not_specialize=UNSPECIALIZED)
def _layer_norm_fwd_kernel(
    x_ptr,  # (M, N)
    residual_ptr,  # (M, N)
    weight_ptr,  # (N,)
    bias_ptr,  # (N,)
    linear_bias_ptr,  # (N,)
    y_ptr,  # (M, N)
    z_ptr,  # (M, N), if STORE_Z_AND_STATS, as the next two
    mean_ptr,  # (M,) float32
    rstd_ptr,  # (M,) float32
    seed_ptr,  # (1,) int64
    M,
    N: tl.constexpr,
    eps,
    site,
    threshold,
    keep_scale,
    HAS_LINEAR_BIAS: tl.constexpr,
    STORE_Z_AND_STATS: tl.constexpr,
    APPLY_DROPOUT: tl.constexpr,
    USE_PTX: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """BLOCK_M whole rows a program."""
    start_m = tl.program_id(0) * BLOCK_M
    offs_m, offs_n = row_block(CHUNKS, BLOCK_M, BLOCK_N)
    mask_m, mask_n = start_m + offs_m < M, offs_n < N
    mask = mask_m & mask_n
    rows = tl.minimum(start_m + offs_m, M - 1)  # past the last row that one again: loads need no mask of rows
    offsets, columns = rows.to(tl.int64) * N + offs_n, offs_m * 0 + offs_n

    z = widen(tl.load(x_ptr + offsets, mask=mask_n, other=0.0), USE_PTX)
    if HAS_LINEAR_BIAS:
        z += widen(tl.load(linear_bias_ptr + columns, mask=mask_n, other=0.0), USE_PTX)
    if APPLY_DROPOUT:
        keep = keep_rows(tl.load(seed_ptr), site, start_m + offs_m, offs_n, threshold, USE_PTX)
        z = tl.where(keep, z * keep_scale, 0.0)
    z += widen(tl.load(residual_ptr + offsets, mask=mask_n, other=0.0), USE_PTX)
    # Backward reads z as it was stored: take the statistics of that.
    stored, z = round_to(z, y_ptr.dtype.element_ty, USE_PTX)
    if STORE_Z_AND_STATS:
        tl.store(z_ptr + offsets, stored, mask=mask)

    xhat, mean, rstd = normalize(z, mask_n, eps, N)
    if STORE_Z_AND_STATS:
        tl.store(mean_ptr + start_m + offs_m, mean, mask=mask_m)
        tl.store(rstd_ptr + start_m + offs_m, rstd, mask=mask_m)
    weight = widen(tl.load(weight_ptr + columns, mask=mask_n, other=0.0), USE_PTX)
    bias = widen(tl.load(bias_ptr + columns, mask=mask_n, other=0.0), USE_PTX)
    tl.store(y_ptr + offsets, narrow(xhat * weight + bias, y_ptr.dtype.element_ty), mask=mask)


@jit(do_not_specialize=UNSPECIALIZED)
def _layer_norm_bwd_kernel(
    dy_ptr,  # (M, N)
    z_ptr,  # (M, N)
    weight_ptr,  # (N,)
    mean_ptr,  # (M,) float32
    rstd_ptr,  # (M,) float32
    dx_ptr,  # (M, N), if STORE_DX
    dresidual_ptr,  # (M, N)
    sums_ptr,  # (programs * BLOCK_M, 3, N) float32: dweight, dbias, dlinear_bias
    seed_ptr,  # (1,) int64
    M,
    N: tl.constexpr,
    rows_per_program,
    site,
    threshold,
    keep_scale,
    HAS_LINEAR_BIAS: tl.constexpr,
    STORE_DX: tl.constexpr,  # where dx is not dresidual
    APPLY_DROPOUT: tl.constexpr,
    USE_PTX: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """rows_per_program whole rows a program."""
    begin_m = tl.program_id(0) * rows_per_program
    end_m = tl.minimum(begin_m + rows_per_program, M)
    offs_m, offs_n = row_block(CHUNKS, BLOCK_M, BLOCK_N)
    mask_n = offs_n < N
    offsets, columns = offs_m * N + offs_n, offs_m * 0 + offs_n
    seed = begin_m.to(tl.int64)
    if APPLY_DROPOUT:
        seed = tl.load(seed_ptr)
    weight = widen(tl.load(weight_ptr + columns, mask=mask_n, other=0.0), USE_PTX)
    dweight = tl.zeros((CHUNKS, BLOCK_M, BLOCK_N), tl.float32)
    dbias = tl.zeros((CHUNKS, BLOCK_M, BLOCK_N), tl.float32)
    dlinear_bias = tl.zeros((CHUNKS, BLOCK_M, BLOCK_N), tl.float32)

    for start_m in tl.range(begin_m, end_m, BLOCK_M, num_stages=NUM_STAGES):
        mask_m = start_m + offs_m < end_m
        mask = mask_m & mask_n
        base = tl.cast(start_m, tl.int64) * N
        dy = widen(tl.load(dy_ptr + base + offsets, mask=mask, other=0.0), USE_PTX)
        z = widen(tl.load(z_ptr + base + offsets, mask=mask, other=0.0), USE_PTX)
        mean = tl.load(mean_ptr + start_m + offs_m, mask=mask_m, other=0.0)
        rstd = tl.load(rstd_ptr + start_m + offs_m, mask=mask_m, other=0.0)

        xhat = (z - mean) * rstd
        dz = normalize_grad(dy, xhat, weight, rstd, mask_n, N)
        tl.store(dresidual_ptr + base + offsets, narrow(dz, dresidual_ptr.dtype.element_ty), mask=mask)
        dx = dz
        if APPLY_DROPOUT:
            keep = keep_rows(seed, site, start_m + offs_m, offs_n, threshold, USE_PTX)
            dx = tl.where(keep, dx * keep_scale, 0.0)
        if STORE_DX:
            tl.store(dx_ptr + base + offsets, narrow(dx, dx_ptr.dtype.element_ty), mask=mask)

        dweight += terms(dy * xhat, mask_n)
        dbias += terms(dy, mask_n)
        if HAS_LINEAR_BIAS:
            dlinear_bias += terms(dx, mask_n)
    sums = sums_ptr + (tl.program_id(0) * BLOCK_M + offs_m).to(tl.int64) * (3 * N) + offs_n
    tl.store(sums, dweight, mask=mask_n)
    tl.store(sums + N, dbias, mask=mask_n)
    if HAS_LINEAR_BIAS:
        tl.store(sums + 2 * N, dlinear_bias, mask=mask_n)


def _launch_forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, linear_bias: Tensor | None, eps: float,
    dropout: Dropout | None, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    y, z, mean, rstd = _fake_forward(x, residual, weight, bias, linear_bias, eps, dropout, save)
    m, n = x.shape
    config = row_config("layer_norm_fwd", weight.device, n)
    if x.numel():
        _layer_norm_fwd_kernel[(cdiv(m, config.block_m),)](
            x, residual, weight, bias, weight if linear_bias is None else linear_bias, y, z, mean, rstd, M=m, N=n,
            eps=eps, HAS_LINEAR_BIAS=linear_bias is not None, STORE_Z_AND_STATS=save,
            **row_blocks(n, y, config), **dropout_arguments(dropout, mean),
        )  # fmt: skip
    return y, z, mean, rstd


def _fake_forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, linear_bias: Tensor | None, eps: float,
    dropout: Dropout | None, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dtype, rows = torch.promote_types(x.dtype, residual.dtype), x.shape[0] if save else 0
    mean, rstd = x.new_empty(rows, dtype=torch.float32), x.new_empty(rows, dtype=torch.float32)
    y = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)  # new_empty is slow to read a shape
    return y, x.new_empty((rows, x.shape[1]), dtype=dtype), mean, rstd


def _launch_backward(
    dy: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, x_dtype: torch.dtype,
    residual_dtype: torch.dtype, has_linear_bias: bool, dropout: Dropout | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dx, dresidual, sums = _fake_backward(dy, z, mean, rstd, weight, x_dtype, residual_dtype, has_linear_bias, dropout)
    m, n = z.shape
    if not z.numel():
        return dx, dresidual, sums.zero_()
    config = row_config("layer_norm_bwd", weight.device, n)
    programs, rows_per_program = partition(m, config)
    partial = sums.new_empty(programs * config.block_m, 3, n)
    _layer_norm_bwd_kernel[(programs,)](
        dy, z, weight, mean, rstd, dx, dresidual, partial, M=m, N=n, rows_per_program=rows_per_program,
        HAS_LINEAR_BIAS=has_linear_bias, STORE_DX=dx.numel() > 0, NUM_STAGES=config.num_stages,
        **row_blocks(n, z, config), **dropout_arguments(dropout, mean),
    )  # fmt: skip
    torch.sum(partial[:, : len(sums)], 0, out=sums)
    return dx, dresidual, sums


def _fake_backward(
    dy: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, x_dtype: torch.dtype,
    residual_dtype: torch.dtype, has_linear_bias: bool, dropout: Dropout | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dx has no rows where it is dresidual."""
    dresidual = torch.empty_like(z, dtype=residual_dtype, memory_format=torch.contiguous_format)
    has_dx = drops(dropout) or x_dtype != residual_dtype
    dx = torch.empty_like(dresidual, dtype=x_dtype) if has_dx else z.new_empty((0, z.shape[1]), dtype=x_dtype)
    sums = z.new_empty((3 if has_linear_bias else 2, z.shape[1]), dtype=torch.float32)
    return dx, dresidual, sums


def _save(ctx: Any, args: tuple[Any, ...], results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x, residual, weight, bias, linear_bias, *_ = args
    ctx.dtypes = x.dtype, residual.dtype
    ctx.vector_dtypes = [vector.dtype for vector in (weight, bias, linear_bias) if vector is not None]
    return *results[1:], weight


def _grad(ctx: Any, dy: Tensor, saved: list[Tensor | None], dropout: Dropout | None) -> tuple[Tensor | None, ...]:
    has_linear_bias = len(ctx.vector_dtypes) == 3
    dx, dresidual, sums = dropout_add_layer_norm_backward(dy, *saved, *ctx.dtypes, has_linear_bias, dropout)
    dx_is_dresidual = not drops(dropout) and ctx.dtypes[0] == ctx.dtypes[1]
    vectors = [row.to(dtype) for row, dtype in zip(sums, ctx.vector_dtypes, strict=True)]
    return dresidual if dx_is_dresidual else dx, dresidual, *vectors


dropout_add_layer_norm_backward = Operation(
    "dropout_add_layer_norm_backward",
    "(Tensor dy, Tensor z, Tensor mean, Tensor rstd, Tensor weight, ScalarType x_dtype, ScalarType residual_dtype, "
    "bool has_linear_bias, Dropout? dropout) -> (Tensor, Tensor, Tensor)",
    _launch_backward,
    _fake_backward,
)
dropout_add_layer_norm = Operation(
    "dropout_add_layer_norm",
    "(Tensor x, Tensor residual, Tensor weight, Tensor bias, Tensor? linear_bias, float eps, Dropout? dropout, "
    "bool save) -> (Tensor, Tensor, Tensor, Tensor)",
    _launch_forward,
    _fake_forward,
    _save,
    _grad,
)
