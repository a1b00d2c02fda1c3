"""The forward kernel of varlen attention; attention.py has the formulas and shapes."""

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
def _forward(
    qkv_ptr, out_ptr, lse_ptr, cu_seqlens_ptr, prefix_lens_ptr, tiles_ptr, total_tokens, num_sequences, scale,
    seed_ptr, site, threshold, keep_scale, DROPOUT: tl.constexpr,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PREFIX: tl.constexpr,
    LISTED: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, SPLIT: tl.constexpr,
    HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    groups: tl.constexpr = (NUM_HEADS + HEADS - 1) // HEADS
    width: tl.constexpr = NUM_HEADS * HEAD_DIM
    group = tl.program_id(0) % groups
    sequence, tile, start, length, rest = locate(
        cu_seqlens_ptr, tiles_ptr, tl.program_id(0) // groups, total_tokens, num_sequences, LISTED, TILE, SPLIT
    )
    zero_rows_of_no_sequence(
        out_ptr, sequence, tile, start, length, rest, num_sequences, group, 1, width, HEADS * HEAD_DIM,
        HEADS * BLOCK_D, LISTED, TILE, SPLIT,
    )  # fmt: skip
    first_row = tile * TILE
    if (sequence == num_sequences) | (first_row >= length):
        return
    prefix = prefix_of(prefix_lens_ptr, sequence, length, num_sequences, PREFIX)
    seed = start.to(tl.int64)
    if DROPOUT:
        seed = tl.load(seed_ptr)

    stacked = tl.arange(0, TILE * HEADS)
    rows, head = stacked % TILE, group * HEADS + stacked // TILE
    d = tl.arange(0, BLOCK_D)
    there = (first_row + rows < length) & (head < NUM_HEADS)
    base = qkv_ptr + start.to(tl.int64) * (3 * width)
    query_offsets = (rows * (3 * width) + head * HEAD_DIM)[:, None] + d[None, :]
    query = load(base + first_row.to(tl.int64) * (3 * width), query_offsets, there[:, None] & (d < HEAD_DIM)[None, :])

    highest = tl.full((TILE * HEADS,), -float("inf"), tl.float32)
    total = tl.zeros((TILE * HEADS,), tl.float32)
    acc = tl.zeros((TILE * HEADS, BLOCK_D), tl.float32)
    # Rows that all lie before the prefix length see nothing from there on.
    columns = length
    if PREFIX:
        columns = tl.where(first_row + TILE <= prefix, prefix, length)
    whole = columns // BLOCK * BLOCK
    if PREFIX or HEADS > 1 or not LISTED:
        whole = 0
    for first_column in range(0, whole, BLOCK):
        acc, total, highest = _forward_step(
            acc, total, highest, query, base, rows, first_row, first_column, head, group, columns, prefix, start, scale,
            seed, site, threshold, DROPOUT, width, NUM_HEADS, HEAD_DIM, BLOCK_D, PREFIX, PRECISION, TILE, HEADS, BLOCK,
            MASKED=False,
        )  # fmt: skip
    for first_column in tl.range(whole, columns, BLOCK, num_stages=None if PREFIX and LISTED else 1):
        acc, total, highest = _forward_step(
            acc, total, highest, query, base, rows, first_row, first_column, head, group, columns, prefix, start, scale,
            seed, site, threshold, DROPOUT, width, NUM_HEADS, HEAD_DIM, BLOCK_D, PREFIX, PRECISION, TILE, HEADS, BLOCK,
            MASKED=True,
        )  # fmt: skip

    lse = (highest + tl.log2(total)) / LOG2E
    lse_offsets = head.to(tl.int64) * total_tokens + start + first_row + rows
    tl.store(lse_ptr + lse_offsets, lse, mask=there)
    factor = 1.0 / total
    if DROPOUT:
        factor *= keep_scale
    out = out_ptr + (start + first_row).to(tl.int64) * width
    tl.store(
        out + (rows * width + head * HEAD_DIM)[:, None] + d[None, :],
        narrow(acc * factor[:, None], out_ptr.dtype.element_ty),
        mask=there[:, None] & (d < HEAD_DIM)[None, :],
    )


@triton.jit
def _forward_step(
    acc, total, highest, query, base, rows, first_row, first_column, head, group, columns, prefix, start, scale,
    seed, site, threshold, DROPOUT: tl.constexpr, width: tl.constexpr,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PREFIX: tl.constexpr,
    PRECISION: tl.constexpr, TILE: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One block of columns."""
    stacked = tl.arange(0, BLOCK * HEADS)
    places, column_head = stacked % BLOCK, group * HEADS + stacked // BLOCK
    d = tl.arange(0, BLOCK_D)
    offsets = (places * (3 * width) + column_head * HEAD_DIM)[:, None] + d[None, :]
    there = (places >= 0)[:, None] & (d < HEAD_DIM)[None, :]
    if MASKED:
        there &= ((first_column + places < columns) & (column_head < NUM_HEADS))[:, None]
    block = base + tl.cast(first_column, tl.int64) * (3 * width)
    key = load(block + width, offsets, there)
    value = load(block + 2 * width, offsets, there)

    scores = multiply(query, tl.trans(key), None, PRECISION) * (scale * LOG2E)
    if MASKED:
        seen = (first_column + places < columns)[None, :]
        if HEADS > 1:
            seen &= head[:, None] == column_head[None, :]
        if PREFIX:
            seen &= (first_row + rows >= prefix)[:, None] | (first_column + places < prefix)[None, :]
        scores = tl.where(seen, scores, -float("inf"))
    higher = tl.maximum(highest, tl.max(scores, 1))
    p = tl.exp2(scores - higher[:, None])
    decay = tl.exp2(highest - higher)
    total = total * decay + tl.sum(p, 1)
    if DROPOUT:
        keep = keep_scores(
            seed, site, head[:, None], start, first_row, rows[:, None], first_column, places[None, :], threshold
        )
        p = tl.where(keep, p, 0.0)
    acc = multiply(narrow(p, value.dtype), value, acc * decay[:, None], PRECISION)
    return acc, total, higher


def launch_forward(
    qkv: Tensor, cu_seqlens: Tensor, tiles: Tensor, max_seqlen: int, prefix_lens: Tensor | None, dropout_p: float,
    seed: Tensor | None, site: int, batch_invariant: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out, lse = fake_forward(qkv)
    arguments, config, slots, listed = attention_arguments(
        "forward", qkv, cu_seqlens, tiles, max_seqlen, prefix_lens, dropout_p, seed, site, batch_invariant
    )
    if qkv.numel():
        grid = (slots * triton.cdiv(qkv.shape[2], config.heads),)
        _forward[grid](qkv, out, lse, LISTED=listed, HEADS=config.heads, BLOCK=config.block, **arguments)
    return out, lse


def fake_forward(qkv: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    total_tokens, num_heads = qkv.shape[0], qkv.shape[2]
    out = qkv.new_empty(total_tokens, num_heads, qkv.shape[3])
    return out, qkv.new_empty((num_heads, total_tokens), dtype=torch.float32)
