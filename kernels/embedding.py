"""Word and position embedding, layer-norm and dropout in one pass, straight into packed rows.

    z = word_weight[input_ids] + position_weight[position_ids]     y = dropout((z - mean) rstd weight + bias)

input_ids, position_ids: (total_tokens,) integers, clamped into their tables; or words: (total_tokens, hidden_size) in
place of the first term. y: (total_tokens, hidden_size), of the wider of the two terms' dtypes. Backward gathers z again
rather than keeping it; see layer_norm.py for its formulas, and segment_sum.py for the tables' gradients.
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
from .layer_norm import normalize, normalize_backward
from .segment_sum import segment_sum

UNSPECIALIZED = ["total_rows", "rows_per_program", "vocab_size", "positions", "site", "threshold"]


def embedding_layer_norm_oracle(
    words: Tensor,
    positions: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """The same by plain formulas of gathered rows, in their dtype."""
    y = F.layer_norm(words + positions, weight.shape, weight, bias, eps)
    if dropout_p:
        assert seed is not None
        keep = dropout.keep_rows(seed, site, torch.arange(y.shape[0], device=y.device), y.shape[1], dropout_p)
        y = y * keep * dropout.keep_scale(dropout_p)
    return y


@triton.jit
def _gather(
    ids_ptr, words_ptr, position_ids_ptr, positions_ptr, first, rows, columns, there, mask, vocab_size, positions,
    GATHER: tl.constexpr, SIZE: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """z of rows, rounded to a dtype, as float32."""
    word = (first + rows).to(tl.int64)
    if GATHER:
        word = tl.load(ids_ptr + first + rows, mask=there, other=0).to(tl.int64)
        word = tl.minimum(tl.maximum(word, 0), vocab_size - 1)
    position = tl.load(position_ids_ptr + first + rows, mask=there, other=0).to(tl.int64)
    position = tl.minimum(tl.maximum(position, 0), positions - 1)
    z = tl.load(words_ptr + (word * SIZE)[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    z += tl.load(positions_ptr + (position * SIZE)[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    return narrow(z, dtype).to(tl.float32)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _forward(
    ids_ptr, words_ptr, position_ids_ptr, positions_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, rstd_ptr, total_rows,
    vocab_size, positions, eps, seed_ptr, site, threshold, keep_scale, DROPOUT: tl.constexpr,
    GATHER: tl.constexpr, SAVE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * ROWS
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    there = first + rows < total_rows
    mask = there[:, None] & (columns < SIZE)[None, :]
    z = _gather(
        ids_ptr, words_ptr, position_ids_ptr, positions_ptr, first, rows, columns, there, mask, vocab_size, positions,
        GATHER, SIZE, y_ptr.dtype.element_ty,
    )  # fmt: skip
    xhat, mean, rstd = normalize(z, mask, eps, SIZE)
    if SAVE:
        tl.store(mean_ptr + first + rows, mean, mask=there)
        tl.store(rstd_ptr + first + rows, rstd, mask=there)
    weight = tl.load(weight_ptr + columns, mask=columns < SIZE, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=columns < SIZE, other=0.0).to(tl.float32)
    y = xhat * weight[None, :] + bias[None, :]
    if DROPOUT:
        keep = keep_rows(tl.load(seed_ptr), site, first + rows[:, None], columns[None, :], threshold)
        y = tl.where(keep, y * keep_scale, 0.0)
    offsets = rows[:, None] * SIZE + columns[None, :]
    tl.store(y_ptr + first.to(tl.int64) * SIZE + offsets, narrow(y, y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _backward(
    grad_ptr, ids_ptr, words_ptr, position_ids_ptr, positions_ptr, weight_ptr, mean_ptr, rstd_ptr, grad_z_ptr,
    sums_ptr, total_rows, rows_per_program, vocab_size, positions, seed_ptr, site, threshold, keep_scale,
    DROPOUT: tl.constexpr, GATHER: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(0) * rows_per_program
    end = tl.minimum(begin + rows_per_program, total_rows)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    seed = begin.to(tl.int64)
    if DROPOUT:
        seed = tl.load(seed_ptr)
    weight = tl.load(weight_ptr + columns, mask=columns < SIZE, other=0.0).to(tl.float32)
    grad_weight = tl.zeros((BLOCK,), tl.float32)
    grad_bias = tl.zeros((BLOCK,), tl.float32)
    offsets = rows[:, None] * SIZE + columns[None, :]
    for first in tl.range(begin, end, ROWS, num_stages=STAGES):
        there = first + rows < end
        mask = there[:, None] & (columns < SIZE)[None, :]
        base = tl.cast(first, tl.int64) * SIZE
        z = _gather(
            ids_ptr, words_ptr, position_ids_ptr, positions_ptr, first, rows, columns, there, mask, vocab_size,
            positions, GATHER, SIZE, grad_z_ptr.dtype.element_ty,
        )  # fmt: skip
        grad = tl.load(grad_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32)
        if DROPOUT:
            keep = keep_rows(seed, site, first + rows[:, None], columns[None, :], threshold)
            grad = tl.where(keep, grad * keep_scale, 0.0)
        mean = tl.load(mean_ptr + first + rows, mask=there, other=0.0)
        rstd = tl.load(rstd_ptr + first + rows, mask=there, other=0.0)
        xhat = tl.where(mask, (z - mean[:, None]) * rstd[:, None], 0.0)
        grad_z = normalize_backward(grad, xhat, weight, rstd, SIZE)
        tl.store(grad_z_ptr + base + offsets, narrow(grad_z, grad_z_ptr.dtype.element_ty), mask=mask)
        grad_weight += tl.sum(grad * xhat, 0)
        grad_bias += tl.sum(grad, 0)
    sums = sums_ptr + tl.program_id(0).to(tl.int64) * (2 * SIZE)
    tl.store(sums + columns, grad_weight, mask=columns < SIZE)
    tl.store(sums + SIZE + columns, grad_bias, mask=columns < SIZE)


def _launch_forward(
    ids: Tensor | None, words: Tensor, position_ids: Tensor, positions: Tensor, weight: Tensor, bias: Tensor,
    eps: float, padding_idx: int, position_padding_idx: int, dropout_p: float, seed: Tensor | None, site: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    y, mean, rstd = _fake_forward(
        ids, words, position_ids, positions, weight, bias, eps, padding_idx, position_padding_idx, dropout_p, seed,
        site, save,
    )  # fmt: skip
    rows, size = y.shape
    config = row_config("embedding_forward", words.device, size)
    if y.numel():
        _forward[(triton.cdiv(rows, config.rows),)](
            position_ids if ids is None else ids, words, position_ids, positions, weight, bias, y, mean, rstd, rows,
            words.shape[0], positions.shape[0], eps, GATHER=ids is not None, SAVE=save, SIZE=size,
            BLOCK=triton.next_power_of_2(size), ROWS=config.rows, num_warps=config.warps,
            **dropout_arguments(dropout_p, seed, site, position_ids),
        )  # fmt: skip
    return y, mean, rstd


def _fake_forward(
    ids: Tensor | None, words: Tensor, position_ids: Tensor, positions: Tensor, weight: Tensor, bias: Tensor,
    eps: float, padding_idx: int, position_padding_idx: int, dropout_p: float, seed: Tensor | None, site: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    rows, dtype = position_ids.shape[0], torch.promote_types(words.dtype, positions.dtype)
    mean, rstd = (words.new_empty(rows if save else 0, dtype=torch.float32) for _ in range(2))
    return words.new_empty((rows, words.shape[1]), dtype=dtype), mean, rstd


def _launch_backward(
    grad: Tensor, ids: Tensor | None, words: Tensor, position_ids: Tensor, positions: Tensor, weight: Tensor,
    mean: Tensor, rstd: Tensor, padding_idx: int, position_padding_idx: int, dropout_p: float, seed: Tensor | None,
    site: int, needs_words: bool, needs_positions: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    rows, size = grad.shape
    grad_z = torch.empty_like(grad)
    config = row_config("embedding_backward", words.device, size)
    programs, per_program = partition(rows, config)
    partial = grad.new_empty((programs, 2, size), dtype=torch.float32)
    if grad.numel():
        _backward[(programs,)](
            grad, position_ids if ids is None else ids, words, position_ids, positions, weight, mean, rstd, grad_z,
            partial, rows, per_program, words.shape[0], positions.shape[0], GATHER=ids is not None, SIZE=size,
            BLOCK=triton.next_power_of_2(size), ROWS=config.rows, STAGES=config.stages, num_warps=config.warps,
            **dropout_arguments(dropout_p, seed, site, position_ids),
        )  # fmt: skip
    grad_words, grad_positions = words.new_empty(0), positions.new_empty(0)
    if needs_words:
        grad_words = grad_z if ids is None else segment_sum(grad_z, ids, words.shape[0], padding_idx, words.dtype)
        grad_words = grad_words.to(words.dtype)
    if needs_positions:
        grad_positions = segment_sum(grad_z, position_ids, positions.shape[0], position_padding_idx, positions.dtype)
    return grad_words, grad_positions, partial.sum(0)


def _fake_backward(
    grad: Tensor, ids: Tensor | None, words: Tensor, position_ids: Tensor, positions: Tensor, weight: Tensor,
    mean: Tensor, rstd: Tensor, padding_idx: int, position_padding_idx: int, dropout_p: float, seed: Tensor | None,
    site: int, needs_words: bool, needs_positions: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_words = words.new_empty(words.shape if needs_words else 0)
    grad_positions = positions.new_empty(positions.shape if needs_positions else 0)
    return grad_words, grad_positions, weight.new_empty((2, weight.shape[0]), dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ids, words, position_ids, positions, weight, bias, _, *ctx.padding, ctx.dropout_p, seed, ctx.site, _ = inputs
    ctx.bias_dtype = bias.dtype
    ctx.save_for_backward(ids, words, position_ids, positions, weight, *output[1:], seed)
    ctx.mark_non_differentiable(*output[1:])


def _grad(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    *saved, seed = ctx.saved_tensors
    _, needs_words, _, needs_positions, *_ = ctx.needs_input_grad
    grad_words, grad_positions, sums = embedding_layer_norm_backward(
        grad, *saved, *ctx.padding, ctx.dropout_p, seed, ctx.site, needs_words, needs_positions
    )
    return (
        None, grad_words if needs_words else None, None, grad_positions if needs_positions else None,
        sums[0].to(saved[4].dtype), sums[1].to(ctx.bias_dtype), *[None] * 7,
    )  # fmt: skip


_REST = "int padding_idx, int position_padding_idx, float dropout_p, Tensor? seed, int site"
embedding_layer_norm_backward = Operation(
    "embedding_layer_norm_backward",
    "(Tensor grad, Tensor? ids, Tensor words, Tensor position_ids, Tensor positions, Tensor weight, Tensor mean, "
    f"Tensor rstd, {_REST}, bool needs_words, bool needs_positions) -> (Tensor, Tensor, Tensor)",
    _launch_backward,
    _fake_backward,
)
embedding_layer_norm = Operation(
    "embedding_layer_norm",
    "(Tensor? ids, Tensor words, Tensor position_ids, Tensor positions, Tensor weight, Tensor bias, float eps, "
    f"{_REST}, bool save) -> (Tensor, Tensor, Tensor)",
    _launch_forward,
    _fake_forward,
    _save,
    _grad,
)
