"""Tiles of a packed batch: the list of them, and the device code and arguments that every attention kernel shares.

A tile is a run of rows of one sequence. Where every sequence fits one tile, a program finds its sequence by its own
number; else it reads (sequence, tile) from a list that is made once a batch on the device, longest sequences first. The
rows past the last offset, which belong to no sequence, have the sequence number num_sequences; unused slots of the list
have -1.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .common import cdiv, dropout_arguments, drops, launch_options, next_power_of_2, precision
from .configs import AttentionConfig, attention_config, attention_tile
from .dropout import Dropout
from .jit import jit

UNSPECIALIZED = ["total_tokens", "num_sequences", "site", "threshold"]
"""Arguments whose values would each compile a kernel again."""
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def locate(
    cu_seqlens_ptr,  # (num_sequences + 1,) int32
    tiles_ptr,  # (slots, 2) int32, if USE_TILE_LIST
    slot,
    total_tokens,
    num_sequences,
    USE_TILE_LIST: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """(sequence, tile, first row, length, rest) of a slot; clamped, whatever cu_seqlens holds.

    There are SPLIT slots to each tile of the list, BLOCK rows each; `tile` counts in them. The first sequence begins at
    row 0, so that every row is a sequence's or past the last offset.

    rest: tokens that a sequence has beyond its only tile, because max_seqlen was too small; length counts none of them.
    """
    part, slot = slot % SPLIT, slot // SPLIT
    sequence, tile = slot, part
    if USE_TILE_LIST:
        sequence = tl.load(tiles_ptr + 2 * slot)
        tile = tl.maximum(tl.load(tiles_ptr + 2 * slot + 1), 0) * SPLIT + part
    used = sequence >= 0
    start = tl.load(cu_seqlens_ptr + sequence, mask=used, other=0)
    end = tl.load(cu_seqlens_ptr + sequence + 1, mask=used & (sequence < num_sequences), other=total_tokens)
    start = tl.where(sequence == 0, 0, tl.minimum(tl.maximum(start, 0), total_tokens))
    end = tl.minimum(tl.maximum(end, start), total_tokens)
    length = tl.where(used, end - start, 0)
    rest = length * 0
    if not USE_TILE_LIST:
        if sequence < num_sequences:
            rest = tl.maximum(length - BLOCK * SPLIT, 0)
    return sequence, tile, start, length - rest, rest


@triton.jit
def load_prefix(prefix_lens_ptr, sequence, length, num_sequences, HAS_PREFIX: tl.constexpr):
    """The sequence's prefix length; its length without HAS_PREFIX."""
    prefix = length
    if HAS_PREFIX:
        prefix = tl.load(prefix_lens_ptr + sequence, mask=sequence < num_sequences, other=0)
        prefix = tl.minimum(tl.maximum(prefix, 0), length)
    return prefix


@triton.jit
def sees(rows, columns, prefix, HAS_PREFIX: tl.constexpr, CAUSAL: tl.constexpr):
    """True where a row of a sequence sees a column of it; shapes broadcast against each other."""
    if CAUSAL:
        seen = columns <= rows
        if HAS_PREFIX:
            seen |= columns < prefix
    else:
        seen = (rows >= prefix) | (columns < prefix)
    return seen


@triton.jit
def load(ptr, offsets, mask):
    """A block, with 0 where it is masked."""
    return tl.load(ptr + offsets, mask=mask, other=0.0)


@triton.jit
def zero_rows_of_no_sequence(
    ptr,  # (total_tokens, PARTS, NUM_HEADS * HEAD_DIM)
    sequence,
    tile,
    start,
    length,
    rest,
    num_sequences,
    group,
    PARTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    USE_TILE_LIST: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
):
    """Store zeros in a group of heads: rows past the last offset, and a sequence's rest.

    GROUP_SIZE: columns of a group; BLOCK_GROUP: that or more, a power of two.
    """
    first, rows = start + BLOCK * SPLIT, tl.where(tile == 0, rest, 0)
    if sequence == num_sequences:
        first, rows = start + tile * BLOCK, length - tile * BLOCK
        if USE_TILE_LIST:
            rows = tl.minimum(rows, BLOCK)
        elif tile > 0:
            rows = length * 0
    _zero_rows(ptr, first, rows, group, PARTS, HIDDEN, GROUP_SIZE, BLOCK_GROUP)


@triton.jit
def _zero_rows(
    ptr,  # (total_tokens, PARTS, HIDDEN)
    first,
    rows,
    group,
    PARTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
):
    """Store zeros in `rows` rows from `first` on."""
    offs_n = group * GROUP_SIZE + tl.arange(0, BLOCK_GROUP)
    mask_n = (tl.arange(0, BLOCK_GROUP) < GROUP_SIZE) & (offs_n < HIDDEN)
    offs_m = tl.arange(0, 16)
    for row in range(0, rows, 16):
        base = ptr + (first + row).to(tl.int64) * (PARTS * HIDDEN)
        mask = (row + offs_m < rows)[:, None] & mask_n[None, :]
        for part in tl.static_range(PARTS):
            offsets = (offs_m * (PARTS * HIDDEN))[:, None] + (part * HIDDEN + offs_n)[None, :]
            tl.store(base + offsets, tl.zeros((16, BLOCK_GROUP), ptr.dtype.element_ty), mask=mask)


