"""Bias, erf-GELU and dropout in one pass.

    y = gelu(x + bias) * keep / (1 - p)          gelu(u) = u Phi(u)      gelu'(u) = Phi(u) + u phi(u)
    Phi(u) = (1 + erf(u / sqrt 2)) / 2           phi(u) = exp(-u**2 / 2) / sqrt(2 pi)

x: (total_tokens, intermediate_size). Backward: dx = dy * keep / (1 - p) * gelu'(x + bias), dbias = sum dx, the sum over
rows in two steps of fixed order. GELU: Hendrycks and Gimpel, arXiv 1606.08415.
"""

import math
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
_SQRT_HALF = tl.constexpr(math.sqrt(0.5))
_PHI_0 = tl.constexpr(1 / math.sqrt(2 * math.pi))


def bias_gelu_dropout_oracle(
    x: Tensor, bias: Tensor | None, dropout_p: float = 0.0, seed: Tensor | None = None, site: int = 0
) -> Tensor:
    """The same by plain formulas, in the dtype of its operands."""
    y = F.gelu(x if bias is None else x + bias)
    if dropout_p:
        assert seed is not None
        keep = dropout.keep_rows(seed, site, torch.arange(x.shape[0], device=x.device), x.shape[1], dropout_p)
        y = y * keep * dropout.keep_scale(dropout_p)
    return y


@triton.jit
def gelu(x):
    """x Phi(x), float32."""
    return 0.5 * x * (1.0 + tl.erf(x * _SQRT_HALF))


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _forward(
    x_ptr, bias_ptr, y_ptr, total_rows, seed_ptr, site, threshold, keep_scale, DROPOUT: tl.constexpr,
    BIAS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    first = tl.program_id(0) // blocks * ROWS
    rows = tl.arange(0, ROWS)
    columns = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = (first + rows < total_rows)[:, None] & (columns < SIZE)[None, :]
    base = first.to(tl.int64) * SIZE
    offsets = rows[:, None] * SIZE + columns[None, :]
    x = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias_ptr + columns, mask=columns < SIZE, other=0.0).to(tl.float32)[None, :]
    y = gelu(x)
    if DROPOUT:
        keep = keep_rows(tl.load(seed_ptr), site, first + rows[:, None], columns[None, :], threshold)
        y = tl.where(keep, y * keep_scale, 0.0)
    tl.store(y_ptr + base + offsets, narrow(y, y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _backward(
    grad_ptr, x_ptr, bias_ptr, grad_x_ptr, y_ptr, sums_ptr, total_rows, rows_per_program, seed_ptr, site, threshold,
    keep_scale, DROPOUT: tl.constexpr,
    BIAS: tl.constexpr, AGAIN: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """AGAIN: y is computed again and stored, too."""
    blocks: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    chunk = tl.program_id(0) // blocks
    begin = chunk * rows_per_program
    end = tl.minimum(begin + rows_per_program, total_rows)
    rows = tl.arange(0, ROWS)
    columns = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    seed = begin.to(tl.int64)
    if DROPOUT:
        seed = tl.load(seed_ptr)
    bias = tl.zeros((BLOCK,), tl.float32)
    if BIAS:
        bias = tl.load(bias_ptr + columns, mask=columns < SIZE, other=0.0).to(tl.float32)
    grad_bias = tl.zeros((BLOCK,), tl.float32)
    offsets = rows[:, None] * SIZE + columns[None, :]
    for first in tl.range(begin, end, ROWS, num_stages=STAGES):
        mask = (first + rows < end)[:, None] & (columns < SIZE)[None, :]
        base = tl.cast(first, tl.int64) * SIZE
        x = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32) + bias[None, :]
        grad = tl.load(grad_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32)
        normal = 0.5 + 0.5 * tl.erf(x * _SQRT_HALF)
        y = x * normal
        if DROPOUT:
            keep = keep_rows(seed, site, first + rows[:, None], columns[None, :], threshold)
            grad = tl.where(keep, grad * keep_scale, 0.0)
            y = tl.where(keep, y * keep_scale, 0.0)
        grad_x = grad * (normal + x * (_PHI_0 * tl.exp(-0.5 * x * x)))
        tl.store(grad_x_ptr + base + offsets, narrow(grad_x, grad_x_ptr.dtype.element_ty), mask=mask)
        if AGAIN:
            tl.store(y_ptr + base + offsets, narrow(y, y_ptr.dtype.element_ty), mask=mask)
        if BIAS:
            grad_bias += tl.sum(grad_x, 0)
    if BIAS:
        tl.store(sums_ptr + chunk.to(tl.int64) * SIZE + columns, grad_bias, mask=columns < SIZE)


def launch_forward(
    x: Tensor, bias: Tensor | None, dropout_p: float, seed: Tensor | None, site: int, out: Tensor | None = None
) -> Tensor:
    y = torch.empty_like(x) if out is None else out
    rows, size = x.shape
    config = row_config("gelu_forward", x.device, size)
    if x.numel():
        _forward[(triton.cdiv(rows, config.rows) * triton.cdiv(size, config.block),)](
            x, x if bias is None else bias, y, rows, BIAS=bias is not None, SIZE=size, BLOCK=config.block,
            ROWS=config.rows, num_warps=config.warps, **dropout_arguments(dropout_p, seed, site, x),
        )  # fmt: skip
    return y


def launch_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, dropout_p: float, seed: Tensor | None, site: int, again: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_bias, y = _fake_backward(grad, x, bias, dropout_p, seed, site, again)
    rows, size = x.shape
    if not x.numel():
        return grad_x, grad_bias.zero_(), y
    config = row_config("gelu_backward", x.device, size)
    chunks, per_program = partition(rows, config)
    partial = x.new_empty((chunks, size if bias is not None else 0), dtype=torch.float32)
    _backward[(chunks * triton.cdiv(size, config.block),)](
        grad, x, x if bias is None else bias, grad_x, y, partial, rows, per_program, BIAS=bias is not None,
        AGAIN=again, SIZE=size, BLOCK=config.block, ROWS=config.rows, STAGES=config.stages, num_warps=config.warps,
        **dropout_arguments(dropout_p, seed, site, x),
    )  # fmt: skip
    return grad_x, partial.sum(0).to(grad_bias.dtype), y


def _fake_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, dropout_p: float, seed: Tensor | None, site: int, again: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_bias = x.new_empty(0) if bias is None else torch.empty_like(bias)
    y = x.new_empty(x.shape if again else (0, x.shape[1]))
    return torch.empty_like(x, memory_format=torch.contiguous_format), grad_bias, y


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, ctx.dropout_p, seed, ctx.site = inputs
    ctx.save_for_backward(x, bias, seed)


def _grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, bias, seed = ctx.saved_tensors
    grad_x, grad_bias, _ = bias_gelu_dropout_backward(grad, x, bias, ctx.dropout_p, seed, ctx.site, False)
    return grad_x, None if bias is None else grad_bias, None, None, None


_DROPOUT = "float dropout_p, Tensor? seed, int site"
bias_gelu_dropout_backward = Operation(
    "bias_gelu_dropout_backward",
    f"(Tensor grad, Tensor x, Tensor? bias, {_DROPOUT}, bool again) -> (Tensor, Tensor, Tensor)",
    launch_backward,
    _fake_backward,
)
bias_gelu_dropout = Operation(
    "bias_gelu_dropout",
    f"(Tensor x, Tensor? bias, {_DROPOUT}) -> Tensor",
    lambda x, bias, dropout_p, seed, site: launch_forward(x, bias, dropout_p, seed, site),
    lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format),
    _save,
    _grad,
)
