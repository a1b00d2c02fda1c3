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
    load_prefix,
    locate,
    sees,
    zero_rows_of_no_sequence,
)
from .common import cdiv, keep_scores, multiply, narrow, scores_key
from .configs import AttentionConfig
from .dropout import Dropout
from .jit import jit


@jit(do_not_specialize=UNSPECIALIZED)
def _attn_bwd_single_tile_kernel(
    qkv_ptr,  # (total_tokens, 3, NUM_HEADS, HEAD_DIM)
    do_ptr,  # (total_tokens, NUM_HEADS, HEAD_DIM)
    lse_ptr,  # (NUM_HEADS, total_tokens) float32
    dqkv_ptr,  # (total_tokens, 3, NUM_HEADS, HEAD_DIM)
    cu_seqlens_ptr,  # (num_sequences + 1,) int32
    prefix_lens_ptr,  # (num_sequences,) int32, if HAS_PREFIX
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
    HEADS_PER_TILE: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dQ, dK and dV of a sequence of at most BLOCK_M tokens, of HEADS_PER_TILE heads, from one look at the scores.

    Scores are transposed, (columns, rows). A slot is a sequence; without USE_TILE_LIST none has more than TILE rows.
    """
    head_groups: tl.constexpr = (NUM_HEADS + HEADS_PER_TILE - 1) // HEADS_PER_TILE
    hidden: tl.constexpr = NUM_HEADS * HEAD_DIM
    group = tl.program_id(0) % head_groups
    sequence, tile, start, length, rest = locate(
        cu_seqlens_ptr, cu_seqlens_ptr, tl.program_id(0) // head_groups, total_tokens, num_sequences, False, TILE, 1
    )
    if USE_TILE_LIST:  # longer sequences, and the rows of none, are left to the kernels that go by the list
        length += rest
    else:
        zero_rows_of_no_sequence(
            dqkv_ptr, sequence, tile, start, length, rest, num_sequences, group, 3, hidden, HEADS_PER_TILE * HEAD_DIM,
            False, TILE, 1, HEADS_PER_TILE * BLOCK_D,
        )  # fmt: skip
    if (sequence == num_sequences) | (length == 0) | (length > BLOCK_M):
        return
    prefix = load_prefix(prefix_lens_ptr, sequence, length, num_sequences, HAS_PREFIX)
    key = start.to(tl.uint64)
    if APPLY_DROPOUT:
        key = scores_key(tl.load(seed_ptr), site, USE_PTX)

    stacked = tl.arange(0, BLOCK_M * HEADS_PER_TILE)
    offs_m, head = stacked % BLOCK_M, group * HEADS_PER_TILE + stacked // BLOCK_M
    offs_d = tl.arange(0, BLOCK_D)
    mask_m = (offs_m < length) & (head < NUM_HEADS)
    mask = mask_m[:, None] & (offs_d < HEAD_DIM)[None, :]
    offsets = (offs_m * (3 * hidden) + head * HEAD_DIM)[:, None] + offs_d[None, :]
    base = qkv_ptr + start.to(tl.int64) * (3 * hidden)
    q, k, v = load(base, offsets, mask), load(base + hidden, offsets, mask), load(base + 2 * hidden, offsets, mask)
    do_offsets = (offs_m * hidden + head * HEAD_DIM)[:, None] + offs_d[None, :]
    do = load(do_ptr + start.to(tl.int64) * hidden, do_offsets, mask)
    lse = tl.load(lse_ptr + head.to(tl.int64) * total_tokens + start + offs_m, mask=mask_m, other=float("inf"))

    seen = (offs_m < length)[:, None] & (offs_m < length)[None, :]
    if HEADS_PER_TILE > 1:
        seen &= head[:, None] == head[None, :]
    if HAS_PREFIX or CAUSAL:
        seen &= sees(offs_m[None, :], offs_m[:, None], prefix, HAS_PREFIX, CAUSAL)
    if APPLY_DROPOUT:
        keep = keep_scores(key, head[None, :], start, 0, offs_m[None, :], 0, offs_m[:, None], threshold, USE_PTX)
    p = multiply(k, tl.trans(q), None, PRECISION) * (scale * LOG2E)
    p = tl.exp2(tl.where(seen, p, -float("inf")) - (lse * LOG2E)[None, :])
    dp = multiply(v, tl.trans(do), None, PRECISION)
    p_kept = p
    if APPLY_DROPOUT:  # P and dP are left without keep_scale, dV and dS get it
        p_kept = tl.where(keep, p, 0.0)
    dv = multiply(narrow(p_kept, do.dtype, USE_PTX), do, None, PRECISION)
    if APPLY_DROPOUT:
        dp = tl.where(keep, dp, 0.0)  # p * this needs fewer registers than p_kept * dp
        dv *= keep_scale
        scale *= keep_scale
    dqkv = dqkv_ptr + start.to(tl.int64) * (3 * hidden)
    tl.store(dqkv + 2 * hidden + offsets, narrow(dv, dqkv_ptr.dtype.element_ty), mask=mask)
    ds = p * dp
    ds = narrow(tl.fma(p, -tl.sum(ds, 0)[None, :], ds) * scale, q.dtype, USE_PTX)
    dk = multiply(ds, q, None, PRECISION)
    tl.store(dqkv + hidden + offsets, narrow(dk, dqkv_ptr.dtype.element_ty), mask=mask)
    dq = multiply(tl.trans(ds), k, None, PRECISION)
    tl.store(dqkv + offsets, narrow(dq, dqkv_ptr.dtype.element_ty), mask=mask)


@jit(do_not_specialize=UNSPECIALIZED)
def _attn_bwd_dq_kernel(
    qkv_ptr,  # (total_tokens, 3, NUM_HEADS, HEAD_DIM)
    out_ptr,  # (total_tokens, NUM_HEADS, HEAD_DIM)
    do_ptr,  # (total_tokens, NUM_HEADS, HEAD_DIM)
    lse_ptr,  # (NUM_HEADS, total_tokens) float32
    rows_ptr,  # (2, NUM_HEADS, total_tokens) float32, stored
    dqkv_ptr,  # (total_tokens, 3, NUM_HEADS, HEAD_DIM)
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
    MIN_LENGTH: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    CAUSAL: tl.constexpr,
    USE_TILE_LIST: tl.constexpr,
    APPLY_DROPOUT: tl.constexpr,
    USE_PTX: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dQ of BLOCK_M rows of a sequence of at least MIN_LENGTH tokens, and two values of each for dK and dV.

    They are lse times log2 e, and delta over -keep_scale: what saves a product or a sign a score there.
    """
    hidden: tl.constexpr = NUM_HEADS * HEAD_DIM
    head = tl.program_id(0) % NUM_HEADS
    sequence, tile, start, length, rest = locate(
        cu_seqlens_ptr, tiles_ptr, tl.program_id(0) // NUM_HEADS, total_tokens, num_sequences, USE_TILE_LIST, BLOCK_M,
        TILE // BLOCK_M,
    )  # fmt: skip
    if USE_TILE_LIST:
        zero_rows_of_no_sequence(
            dqkv_ptr, sequence, tile, start, length, rest, num_sequences, head, 3, hidden, HEAD_DIM, True, BLOCK_M,
            TILE // BLOCK_M, BLOCK_D,
        )  # fmt: skip
    start_m = tile * BLOCK_M
    if (length < MIN_LENGTH) | (start_m >= length) | (sequence == num_sequences):
        return
    prefix = load_prefix(prefix_lens_ptr, sequence, length, num_sequences, HAS_PREFIX)
    key = start.to(tl.uint64)
    if APPLY_DROPOUT:
        key = scores_key(tl.load(seed_ptr), site, USE_PTX)

    offs_m, offs_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    mask_m = start_m + offs_m < length
    mask = mask_m[:, None] & (offs_d < HEAD_DIM)[None, :]
    base = qkv_ptr + start.to(tl.int64) * (3 * hidden) + head * HEAD_DIM
    offsets = (offs_m * (3 * hidden))[:, None] + offs_d[None, :]
    q = load(base + start_m.to(tl.int64) * (3 * hidden), offsets, mask)
    out_base = (start + start_m).to(tl.int64) * hidden + head * HEAD_DIM
    out_offsets = (offs_m * hidden)[:, None] + offs_d[None, :]
    do = load(do_ptr + out_base, out_offsets, mask)
    out = load(out_ptr + out_base, out_offsets, mask)
    delta = tl.sum(out.to(tl.float32) * do.to(tl.float32), 1)
    scale_dq = scale
    if APPLY_DROPOUT:  # dP is left without keep_scale: one product a row instead of one a score
        delta /= keep_scale
        scale_dq *= keep_scale
    lse_offsets = head.to(tl.int64) * total_tokens + start + start_m + offs_m
    lse = tl.load(lse_ptr + lse_offsets, mask=mask_m, other=float("inf")) * LOG2E
    tl.store(rows_ptr + lse_offsets, lse, mask=mask_m)
    tl.store(rows_ptr + NUM_HEADS * total_tokens.to(tl.int64) + lse_offsets, -delta, mask=mask_m)

    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    # Rows that all lie before the prefix length see nothing from there on.
    end_n = length
    if CAUSAL:
        end_n = tl.minimum(length, start_m + BLOCK_M)
        if HAS_PREFIX:
            end_n = tl.maximum(end_n, prefix)
    elif HAS_PREFIX:
        end_n = tl.where(start_m + BLOCK_M <= prefix, prefix, length)
    # Blocks before unmasked_n need no mask.
    unmasked_n = end_n // BLOCK_N * BLOCK_N
    if HAS_PREFIX:
        unmasked_n = 0
    elif CAUSAL:
        unmasked_n = start_m // BLOCK_N * BLOCK_N
    for start_n in range(0, unmasked_n, BLOCK_N):
        dq = _attn_bwd_dq_step(
            dq, q, do, lse, delta, base, start, head, start_m, offs_m, start_n, end_n, prefix, scale, key, threshold,
            hidden, HEAD_DIM, HAS_PREFIX, CAUSAL, APPLY_DROPOUT, USE_PTX, False, PRECISION, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    for start_n in tl.range(unmasked_n, end_n, BLOCK_N, num_stages=None if HAS_PREFIX or CAUSAL else 1):
        dq = _attn_bwd_dq_step(
            dq, q, do, lse, delta, base, start, head, start_m, offs_m, start_n, end_n, prefix, scale, key, threshold,
            hidden, HEAD_DIM, HAS_PREFIX, CAUSAL, APPLY_DROPOUT, USE_PTX, True, PRECISION, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    dq_base = dqkv_ptr + (start + start_m).to(tl.int64) * (3 * hidden) + head * HEAD_DIM
    tl.store(dq_base + offsets, narrow(dq * scale_dq, dqkv_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _attn_bwd_dq_step(
    dq,  # (BLOCK_M, BLOCK_D), without scale and keep_scale
    q,  # (BLOCK_M, BLOCK_D)
    do,  # (BLOCK_M, BLOCK_D)
    lse,  # (BLOCK_M,), times log2 e
    delta,  # (BLOCK_M,), over keep_scale
    base,
    start,
    head,
    start_m,
    offs_m,
    start_n,
    end_n,
    prefix,
    scale,
    key,
    threshold,
    hidden: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    CAUSAL: tl.constexpr,
    APPLY_DROPOUT: tl.constexpr,
    USE_PTX: tl.constexpr,
    MASK_SCORES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dQ with what the columns from start_n on add."""
    offs_n, offs_d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    mask_kv = (offs_n >= 0)[:, None] & (offs_d < HEAD_DIM)[None, :]
    if MASK_SCORES:
        mask_kv &= (start_n + offs_n < end_n)[:, None]
    offsets = (offs_n * (3 * hidden))[:, None] + offs_d[None, :]
    kv = base + tl.cast(start_n, tl.int64) * (3 * hidden)
    k = load(kv + hidden, offsets, mask_kv)
    v = load(kv + 2 * hidden, offsets, mask_kv)

    p = multiply(q, tl.trans(k), None, PRECISION) * (scale * LOG2E)
    if MASK_SCORES:  # before exp2: a very negative lse would make it infinite
        seen = (start_n + offs_n < end_n)[None, :]
        if HAS_PREFIX or CAUSAL:
            seen &= sees((start_m + offs_m)[:, None], (start_n + offs_n)[None, :], prefix, HAS_PREFIX, CAUSAL)
        p = tl.where(seen, p, -float("inf"))
    p = tl.exp2(p - lse[:, None])
    dp = multiply(do, tl.trans(v), None, PRECISION)
    if APPLY_DROPOUT:
        keep = keep_scores(key, head, start, start_m, offs_m[:, None], start_n, offs_n[None, :], threshold, USE_PTX)
        dp = tl.where(keep, dp, 0.0)
    ds = p * (dp - delta[:, None])
    return multiply(narrow(ds, k.dtype, USE_PTX), k, dq, PRECISION)


@jit(do_not_specialize=UNSPECIALIZED)
def _attn_bwd_dkdv_kernel(
    qkv_ptr,  # (total_tokens, 3, NUM_HEADS, HEAD_DIM)
    do_ptr,  # (total_tokens, NUM_HEADS, HEAD_DIM)
    rows_ptr,  # (2, NUM_HEADS, total_tokens) float32: lse times log2 e; delta over -keep_scale
    dqkv_ptr,  # (total_tokens, 3, NUM_HEADS, HEAD_DIM)
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
    MIN_LENGTH: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    CAUSAL: tl.constexpr,
    USE_TILE_LIST: tl.constexpr,
    APPLY_DROPOUT: tl.constexpr,
    USE_PTX: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dK and dV of BLOCK_N columns of a sequence of at least MIN_LENGTH tokens.

    Scores are transposed, (columns, rows).
    """
    hidden: tl.constexpr = NUM_HEADS * HEAD_DIM
    head = tl.program_id(0) % NUM_HEADS
    sequence, tile, start, length, _ = locate(
        cu_seqlens_ptr, tiles_ptr, tl.program_id(0) // NUM_HEADS, total_tokens, num_sequences, USE_TILE_LIST, BLOCK_N,
        TILE // BLOCK_N,
    )  # fmt: skip
    start_n = tile * BLOCK_N
    if (length < MIN_LENGTH) | (start_n >= length) | (sequence == num_sequences):
        return
    prefix = load_prefix(prefix_lens_ptr, sequence, length, num_sequences, HAS_PREFIX)
    key = start.to(tl.uint64)
    if APPLY_DROPOUT:
        key = scores_key(tl.load(seed_ptr), site, USE_PTX)

    offs_n, offs_d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    mask = (start_n + offs_n < length)[:, None] & (offs_d < HEAD_DIM)[None, :]
    base = qkv_ptr + start.to(tl.int64) * (3 * hidden) + head * HEAD_DIM
    kv = base + tl.cast(start_n, tl.int64) * (3 * hidden)
    offsets = (offs_n * (3 * hidden))[:, None] + offs_d[None, :]
    k, v = load(kv + hidden, offsets, mask), load(kv + 2 * hidden, offsets, mask)
    do_base = do_ptr + start.to(tl.int64) * hidden + head * HEAD_DIM
    lse_ptr = rows_ptr + head.to(tl.int64) * total_tokens + start
    minus_delta_ptr = lse_ptr + NUM_HEADS * total_tokens.to(tl.int64)

    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    # Columns from the prefix length on are seen by the rows from there on only, or from themselves on.
    begin_m = length * 0
    if CAUSAL:
        begin_m = start_n // BLOCK_M * BLOCK_M
        if HAS_PREFIX:
            begin_m = tl.where(start_n < prefix, 0, begin_m)
    elif HAS_PREFIX:
        begin_m = tl.where(start_n < prefix, 0, prefix // BLOCK_M * BLOCK_M)
    for start_m in range(begin_m, length, BLOCK_M):
        offs_m = tl.arange(0, BLOCK_M)
        mask_m = start_m + offs_m < length
        mask_q = mask_m[:, None] & (offs_d < HEAD_DIM)[None, :]
        start_m_64 = tl.cast(start_m, tl.int64)
        q = load(base + start_m_64 * (3 * hidden), (offs_m * (3 * hidden))[:, None] + offs_d[None, :], mask_q)
        do = load(do_base + start_m_64 * hidden, (offs_m * hidden)[:, None] + offs_d[None, :], mask_q)
        # Rows past the end add nothing: exp2(0 - 0) times a dO and a Q of zeros. Columns past the end have rows of
        # their own in dK and dV, which are not stored.
        lse = tl.load(lse_ptr + start_m + offs_m, mask=mask_m, other=0.0)
        minus_delta = tl.load(minus_delta_ptr + start_m + offs_m, mask=mask_m, other=0.0)

        p = multiply(k, tl.trans(q), None, PRECISION) * (scale * LOG2E)
        if HAS_PREFIX or CAUSAL:
            seen = sees((start_m + offs_m)[None, :], (start_n + offs_n)[:, None], prefix, HAS_PREFIX, CAUSAL)
            p = tl.where(seen, p, -float("inf"))
        p = tl.exp2(p - lse[None, :])
        dp = multiply(v, tl.trans(do), None, PRECISION)
        p_kept = p
        if APPLY_DROPOUT:
            keep = keep_scores(key, head, start, start_m, offs_m[None, :], start_n, offs_n[:, None], threshold, USE_PTX)
            p_kept = tl.where(keep, p, 0.0)
        dv = multiply(narrow(p_kept, do.dtype, USE_PTX), do, dv, PRECISION)
        ds = tl.fma(p_kept, dp, p * minus_delta[None, :])
        dk = multiply(narrow(ds, q.dtype, USE_PTX), q, dk, PRECISION)
    if APPLY_DROPOUT:
        dv *= keep_scale
        scale *= keep_scale
    dkv = dqkv_ptr + (start + start_n).to(tl.int64) * (3 * hidden) + head * HEAD_DIM
    tl.store(dkv + hidden + offsets, narrow(dk * scale, dqkv_ptr.dtype.element_ty), mask=mask)
    tl.store(dkv + 2 * hidden + offsets, narrow(dv, dqkv_ptr.dtype.element_ty), mask=mask)


def launch_backward(
    do: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor, tiles: Tensor, max_seqlen: int,
    block_m: int, prefix_lens: Tensor | None, causal: bool, dropout: Dropout | None,
) -> Tensor:  # fmt: skip
    """Launch the kernels: the first for sequences of up to its block_m tokens, the two others for longer ones."""
    dqkv = torch.empty_like(qkv)
    if not qkv.numel():
        return dqkv
    num_heads = qkv.shape[2]

    def of(kernel: str) -> tuple[dict[str, Any], AttentionConfig, int]:
        found = attention_arguments(kernel, qkv, cu_seqlens, tiles, max_seqlen, block_m, prefix_lens, causal, dropout)
        if causal or prefix_lens is not None:  # a cap leaves no registers for their masks
            found[0].pop("maxnreg", None)
        return found

    arguments, config, _ = of("bwd_single_tile")
    longest = config.block_m
    del arguments["tiles_ptr"]
    _attn_bwd_single_tile_kernel[(cu_seqlens.shape[0] * cdiv(num_heads, config.heads_per_tile),)](
        qkv, do, lse, dqkv, HEADS_PER_TILE=config.heads_per_tile, BLOCK_M=longest, **arguments
    )
    if arguments["USE_TILE_LIST"] or max_seqlen > longest:
        rows = lse.new_empty((2, *lse.shape))
        arguments, config, slots = of("bwd_dq")
        _attn_bwd_dq_kernel[(slots * num_heads,)](
            qkv, out, do, lse, rows, dqkv, MIN_LENGTH=longest + 1, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
            **arguments,
        )  # fmt: skip
        arguments, config, slots = of("bwd_dkdv")
        _attn_bwd_dkdv_kernel[(slots * num_heads,)](
            qkv, do, rows, dqkv, MIN_LENGTH=longest + 1, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
            **arguments,
        )  # fmt: skip
    return dqkv


def fake_backward(do: Tensor, qkv: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)
