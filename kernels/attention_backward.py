"""The backward kernels of varlen attention; attention.py has the formulas and shapes."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_tiles import (
    LOG2E,
    UNSPECIALIZED,
    attention_arguments,
    load,
    locate,
    prefix_of,
    zero_rows_of_no_sequence,
)
from .common import keep_scores, multiply, narrow


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _backward_in_one(
    qkv_ptr, grad_ptr, lse_ptr, grad_qkv_ptr, cu_seqlens_ptr, prefix_lens_ptr, tiles_ptr, total_tokens, num_sequences,
    scale, seed_ptr, site, threshold, keep_scale, DROPOUT: tl.constexpr,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PREFIX: tl.constexpr,
    LISTED: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, SPLIT: tl.constexpr,
    HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sequences that fit a block: dQ, dK and dV from one look at the scores. Scores are transposed (columns, rows)."""
    groups: tl.constexpr = (NUM_HEADS + HEADS - 1) // HEADS
    width: tl.constexpr = NUM_HEADS * HEAD_DIM
    group = tl.program_id(0) % groups
    sequence, tile, start, length, rest = locate(
        cu_seqlens_ptr, tiles_ptr, tl.program_id(0) // groups, total_tokens, num_sequences, LISTED, TILE, SPLIT
    )
    zero_rows_of_no_sequence(
        grad_qkv_ptr, sequence, tile, start, length, rest, num_sequences, group, 3, width, HEADS * HEAD_DIM,
        HEADS * BLOCK_D, LISTED, TILE, SPLIT,
    )  # fmt: skip
    if (sequence == num_sequences) | (length == 0) | (length > BLOCK):
        return
    prefix = prefix_of(prefix_lens_ptr, sequence, length, num_sequences, PREFIX)
    seed = start.to(tl.int64)
    if DROPOUT:
        seed = tl.load(seed_ptr)

    stacked = tl.arange(0, BLOCK * HEADS)
    rows, head = stacked % BLOCK, group * HEADS + stacked // BLOCK
    d = tl.arange(0, BLOCK_D)
    there = (rows < length) & (head < NUM_HEADS)
    mask = there[:, None] & (d < HEAD_DIM)[None, :]
    offsets = (rows * (3 * width) + head * HEAD_DIM)[:, None] + d[None, :]
    base = qkv_ptr + start.to(tl.int64) * (3 * width)
    query, key, value = (
        load(base, offsets, mask),
        load(base + width, offsets, mask),
        load(base + 2 * width, offsets, mask),
    )
    grad = load(grad_ptr + start.to(tl.int64) * width, (rows * width + head * HEAD_DIM)[:, None] + d[None, :], mask)
    lse = tl.load(lse_ptr + head.to(tl.int64) * total_tokens + start + rows, mask=there, other=float("inf"))

    seen = (rows < length)[:, None] & (rows < length)[None, :]
    if HEADS > 1:
        seen &= head[:, None] == head[None, :]
    if PREFIX:
        seen &= (rows >= prefix)[None, :] | (rows < prefix)[:, None]
    p = multiply(key, tl.trans(query), None, PRECISION) * (scale * LOG2E)
    p = tl.exp2(tl.where(seen, p, -float("inf")) - (lse * LOG2E)[None, :])
    grad_p = multiply(value, tl.trans(grad), None, PRECISION)
    kept = p
    if DROPOUT:
        keep = keep_scores(seed, site, head[None, :], start, 0, rows[None, :], 0, rows[:, None], threshold)
        kept = tl.where(keep, p * keep_scale, 0.0)
        grad_p = tl.where(keep, grad_p * keep_scale, 0.0)
    grad_value = multiply(narrow(kept, grad.dtype), grad, None, PRECISION)
    out = grad_qkv_ptr + start.to(tl.int64) * (3 * width)
    tl.store(out + 2 * width + offsets, narrow(grad_value, grad_qkv_ptr.dtype.element_ty), mask=mask)
    delta = tl.sum(p * grad_p, 0)
    grad_scores = narrow(p * (grad_p - delta[None, :]) * scale, query.dtype)
    grad_key = multiply(grad_scores, query, None, PRECISION)
    tl.store(out + width + offsets, narrow(grad_key, grad_qkv_ptr.dtype.element_ty), mask=mask)
    grad_query = multiply(tl.trans(grad_scores), key, None, PRECISION)
    tl.store(out + offsets, narrow(grad_query, grad_qkv_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _backward_rows(
    qkv_ptr, out_ptr, grad_ptr, lse_ptr, delta_ptr, grad_qkv_ptr, cu_seqlens_ptr, prefix_lens_ptr, tiles_ptr,
    total_tokens, num_sequences, scale, seed_ptr, site, threshold, keep_scale, DROPOUT: tl.constexpr,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PREFIX: tl.constexpr,
    LISTED: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, SPLIT: tl.constexpr,
    SMALL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile of rows of a sequence longer than SMALL: dQ and delta."""
    width: tl.constexpr = NUM_HEADS * HEAD_DIM
    head = tl.program_id(0) % NUM_HEADS
    sequence, tile, start, length, _ = locate(
        cu_seqlens_ptr, tiles_ptr, tl.program_id(0) // NUM_HEADS, total_tokens, num_sequences, LISTED, TILE, SPLIT
    )
    first_row = tile * TILE
    if (length <= SMALL) | (first_row >= length) | (sequence == num_sequences):
        return
    prefix = prefix_of(prefix_lens_ptr, sequence, length, num_sequences, PREFIX)
    seed = start.to(tl.int64)
    if DROPOUT:
        seed = tl.load(seed_ptr)

    rows, d = tl.arange(0, TILE), tl.arange(0, BLOCK_D)
    there = first_row + rows < length
    mask = there[:, None] & (d < HEAD_DIM)[None, :]
    base = qkv_ptr + start.to(tl.int64) * (3 * width) + head * HEAD_DIM
    offsets = (rows * (3 * width))[:, None] + d[None, :]
    query = load(base + first_row.to(tl.int64) * (3 * width), offsets, mask)
    packed = (start + first_row).to(tl.int64) * width + head * HEAD_DIM
    packed_offsets = (rows * width)[:, None] + d[None, :]
    grad = load(grad_ptr + packed, packed_offsets, mask)
    out = load(out_ptr + packed, packed_offsets, mask)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    statistics = head.to(tl.int64) * total_tokens + start + first_row + rows
    tl.store(delta_ptr + statistics, delta, mask=there)
    lse = tl.load(lse_ptr + statistics, mask=there, other=float("inf")) * LOG2E

    acc = tl.zeros((TILE, BLOCK_D), tl.float32)
    columns = length
    if PREFIX:
        columns = tl.where(first_row + TILE <= prefix, prefix, length)
    whole = columns // BLOCK * BLOCK
    if PREFIX:
        whole = 0
    for first_column in range(0, whole, BLOCK):
        acc = _backward_rows_step(
            acc, query, grad, lse, delta, base, rows, first_row, first_column, head, columns, prefix, start, scale,
            seed, site, threshold, keep_scale, DROPOUT, width, HEAD_DIM, BLOCK_D, PREFIX, PRECISION, BLOCK,
            MASKED=False,
        )  # fmt: skip
    for first_column in tl.range(whole, columns, BLOCK, num_stages=None if PREFIX else 1):
        acc = _backward_rows_step(
            acc, query, grad, lse, delta, base, rows, first_row, first_column, head, columns, prefix, start, scale,
            seed, site, threshold, keep_scale, DROPOUT, width, HEAD_DIM, BLOCK_D, PREFIX, PRECISION, BLOCK,
            MASKED=True,
        )  # fmt: skip
    grad_query = grad_qkv_ptr + (start + first_row).to(tl.int64) * (3 * width) + head * HEAD_DIM
    tl.store(grad_query + offsets, narrow(acc * scale, grad_qkv_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_rows_step(
    acc, query, grad, lse, delta, base, rows, first_row, first_column, head, columns, prefix, start, scale,
    seed, site, threshold, keep_scale, DROPOUT: tl.constexpr, width: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, PREFIX: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    places, d = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    there = (places >= 0)[:, None] & (d < HEAD_DIM)[None, :]
    if MASKED:
        there &= (first_column + places < columns)[:, None]
    offsets = (places * (3 * width))[:, None] + d[None, :]
    block = base + tl.cast(first_column, tl.int64) * (3 * width)
    key = load(block + width, offsets, there)
    value = load(block + 2 * width, offsets, there)
    p = multiply(query, tl.trans(key), None, PRECISION) * (scale * LOG2E)
    if MASKED:  # before exp2: a very negative lse would make it infinite
        seen = (first_column + places < columns)[None, :]
        if PREFIX:
            seen &= (first_row + rows >= prefix)[:, None] | (first_column + places < prefix)[None, :]
        p = tl.where(seen, p, -float("inf"))
    p = tl.exp2(p - lse[:, None])
    grad_p = multiply(grad, tl.trans(value), None, PRECISION)
    if DROPOUT:
        keep = keep_scores(seed, site, head, start, first_row, rows[:, None], first_column, places[None, :], threshold)
        grad_p = tl.where(keep, grad_p * keep_scale, 0.0)
    return multiply(narrow(p * (grad_p - delta[:, None]), key.dtype), key, acc, PRECISION)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _backward_columns(
    qkv_ptr, grad_ptr, lse_ptr, delta_ptr, grad_qkv_ptr, cu_seqlens_ptr, prefix_lens_ptr, tiles_ptr,
    total_tokens, num_sequences, scale, seed_ptr, site, threshold, keep_scale, DROPOUT: tl.constexpr,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PREFIX: tl.constexpr,
    LISTED: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, SPLIT: tl.constexpr,
    SMALL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile of columns of a sequence longer than SMALL: dK and dV. Scores are transposed (columns, rows)."""
    width: tl.constexpr = NUM_HEADS * HEAD_DIM
    head = tl.program_id(0) % NUM_HEADS
    sequence, tile, start, length, _ = locate(
        cu_seqlens_ptr, tiles_ptr, tl.program_id(0) // NUM_HEADS, total_tokens, num_sequences, LISTED, TILE, SPLIT
    )
    first_column = tile * TILE
    if (length <= SMALL) | (first_column >= length) | (sequence == num_sequences):
        return
    prefix = prefix_of(prefix_lens_ptr, sequence, length, num_sequences, PREFIX)
    seed = start.to(tl.int64)
    if DROPOUT:
        seed = tl.load(seed_ptr)

    columns, d = tl.arange(0, TILE), tl.arange(0, BLOCK_D)
    mask = (first_column + columns < length)[:, None] & (d < HEAD_DIM)[None, :]
    base = qkv_ptr + start.to(tl.int64) * (3 * width) + head * HEAD_DIM
    tile_base = base + tl.cast(first_column, tl.int64) * (3 * width)
    offsets = (columns * (3 * width))[:, None] + d[None, :]
    key, value = load(tile_base + width, offsets, mask), load(tile_base + 2 * width, offsets, mask)
    grad_base = grad_ptr + start.to(tl.int64) * width + head * HEAD_DIM
    statistics = head.to(tl.int64) * total_tokens + start

    grad_key = tl.zeros((TILE, BLOCK_D), tl.float32)
    grad_value = tl.zeros((TILE, BLOCK_D), tl.float32)
    # Columns from the prefix length on are seen by the rows from there on only.
    first = length * 0
    if PREFIX:
        first = tl.where(first_column < prefix, 0, prefix // BLOCK * BLOCK)
    for first_row in range(first, length, BLOCK):
        rows = tl.arange(0, BLOCK)
        there = first_row + rows < length
        loaded = there[:, None] & (d < HEAD_DIM)[None, :]
        at = tl.cast(first_row, tl.int64)
        query = load(base + at * (3 * width), (rows * (3 * width))[:, None] + d[None, :], loaded)
        grad = load(grad_base + at * width, (rows * width)[:, None] + d[None, :], loaded)
        # exp2(0 - inf) is 0: rows past the end add nothing. Columns past the end have rows of their own in dK and dV,
        # which nobody stores.
        lse = tl.load(lse_ptr + statistics + first_row + rows, mask=there, other=float("inf")) * LOG2E
        delta = tl.load(delta_ptr + statistics + first_row + rows, mask=there, other=0.0)
        p = multiply(key, tl.trans(query), None, PRECISION) * (scale * LOG2E)
        if PREFIX:
            seen = (first_row + rows >= prefix)[None, :] | (first_column + columns < prefix)[:, None]
            p = tl.where(seen, p, -float("inf"))
        p = tl.exp2(p - lse[None, :])
        grad_p = multiply(value, tl.trans(grad), None, PRECISION)
        kept = p
        if DROPOUT:
            keep = keep_scores(
                seed, site, head, start, first_row, rows[None, :], first_column, columns[:, None], threshold
            )
            kept = tl.where(keep, p, 0.0)
            grad_p = tl.where(keep, grad_p * keep_scale, 0.0)
        grad_value = multiply(narrow(kept, grad.dtype), grad, grad_value, PRECISION)
        grad_key = multiply(narrow(p * (grad_p - delta[None, :]), query.dtype), query, grad_key, PRECISION)
    if DROPOUT:
        grad_value *= keep_scale
    out = grad_qkv_ptr + (start + first_column).to(tl.int64) * (3 * width) + head * HEAD_DIM
    tl.store(out + width + offsets, narrow(grad_key * scale, grad_qkv_ptr.dtype.element_ty), mask=mask)
    tl.store(out + 2 * width + offsets, narrow(grad_value, grad_qkv_ptr.dtype.element_ty), mask=mask)


def launch_backward(
    grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor, tiles: Tensor, max_seqlen: int,
    prefix_lens: Tensor | None, dropout_p: float, seed: Tensor | None, site: int, batch_invariant: bool,
) -> Tensor:  # fmt: skip
    grad_qkv = torch.empty_like(qkv)
    if not qkv.numel():
        return grad_qkv
    rest = (qkv, cu_seqlens, tiles, max_seqlen, prefix_lens, dropout_p, seed, site, batch_invariant)
    arguments, config, slots, listed = attention_arguments("in_one", *rest)
    small, num_heads = config.block, qkv.shape[2]
    grid = (slots * triton.cdiv(num_heads, config.heads),)
    _backward_in_one[grid](qkv, grad, lse, grad_qkv, LISTED=listed, HEADS=config.heads, BLOCK=config.block, **arguments)
    if listed or max_seqlen > small:
        delta = torch.empty_like(lse)
        arguments, config, slots, _ = attention_arguments("rows", *rest)
        _backward_rows[(slots * num_heads,)](
            qkv, out, grad, lse, delta, grad_qkv, LISTED=listed, SMALL=small, BLOCK=config.block, **arguments
        )
        arguments, config, slots, _ = attention_arguments("columns", *rest)
        _backward_columns[(slots * num_heads,)](
            qkv, grad, lse, delta, grad_qkv, LISTED=listed, SMALL=small, BLOCK=config.block, **arguments
        )
    return grad_qkv


def fake_backward(grad: Tensor, qkv: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)