@jit(do_not_specialize=["num_sequences", "num_slots"])
def _attn_tiles_kernel(
    tiles_ptr,  # (slots, 2) int32: sequence, tile
    sequences_ptr,  # (num_sequences,) int64, longest first
    ends_ptr,  # (num_sequences,) int64: slots up to the sequence's last
    counts_ptr,  # (num_sequences,) int32: the sequence's slots
    num_slots,
    num_sequences,
    BLOCK: tl.constexpr,
):
    """The tiles of BLOCK sequences a program, written behind those of longer sequences."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < num_sequences
    sequence = tl.load(sequences_ptr + offs, mask=mask, other=0).to(tl.int32)
    count = tl.load(counts_ptr + offs, mask=mask, other=0).to(tl.int32)
    first = tl.load(ends_ptr + offs, mask=mask, other=0).to(tl.int32) - count
    for tile in range(0, tl.max(count, 0)):
        mask_slot = (tile < count) & (first + tile < num_slots)
        tl.store(tiles_ptr + 2 * (first + tile), sequence, mask=mask_slot)
        tl.store(tiles_ptr + 2 * (first + tile) + 1, sequence * 0 + tile, mask=mask_slot)


def build_tiles(cu_seqlens: Tensor, max_seqlen: int, total_tokens: int, block_m: int) -> Tensor:
    """The list of tiles, (slots, 2) int32; -1 in slots that are not used.

    Args:
        cu_seqlens: (num_sequences + 1,) int32 offsets.
        max_seqlen: tokens in the longest sequence.
        total_tokens: tokens in all.
        block_m: size of a tile, see `configs.attention_tile`.
    """
    num_sequences = cu_seqlens.shape[0] - 1
    tiles = fake_tiles(cu_seqlens, max_seqlen, total_tokens, block_m).fill_(-1)
    tile, listed = attention_tile(max_seqlen, total_tokens, num_sequences, block_m)
    if not listed:
        return tiles
    offsets = F.pad(F.pad(cu_seqlens[1:], (1, 0)), (0, 1), value=total_tokens)
    lengths = offsets.clamp_(0, total_tokens).diff().clamp_(min=0)
    counts, sequences = torch.sort(
        (lengths + (tile - 1)).div_(tile, rounding_mode="floor"), descending=True, stable=True
    )
    slots = tile_slots(tile, total_tokens, num_sequences)
    block = 128
    grid = (cdiv(num_sequences + 1, block),)
    _attn_tiles_kernel[grid](tiles, sequences, counts.cumsum(0), counts, slots, num_sequences + 1, block, num_warps=4)
    return tiles


def tile_slots(tile: int, total_tokens: int, num_sequences: int) -> int:
    """Most tiles that there can be; num_sequences + 1 counts the rows past the last offset."""
    return total_tokens // tile + num_sequences + 1


def fake_tiles(cu_seqlens: Tensor, max_seqlen: int, total_tokens: int, block_m: int) -> Tensor:
    # Of one size whatever the longest sequence and the tile: a compiled graph serves all.
    slots = tile_slots(16, total_tokens, cu_seqlens.shape[0] - 1)
    return torch.empty((slots, 2), dtype=torch.int32, device=cu_seqlens.device)


def attention_arguments(
    kernel: str, qkv: Tensor, cu_seqlens: Tensor, tiles: Tensor, max_seqlen: int, block_m: int,
    prefix_lens: Tensor | None, causal: bool, dropout: Dropout | None,
) -> tuple[dict[str, Any], AttentionConfig, int]:  # fmt: skip
    """(arguments, configuration, slots): the arguments that all kernels have, and the slots to launch this one over."""
    total_tokens, _, num_heads, head_dim = qkv.shape
    num_sequences = cu_seqlens.shape[0] - 1
    tile, listed = attention_tile(max_seqlen, total_tokens, num_sequences, block_m)
    head_block = max(16, next_power_of_2(head_dim))
    config = attention_config(kernel, qkv.device, tile, qkv.dtype, head_block, drops(dropout))
    owned = {"bwd_dkdv": config.block_n, "bwd_single_tile": tile}.get(kernel, config.block_m)
    programs_per_tile = tile // owned
    arguments = {
        "cu_seqlens_ptr": cu_seqlens,
        "prefix_lens_ptr": cu_seqlens if prefix_lens is None else prefix_lens,
        "tiles_ptr": tiles,
        "total_tokens": total_tokens,
        "num_sequences": num_sequences,
        "NUM_HEADS": num_heads,
        "HEAD_DIM": head_dim,
        "scale": 1 / math.sqrt(head_dim),
        "HAS_PREFIX": prefix_lens is not None,
        "CAUSAL": causal,
        "USE_TILE_LIST": listed,
        "PRECISION": precision(qkv.dtype, qkv.device),
        "TILE": tile,
        "BLOCK_D": head_block,
        **launch_options(config, qkv.device),
        **dropout_arguments(dropout, cu_seqlens),
    }
    slots = tile_slots(tile, total_tokens, num_sequences) if listed else num_sequences + 1
    return arguments, config, slots * programs_per_tile
