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
    load_prefix,
    locate,
    sees,
    zero_rows_of_no_sequence,
)
from .common import cdiv, keep_scores, multiply, narrow, scores_key
from .configs import WHOLE
from .dropout import Dropout
from .jit import jit


@jit(do_not_specialize=UNSPECIALIZED)
def _attn_fwd_kernel(
    qkv_ptr,  # (total_tokens, 3, NUM_HEADS, HEAD_DIM)
    out_ptr,  # (total_tokens, NUM_HEADS, HEAD_DIM)
    lse_ptr,  # (NUM_HEADS, total_tokens) float32
    cu_seqlens_ptr,  # (num_sequences + 1,) int32
    prefix_lens_ptr,  # (num_sequences,) int32, if HAS_PREFIX
    tiles_ptr,  # (slots, 4) int32, if USE_TILE_LIST
    seed_ptr,  # (1,) int64
    total_tokens,
    num_sequences,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    scale,
    site,
    threshold,
    keep_scale,
    HAS_PREFIX: tl.constexpr,
    CAUSAL: tl.constexpr,
    USE_TILE_LIST: tl.constexpr,
    APPLY_DROPOUT: tl.constexpr,
    USE_PTX: tl.constexpr,
    PRECISION: tl.constexpr,
    LOOP_FREE: tl.constexpr,
    WHOLE_BLOCKS: tl.constexpr,
    HEADS_PER_TILE: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_M rows of a sequence, of HEADS_PER_TILE heads, a program; TILE // BLOCK_M programs share a tile.

    LOOP_FREE: all columns are one block. WHOLE_BLOCKS: blocks that every row sees have a loop of their own.
    """
    head_groups: tl.constexpr = (NUM_HEADS + HEADS_PER_TILE - 1) // HEADS_PER_TILE
    hidden: tl.constexpr = NUM_HEADS * HEAD_DIM
    group = tl.program_id(0) % head_groups
    sequence, tile, start, length, rest = locate(
        cu_seqlens_ptr, tiles_ptr, tl.program_id(0) // head_groups, total_tokens, num_sequences, USE_TILE_LIST, BLOCK_M,
        TILE // BLOCK_M,
    )  # fmt: skip
    zero_rows_of_no_sequence(
        out_ptr, sequence, tile, start, length, rest, num_sequences, group, 1, hidden, HEADS_PER_TILE * HEAD_DIM,
        USE_TILE_LIST, BLOCK_M, TILE // BLOCK_M, HEADS_PER_TILE * BLOCK_D,
    )  # fmt: skip
    start_m = tile * BLOCK_M
    if (sequence == num_sequences) | (start_m >= length):
        return
    prefix = load_prefix(prefix_lens_ptr, sequence, length, num_sequences, HAS_PREFIX)
    key = start.to(tl.uint64)
    if APPLY_DROPOUT:
        key = scores_key(tl.load(seed_ptr), site, USE_PTX)

    stacked = tl.arange(0, BLOCK_M * HEADS_PER_TILE)
    offs_m, head = stacked % BLOCK_M, group * HEADS_PER_TILE + stacked // BLOCK_M
    offs_d = tl.arange(0, BLOCK_D)
    mask_m = (start_m + offs_m < length) & (head < NUM_HEADS)
    mask_q = mask_m[:, None] & (offs_d < HEAD_DIM)[None, :]
    base = qkv_ptr + start.to(tl.int64) * (3 * hidden)
    q_offsets = (offs_m * (3 * hidden) + head * HEAD_DIM)[:, None] + offs_d[None, :]
    q = load(base + start_m.to(tl.int64) * (3 * hidden), q_offsets, mask_q)

    # Every row sees column 0, so that m_i is finite from the first block on.
    m_i = tl.full((BLOCK_M * HEADS_PER_TILE,), -float("inf"), tl.float32)
    l_i = tl.zeros((BLOCK_M * HEADS_PER_TILE,), tl.float32)
    acc = tl.zeros((BLOCK_M * HEADS_PER_TILE, BLOCK_D), tl.float32)
    scale *= LOG2E
    # Columns that any row sees, and those that all rows see.
    end_n, whole_n = length, length
    if HAS_PREFIX and not CAUSAL:
        end_n = tl.where(start_m + BLOCK_M <= prefix, prefix, length)
        whole_n = tl.where(start_m < prefix, prefix, length)
    if CAUSAL:
        end_n, whole_n = start_m + BLOCK_M, start_m + 1
        if HAS_PREFIX:
            end_n, whole_n = tl.maximum(end_n, prefix), tl.maximum(whole_n, prefix)
        end_n = tl.minimum(end_n, length)
    if LOOP_FREE:
        acc, l_i, m_i = _attn_fwd_step(
            acc, l_i, m_i, q, base, start, head, group, start_m, offs_m, 0, end_n, whole_n, prefix, scale, key,
            threshold, NUM_HEADS, HEAD_DIM, HAS_PREFIX, CAUSAL, APPLY_DROPOUT, USE_PTX, True, WHOLE_BLOCKS, True,
            PRECISION, HEADS_PER_TILE, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    else:
        first_n = 0
        if WHOLE_BLOCKS:
            first_n = whole_n // BLOCK_N * BLOCK_N
            for start_n in range(0, first_n, BLOCK_N):
                acc, l_i, m_i = _attn_fwd_step(
                    acc, l_i, m_i, q, base, start, head, group, start_m, offs_m, start_n, end_n, whole_n, prefix,
                    scale, key, threshold, NUM_HEADS, HEAD_DIM, HAS_PREFIX, CAUSAL, APPLY_DROPOUT, USE_PTX, False,
                    WHOLE_BLOCKS, False, PRECISION, HEADS_PER_TILE, BLOCK_N, BLOCK_D,
                )  # fmt: skip
        for start_n in tl.range(first_n, end_n, BLOCK_N, num_stages=1 if WHOLE_BLOCKS else None):
            acc, l_i, m_i = _attn_fwd_step(
                acc, l_i, m_i, q, base, start, head, group, start_m, offs_m, start_n, end_n, whole_n, prefix,
                scale, key, threshold, NUM_HEADS, HEAD_DIM, HAS_PREFIX, CAUSAL, APPLY_DROPOUT, USE_PTX, True,
                WHOLE_BLOCKS, False, PRECISION, HEADS_PER_TILE, BLOCK_N, BLOCK_D,
            )  # fmt: skip

    lse = (m_i * scale + tl.log2(l_i)) / LOG2E
    tl.store(lse_ptr + head.to(tl.int64) * total_tokens + start + start_m + offs_m, lse, mask=mask_m)
    factor = 1.0 / l_i
    if APPLY_DROPOUT:
        factor *= keep_scale
    out = out_ptr + (start + start_m).to(tl.int64) * hidden
    out_offsets = (offs_m * hidden + head * HEAD_DIM)[:, None] + offs_d[None, :]
    tl.store(out + out_offsets, narrow(acc * factor[:, None], out_ptr.dtype.element_ty, USE_PTX), mask=mask_q)


@triton.jit
def _attn_fwd_step(
    acc,  # (BLOCK_M * HEADS_PER_TILE, BLOCK_D)
    l_i,  # (BLOCK_M * HEADS_PER_TILE,), sum of exp2((scores - m_i) * scale)
    m_i,  # (BLOCK_M * HEADS_PER_TILE,), maximum of scores, without scale
    q,  # (BLOCK_M * HEADS_PER_TILE, BLOCK_D)
    base,
    start,
    head,
    group,
    start_m,
    offs_m,
    start_n,
    end_n,
    whole_n,
    prefix,
    scale,
    key,
    threshold,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    CAUSAL: tl.constexpr,
    APPLY_DROPOUT: tl.constexpr,
    USE_PTX: tl.constexpr,
    MASK_SCORES: tl.constexpr,
    WHOLE_BLOCKS: tl.constexpr,
    ONLY: tl.constexpr,
    PRECISION: tl.constexpr,
    HEADS_PER_TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Online softmax over the columns from start_n on: (acc, l_i, m_i).

    ONLY: no columns came before. scale: times log2 e. whole_n: end of the columns that all rows see.
    """
    hidden: tl.constexpr = NUM_HEADS * HEAD_DIM
    stacked = tl.arange(0, BLOCK_N * HEADS_PER_TILE)
    offs_n, head_n = stacked % BLOCK_N, group * HEADS_PER_TILE + stacked // BLOCK_N
    offs_d = tl.arange(0, BLOCK_D)
    offsets = (offs_n * (3 * hidden) + head_n * HEAD_DIM)[:, None] + offs_d[None, :]
    mask_kv = (offs_n >= 0)[:, None] & (offs_d < HEAD_DIM)[None, :]
    if MASK_SCORES:
        mask_kv &= ((start_n + offs_n < end_n) & (head_n < NUM_HEADS))[:, None]
    kv = base + tl.cast(start_n, tl.int64) * (3 * hidden)
    k = load(kv + hidden, offsets, mask_kv)
    v = load(kv + 2 * hidden, offsets, mask_kv)

    if APPLY_DROPOUT:  # before the products, whose results would take up registers beside Philox's words
        keep = keep_scores(
            key, head[:, None], start, start_m, offs_m[:, None], start_n, offs_n[None, :], threshold, USE_PTX
        )
    scores = multiply(q, tl.trans(k), None, PRECISION)
    if MASK_SCORES:
        if ONLY or WHOLE_BLOCKS or HEADS_PER_TILE > 1 or start_n + BLOCK_N > whole_n:
            rows, columns = (start_m + offs_m)[:, None], (start_n + offs_n)[None, :]
            if CAUSAL:  # no row of the sequence sees columns past its end, and those past it are not stored
                seen = sees(rows, columns, prefix, HAS_PREFIX, CAUSAL)
            else:
                seen = columns < end_n
                if HAS_PREFIX:
                    seen &= sees(rows, columns, prefix, HAS_PREFIX, CAUSAL)
            if HEADS_PER_TILE > 1:
                seen &= head[:, None] == head_n[None, :]
            scores = tl.where(seen, scores, -float("inf"))
    m_new = tl.max(scores, 1)
    if not ONLY:
        m_new = tl.maximum(m_i, m_new)
    p = tl.exp2(tl.fma(scores, scale, (m_new * -scale)[:, None]))
    if ONLY:
        l_i = tl.sum(p, 1)
    else:
        alpha = tl.exp2((m_i - m_new) * scale)
        l_i = l_i * alpha + tl.sum(p, 1)
        acc *= alpha[:, None]
    if APPLY_DROPOUT:
        p = tl.where(keep, p, 0.0)
    acc = multiply(narrow(p, v.dtype, USE_PTX), v, None if ONLY else acc, PRECISION)
    return acc, l_i, m_new


def launch_forward(
    qkv: Tensor, cu_seqlens: Tensor, tiles: Tensor, max_seqlen: int, block_m: int, prefix_lens: Tensor | None,
    causal: bool, dropout: Dropout | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the kernel: (out, lse)."""
    out, lse = fake_forward(qkv)
    arguments, config, slots = attention_arguments(
        "fwd", qkv, cu_seqlens, tiles, max_seqlen, block_m, prefix_lens, causal, dropout
    )
    if qkv.numel():
        listed, total_tokens, num_sequences = arguments["USE_TILE_LIST"], qkv.shape[0], cu_seqlens.shape[0] - 1
        assert arguments["scale"] > 0, "the kernel takes the maximum of scores without it"
        grid = (slots * cdiv(qkv.shape[2], config.heads_per_tile),)
        _attn_fwd_kernel[grid](
            qkv, out, lse, LOOP_FREE=not listed and config.block_n >= arguments["TILE"],
            WHOLE_BLOCKS=listed and (block_m > 0 or total_tokens >= WHOLE * num_sequences),
            HEADS_PER_TILE=config.heads_per_tile, BLOCK_M=config.block_m, BLOCK_N=config.block_n, **arguments,
        )  # fmt: skip
    return out, lse


def fake_forward(qkv: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    total_tokens, num_heads = qkv.shape[0], qkv.shape[2]
    out = qkv.new_empty(total_tokens, num_heads, qkv.shape[3])
    return out, qkv.new_empty((num_heads, total_tokens), dtype=torch.float32)
