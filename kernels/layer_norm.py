"""Dropout, residual addition and layer-norm in one pass.

    z = residual + dropout(x + linear_bias)      y = (z - mean(z)) rstd(z) weight + bias

x, residual: (total_tokens, hidden_size), of any of the dtypes in `common.DTYPES`; y and z have the wider of their two
dtypes. Statistics are float32, and are those of z as it is stored. Backward, with xhat = (z - mean) rstd:

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

from . import dropout
from .common import Operation, dropout_arguments, keep_rows, narrow, partition
from .configs import row_config

UNSPECIALIZED = ["total_rows", "rows_per_program", "site", "threshold"]


def dropout_add_layer_norm_oracle(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    linear_bias: Tensor | None,
    eps: float,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """The same by plain formulas, in the dtype of its operands."""
    x = x if linear_bias is None else x + linear_bias
    if dropout_p:
        assert seed is not None
        keep = dropout.keep_rows(seed, site, torch.arange(x.shape[0], device=x.device), x.shape[1], dropout_p)
        x = x * keep * dropout.keep_scale(dropout_p)
    return F.layer_norm(residual + x, weight.shape, weight, bias, eps)


@triton.jit
def normalize(z, mask, eps, SIZE: tl.constexpr):
    """(rows, columns) float32 to (xhat, mean, rstd) of each row; columns past the last are 0 in xhat."""
    mean = tl.sum(z, 1) / SIZE
    centred = tl.where(mask, z - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / SIZE + eps)
    return centred * rstd[:, None], mean, rstd


@triton.jit
def normalize_backward(grad, xhat, weight, rstd, SIZE: tl.constexpr):
    """dz of rows; xhat and grad are 0 in columns past the last."""
    weighted = grad * weight[None, :]
    along = tl.sum(weighted * xhat, 1) / SIZE
    mean = tl.sum(weighted, 1) / SIZE
    return (weighted - mean[:, None] - xhat * along[:, None]) * rstd[:, None]


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _forward(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, linear_bias_ptr, y_ptr, z_ptr, mean_ptr, rstd_ptr, total_rows, eps,
    seed_ptr, site, threshold, keep_scale, DROPOUT: tl.constexpr,
    LINEAR_BIAS: tl.constexpr, SAVE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * ROWS
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    there = first + rows < total_rows
    mask = there[:, None] & (columns < SIZE)[None, :]
    base = first.to(tl.int64) * SIZE
    offsets = rows[:, None] * SIZE + columns[None, :]
    z = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32)
    if LINEAR_BIAS:
        z += tl.load(linear_bias_ptr + columns, mask=columns < SIZE, other=0.0).to(tl.float32)[None, :]
    if DROPOUT:
        keep = keep_rows(tl.load(seed_ptr), site, first + rows[:, None], columns[None, :], threshold)
        z = tl.where(keep, z * keep_scale, 0.0)
    z += tl.load(residual_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32)
    # Backward reads z as it was stored: statistics of anything else would not be those of what it reads.
    z = narrow(z, y_ptr.dtype.element_ty)
    if SAVE:
        tl.store(z_ptr + base + offsets, z, mask=mask)
    xhat, mean, rstd = normalize(z.to(tl.float32), mask, eps, SIZE)
    if SAVE:
        tl.store(mean_ptr + first + rows, mean, mask=there)
        tl.store(rstd_ptr + first + rows, rstd, mask=there)
    weight = tl.load(weight_ptr + columns, mask=columns < SIZE, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=columns < SIZE, other=0.0).to(tl.float32)
    y = xhat * weight[None, :] + bias[None, :]
    tl.store(y_ptr + base + offsets, narrow(y, y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _backward(
    grad_ptr, z_ptr, weight_ptr, mean_ptr, rstd_ptr, grad_x_ptr, grad_residual_ptr, sums_ptr, total_rows,
    rows_per_program, seed_ptr, site, threshold, keep_scale, DROPOUT: tl.constexpr,
    LINEAR_BIAS: tl.constexpr, TWO: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """TWO: dx is not dresidual and is stored by itself."""
    begin = tl.program_id(0) * rows_per_program
    end = tl.minimum(begin + rows_per_program, total_rows)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    seed = begin.to(tl.int64)
    if DROPOUT:
        seed = tl.load(seed_ptr)
    weight = tl.load(weight_ptr + columns, mask=columns < SIZE, other=0.0).to(tl.float32)
    grad_weight = tl.zeros((BLOCK,), tl.float32)
    grad_bias = tl.zeros((BLOCK,), tl.float32)
    grad_linear_bias = tl.zeros((BLOCK,), tl.float32)
    offsets = rows[:, None] * SIZE + columns[None, :]
    for first in tl.range(begin, end, ROWS, num_stages=STAGES):
        there = first + rows < end
        mask = there[:, None] & (columns < SIZE)[None, :]
        base = tl.cast(first, tl.int64) * SIZE
        grad = tl.load(grad_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32)
        z = tl.load(z_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + first + rows, mask=there, other=0.0)
        rstd = tl.load(rstd_ptr + first + rows, mask=there, other=0.0)
        xhat = tl.where(mask, (z - mean[:, None]) * rstd[:, None], 0.0)
        grad_z = normalize_backward(grad, xhat, weight, rstd, SIZE)
        tl.store(grad_residual_ptr + base + offsets, narrow(grad_z, grad_residual_ptr.dtype.element_ty), mask=mask)
        grad_x = tl.where(mask, grad_z, 0.0)
        if DROPOUT:
            keep = keep_rows(seed, site, first + rows[:, None], columns[None, :], threshold)
            grad_x = tl.where(keep, grad_x * keep_scale, 0.0)
        if TWO:
            tl.store(grad_x_ptr + base + offsets, narrow(grad_x, grad_x_ptr.dtype.element_ty), mask=mask)
        grad_weight += tl.sum(grad * xhat, 0)
        grad_bias += tl.sum(grad, 0)
        if LINEAR_BIAS:
            grad_linear_bias += tl.sum(grad_x, 0)
    sums = sums_ptr + tl.program_id(0).to(tl.int64) * (3 * SIZE)
    tl.store(sums + columns, grad_weight, mask=columns < SIZE)
    tl.store(sums + SIZE + columns, grad_bias, mask=columns < SIZE)
    if LINEAR_BIAS:
        tl.store(sums + 2 * SIZE + columns, grad_linear_bias, mask=columns < SIZE)


def _launch_forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, linear_bias: Tensor | None, eps: float,
    dropout_p: float, seed: Tensor | None, site: int, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    y, z, mean, rstd = _fake_forward(x, residual, weight, bias, linear_bias, eps, dropout_p, seed, site, save)
    rows, size = x.shape
    config = row_config("layer_norm_forward", weight.device, size)
    if x.numel():
        _forward[(triton.cdiv(rows, config.rows),)](
            x, residual, weight, bias, weight if linear_bias is None else linear_bias, y, z, mean, rstd, rows, eps,
            LINEAR_BIAS=linear_bias is not None, SAVE=save, SIZE=size, BLOCK=triton.next_power_of_2(size),
            ROWS=config.rows, num_warps=config.warps, **dropout_arguments(dropout_p, seed, site, mean),
        )  # fmt: skip
    return y, z, mean, rstd


def _fake_forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, linear_bias: Tensor | None, eps: float,
    dropout_p: float, seed: Tensor | None, site: int, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dtype, rows = torch.promote_types(x.dtype, residual.dtype), x.shape[0] if save else 0
    mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape, dtype=dtype), x.new_empty((rows, x.shape[1]), dtype=dtype), mean, rstd


def _launch_backward(
    grad: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, x_dtype: torch.dtype,
    residual_dtype: torch.dtype, linear_bias: bool, dropout_p: float, seed: Tensor | None, site: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_x, grad_residual, sums = _fake_backward(
        grad, z, mean, rstd, weight, x_dtype, residual_dtype, linear_bias, dropout_p, seed, site
    )
    rows, size = z.shape
    if not z.numel():
        return grad_x, grad_residual, sums.zero_()
    config = row_config("layer_norm_backward", weight.device, size)
    programs, per_program = partition(rows, config)
    partial = sums.new_empty(programs, 3, size)
    _backward[(programs,)](
        grad, z, weight, mean, rstd, grad_x, grad_residual, partial, rows, per_program,
        LINEAR_BIAS=linear_bias, TWO=grad_x.numel() > 0, SIZE=size, BLOCK=triton.next_power_of_2(size),
        ROWS=config.rows, STAGES=config.stages, num_warps=config.warps,
        **dropout_arguments(dropout_p, seed, site, mean),
    )  # fmt: skip
    torch.sum(partial[:, : len(sums)], 0, out=sums)
    return grad_x, grad_residual, sums


def _fake_backward(
    grad: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, x_dtype: torch.dtype,
    residual_dtype: torch.dtype, linear_bias: bool, dropout_p: float, seed: Tensor | None, site: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    two = dropout_p > 0 or x_dtype != residual_dtype
    grad_x = z.new_empty(z.shape if two else (0, z.shape[1]), dtype=x_dtype)
    sums = z.new_empty((3 if linear_bias else 2, z.shape[1]), dtype=torch.float32)
    return grad_x, z.new_empty(z.shape, dtype=residual_dtype), sums


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, weight, bias, linear_bias, _, ctx.dropout_p, seed, ctx.site, _ = inputs
    ctx.dtypes = x.dtype, residual.dtype
    ctx.vector_dtypes = weight.dtype, bias.dtype, None if linear_bias is None else linear_bias.dtype
    ctx.save_for_backward(*output[1:], weight, seed)
    ctx.mark_non_differentiable(*output[1:])


def _grad(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    *saved, weight, seed = ctx.saved_tensors
    linear_bias = ctx.vector_dtypes[2] is not None
    grad_x, grad_residual, sums = dropout_add_layer_norm_backward(
        grad, *saved, weight, *ctx.dtypes, linear_bias, ctx.dropout_p, seed, ctx.site
    )
    same = ctx.dropout_p == 0 and ctx.dtypes[0] == ctx.dtypes[1]
    vectors = [row.to(dtype) for row, dtype in zip(sums, ctx.vector_dtypes, strict=False)]
    return grad_residual if same else grad_x, grad_residual, *vectors, *[None] * (8 - len(vectors))


_DROPOUT = "float dropout_p, Tensor? seed, int site"
dropout_add_layer_norm_backward = Operation(
    "dropout_add_layer_norm_backward",
    "(Tensor grad, Tensor z, Tensor mean, Tensor rstd, Tensor weight, ScalarType x_dtype, ScalarType residual_dtype, "
    f"bool linear_bias, {_DROPOUT}) -> (Tensor, Tensor, Tensor)",
    _launch_backward,
    _fake_backward,
)
dropout_add_layer_norm = Operation(
    "dropout_add_layer_norm",
    f"(Tensor x, Tensor residual, Tensor weight, Tensor bias, Tensor? linear_bias, float eps, {_DROPOUT}, bool save) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _launch_forward,
    _fake_forward,
    _save,
    _grad,
)
