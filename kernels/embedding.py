"""Word and position embedding, layer-norm and dropout in one pass, straight into packed rows.

    z = words[input_ids] + position_weight[position_ids]     y = dropout((z - mean) rstd weight + bias)

input_ids, position_ids: (total_tokens,) integers, clamped into their tables; words: (vocab_size, hidden_size), or
without input_ids (total_tokens, hidden_size), the first term itself; position_weight: (num_positions, hidden_size);
weight, bias: (hidden_size,); y: (total_tokens, hidden_size), M x N in the kernels, of the wider of the two terms'
dtypes; mean, rstd: (total_tokens,) float32. Backward gathers z again rather than keeping it; see layer_norm.py for its
formulas, and segment_sum.py for the tables' gradients.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .common import Operation, cdiv, dropout_arguments, keep_rows, narrow, partition, row_blocks, widen
from .configs import row_config
from .dropout import Dropout, drop_rows
from .jit import jit
from .layer_norm import normalize, normalize_grad, row_block, terms
from .segment_sum import segment_sum

UNSPECIALIZED = ["M", "rows_per_program", "vocab_size", "num_positions", "site", "threshold"]


def embedding_layer_norm_oracle(
    words: Tensor, positions: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: Dropout | None = None
) -> Tensor:
    """The operation by plain formulas on gathered rows, words and positions (total_tokens, hidden_size)."""
    return drop_rows(F.layer_norm(words + positions, weight.shape, weight, bias, eps), dropout)


@triton.jit
def _clamp(id, size):
    """id in [0, size), int64 as offsets of rows must be, but known to be an int32: one product, not three."""
    return tl.minimum(tl.maximum(id, 0), size - 1).to(tl.int32).to(tl.int64)


@triton.jit
def _gather(
    input_ids_ptr,  # (M,), if GATHER_WORDS
    words_ptr,  # (vocab_size or M, N)
    position_ids_ptr,  # (M,)
    position_weight_ptr,  # (num_positions, N)
    vocab_size,
    num_positions,
    N: tl.constexpr,
    rows,
    offs_n,
    mask_n,
    GATHER_WORDS: tl.constexpr,
    USE_PTX: tl.constexpr,
):
    """z of rows, in float32."""
    word = rows.to(tl.int64)
    if GATHER_WORDS:
        word = _clamp(tl.load(input_ids_ptr + rows), vocab_size)
    position = _clamp(tl.load(position_ids_ptr + rows), num_positions)
    z = widen(tl.load(words_ptr + word * N + offs_n, mask=mask_n, other=0.0), USE_PTX)
    return z + widen(tl.load(position_weight_ptr + position * N + offs_n, mask=mask_n, other=0.0), USE_PTX)


@jit(do_not_specialize=UNSPECIALIZED)
def _embedding_fwd_kernel(
    input_ids_ptr,  # (M,), if GATHER_WORDS
    words_ptr,  # (vocab_size or M, N)
    position_ids_ptr,  # (M,)
    position_weight_ptr,  # (num_positions, N)
    weight_ptr,  # (N,)
    bias_ptr,  # (N,)
    y_ptr,  # (M, N)
    mean_ptr,  # (M,) float32, if STORE_STATS
    rstd_ptr,  # (M,) float32, if STORE_STATS
    seed_ptr,  # (1,) int64
    M,
    N: tl.constexpr,
    vocab_size,
    num_positions,
    eps,
    site,
    threshold,
    keep_scale,
    GATHER_WORDS: tl.constexpr,
    STORE_STATS: tl.constexpr,
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
    offsets, columns = offs_m * N + offs_n, offs_m * 0 + offs_n
    z = _gather(
        input_ids_ptr, words_ptr, position_ids_ptr, position_weight_ptr, vocab_size, num_positions, N,
        tl.minimum(start_m + offs_m, M - 1), offs_n, mask_n, GATHER_WORDS, USE_PTX,
    )  # fmt: skip

    xhat, mean, rstd = normalize(z, mask_n, eps, N)
    if STORE_STATS:
        tl.store(mean_ptr + start_m + offs_m, mean, mask=mask_m)
        tl.store(rstd_ptr + start_m + offs_m, rstd, mask=mask_m)
    weight = widen(tl.load(weight_ptr + columns, mask=mask_n, other=0.0), USE_PTX)
    bias = widen(tl.load(bias_ptr + columns, mask=mask_n, other=0.0), USE_PTX)
    y = xhat * weight + bias
    if APPLY_DROPOUT:
        keep = keep_rows(tl.load(seed_ptr), site, start_m + offs_m, offs_n, threshold, USE_PTX)
        y = tl.where(keep, y * keep_scale, 0.0)
    tl.store(y_ptr + start_m.to(tl.int64) * N + offsets, narrow(y, y_ptr.dtype.element_ty), mask=mask)


@jit(do_not_specialize=UNSPECIALIZED)
def _embedding_bwd_kernel(
    dy_ptr,  # (M, N)
    input_ids_ptr,  # (M,), if GATHER_WORDS
    words_ptr,  # (vocab_size or M, N)
    position_ids_ptr,  # (M,)
    position_weight_ptr,  # (num_positions, N)
    weight_ptr,  # (N,)
    mean_ptr,  # (M,) float32
    rstd_ptr,  # (M,) float32
    dz_ptr,  # (M, N)
    sums_ptr,  # (programs * BLOCK_M, 2, N) float32: dweight, dbias
    seed_ptr,  # (1,) int64
    M,
    N: tl.constexpr,
    rows_per_program,
    vocab_size,
    num_positions,
    site,
    threshold,
    keep_scale,
    GATHER_WORDS: tl.constexpr,
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

    for start_m in tl.range(begin_m, end_m, BLOCK_M, num_stages=NUM_STAGES):
        mask_m = start_m + offs_m < end_m
        mask = mask_m & mask_n
        base = tl.cast(start_m, tl.int64) * N
        z = _gather(
            input_ids_ptr, words_ptr, position_ids_ptr, position_weight_ptr, vocab_size, num_positions, N,
            tl.minimum(start_m + offs_m, M - 1), offs_n, mask_n, GATHER_WORDS, USE_PTX,
        )  # fmt: skip
        dy = widen(tl.load(dy_ptr + base + offsets, mask=mask, other=0.0), USE_PTX)
        if APPLY_DROPOUT:
            keep = keep_rows(seed, site, start_m + offs_m, offs_n, threshold, USE_PTX)
            dy = tl.where(keep, dy * keep_scale, 0.0)
        mean = tl.load(mean_ptr + start_m + offs_m, mask=mask_m, other=0.0)
        rstd = tl.load(rstd_ptr + start_m + offs_m, mask=mask_m, other=0.0)

        xhat = (z - mean) * rstd
        dz = normalize_grad(dy, xhat, weight, rstd, mask_n, N)
        tl.store(dz_ptr + base + offsets, narrow(dz, dz_ptr.dtype.element_ty), mask=mask)
        dweight += terms(dy * xhat, mask_n)
        dbias += terms(dy, mask_n)
    sums = sums_ptr + (tl.program_id(0) * BLOCK_M + offs_m).to(tl.int64) * (2 * N) + offs_n
    tl.store(sums, dweight, mask=mask_n)
    tl.store(sums + N, dbias, mask=mask_n)


def _launch_forward(
    input_ids: Tensor | None, words: Tensor, position_ids: Tensor, position_weight: Tensor, weight: Tensor,
    bias: Tensor, eps: float, padding_idx: int, position_padding_idx: int, dropout: Dropout | None, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    y, mean, rstd = _fake_forward(
        input_ids, words, position_ids, position_weight, weight, bias, eps, padding_idx, position_padding_idx, dropout,
        save,
    )  # fmt: skip
    m, n = y.shape
    config = row_config("embedding_fwd", words.device, n)
    if y.numel():
        _embedding_fwd_kernel[(cdiv(m, config.block_m),)](
            position_ids if input_ids is None else input_ids, words, position_ids, position_weight, weight, bias, y,
            mean, rstd, M=m, N=n, vocab_size=words.shape[0], num_positions=position_weight.shape[0], eps=eps,
            GATHER_WORDS=input_ids is not None, STORE_STATS=save,
            **row_blocks(n, y, config), **dropout_arguments(dropout, position_ids),
        )  # fmt: skip
    return y, mean, rstd


def _fake_forward(
    input_ids: Tensor | None, words: Tensor, position_ids: Tensor, position_weight: Tensor, weight: Tensor,
    bias: Tensor, eps: float, padding_idx: int, position_padding_idx: int, dropout: Dropout | None, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    rows, dtype = position_ids.shape[0], torch.promote_types(words.dtype, position_weight.dtype)
    mean, rstd = (words.new_empty(rows if save else 0, dtype=torch.float32) for _ in range(2))
    return words.new_empty((rows, words.shape[1]), dtype=dtype), mean, rstd


def _launch_backward(
    dy: Tensor, input_ids: Tensor | None, words: Tensor, position_ids: Tensor, position_weight: Tensor,
    weight: Tensor, mean: Tensor, rstd: Tensor, padding_idx: int, position_padding_idx: int,
    dropout: Dropout | None, needs_words: bool, needs_position_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    m, n = dy.shape
    dz = torch.empty_like(dy)
    config = row_config("embedding_bwd", words.device, n)
    programs, rows_per_program = partition(m, config)
    partial = dy.new_empty((programs * config.block_m, 2, n), dtype=torch.float32)
    if dy.numel():
        _embedding_bwd_kernel[(programs,)](
            dy, position_ids if input_ids is None else input_ids, words, position_ids, position_weight, weight, mean,
            rstd, dz, partial, M=m, N=n, rows_per_program=rows_per_program, vocab_size=words.shape[0],
            num_positions=position_weight.shape[0], GATHER_WORDS=input_ids is not None,
            NUM_STAGES=config.num_stages, **row_blocks(n, dz, config), **dropout_arguments(dropout, position_ids),
        )  # fmt: skip
    dwords, dposition_weight = words.new_empty(0), position_weight.new_empty(0)
    if input_ids is not None and needs_words:
        dwords = segment_sum(dz, input_ids, words.shape[0], padding_idx, words.dtype)
    elif needs_words:
        dwords = dz.to(words.dtype)
    if needs_position_weight:
        dposition_weight = segment_sum(
            dz, position_ids, position_weight.shape[0], position_padding_idx, position_weight.dtype
        )
    return dwords, dposition_weight, partial.sum(0)


def _fake_backward(
    dy: Tensor, input_ids: Tensor | None, words: Tensor, position_ids: Tensor, position_weight: Tensor,
    weight: Tensor, mean: Tensor, rstd: Tensor, padding_idx: int, position_padding_idx: int,
    dropout: Dropout | None, needs_words: bool, needs_position_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dwords = words.new_empty(words.shape if needs_words else 0)
    dposition_weight = position_weight.new_empty(position_weight.shape if needs_position_weight else 0)
    return dwords, dposition_weight, weight.new_empty((2, weight.shape[0]), dtype=torch.float32)


def _save(ctx: Any, args: tuple[Any, ...], results: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    input_ids, words, position_ids, position_weight, weight, bias, _, *ctx.padding, _, _ = args
    ctx.vector_dtypes = weight.dtype, bias.dtype
    return input_ids, words, position_ids, position_weight, weight, *results[1:]


def _grad(ctx: Any, dy: Tensor, saved: list[Tensor | None], dropout: Dropout | None) -> tuple[Tensor | None, ...]:
    _, needs_words, _, needs_position_weight, *_ = ctx.needs_input_grad
    dwords, dposition_weight, sums = embedding_layer_norm_backward(
        dy, *saved, *ctx.padding, dropout, needs_words, needs_position_weight
    )
    dweight, dbias = (row.to(dtype) for row, dtype in zip(sums, ctx.vector_dtypes, strict=True))
    return (
        None, dwords if needs_words else None, None, dposition_weight if needs_position_weight else None, dweight, dbias
    )  # fmt: skip


embedding_layer_norm_backward = Operation(
    "embedding_layer_norm_backward",
    "(Tensor dy, Tensor? input_ids, Tensor words, Tensor position_ids, Tensor position_weight, Tensor weight, "
    "Tensor mean, Tensor rstd, int padding_idx, int position_padding_idx, Dropout? dropout, bool needs_words, "
    "bool needs_position_weight) -> (Tensor, Tensor, Tensor)",
    _launch_backward,
    _fake_backward,
)
embedding_layer_norm = Operation(
    "embedding_layer_norm",
    "(Tensor? input_ids, Tensor words, Tensor position_ids, Tensor position_weight, Tensor weight, Tensor bias, "
    "float eps, int padding_idx, int position_padding_idx, Dropout? dropout, bool save) -> (Tensor, Tensor, Tensor)",
    _launch_forward,
    _fake_forward,
    _save,
    _grad,
)
