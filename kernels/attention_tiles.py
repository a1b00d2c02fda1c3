"""Where in a packed batch an attention program works: the list of tiles, and what every kernel is launched with.

A tile is a run of rows of one sequence. Where every sequence fits one tile, a program looks its sequence up by its own
number; else it reads (sequence, tile) from a list that is made once a batch on the device, longest sequences first. The
number num_sequences stands for the rows past the last offset, which belong to no sequence; -1 for a slot that is not
used.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .common import dropout_arguments, precision
from .configs import AttentionConfig, attention_config, attention_tile

UNSPECIALIZED = ["total_tokens", "num_sequences", "site", "threshold"]
"""Or each new value would compile again."""
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def locate(
    cu_seqlens_ptr, tiles_ptr, slot, total_tokens, num_sequences, LISTED: tl.constexpr, TILE: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """(sequence, its tile, its first row, its length, rest) of a slot; clamped, whatever cu_seqlens holds.

    There are SPLIT slots to each tile of the list, TILE rows each.

    The first sequence begins at row 0, so that every row is a sequence's or past the last offset.

    rest: tokens that a sequence has beyond its only tile, because max_seqlen was too small; length counts none of them.
    """
    part, slot = slot % SPLIT, slot // SPLIT
    sequence, tile = slot, part
    if LISTED:
        sequence = tl.load(tiles_ptr + 2 * slot)
        tile = tl.maximum(tl.load(tiles_ptr + 2 * slot + 1), 0) * SPLIT + part
    used = sequence >= 0
    start = tl.load(cu_seqlens_ptr + sequence, mask=used, other=0)
    end = tl.load(cu_seqlens_ptr + sequence + 1, mask=used & (sequence < num_sequences), other=total_tokens)
    start = tl.where(sequence == 0, 0, tl.minimum(tl.maximum(start, 0), total_tokens))
    end = tl.minimum(tl.maximum(end, start), total_tokens)
    length = tl.where(used, end - start, 0)
    rest = length * 0
    if not LISTED:
        if sequence < num_sequences:
            rest = tl.maximum(length - TILE * SPLIT, 0)
    return sequence, tile, start, length - rest, rest


@triton.jit
def prefix_of(prefix_lens_ptr, sequence, length, num_sequences, PREFIX: tl.constexpr):
    """The prefix length, length for none."""
    prefix = length
    if PREFIX:
        prefix = tl.load(prefix_lens_ptr + sequence, mask=sequence < num_sequences, other=0)
        prefix = tl.minimum(tl.maximum(prefix, 0), length)
    return prefix


@triton.jit
def load(ptr, offsets, mask):
    return tl.load(ptr + offsets, mask=mask, other=0.0)


@triton.jit
def zero_rows_of_no_sequence(
    ptr, sequence, tile, start, length, rest, num_sequences, group, parts: tl.constexpr, width: tl.constexpr,
    share: tl.constexpr, BLOCK: tl.constexpr, LISTED: tl.constexpr, TILE: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Zeros in the columns of a group of heads, `share` wide: rows past the last offset, and a sequence's rest.

    BLOCK: share or more, a power of two.
    """
    if sequence == num_sequences:
        rows = length - tile * TILE
        if LISTED:
            rows = tl.minimum(rows, TILE)
        elif tile > 0:
            rows = length * 0
        _zero_rows(ptr, start + tile * TILE, rows, group, parts, width, share, BLOCK)
    if (rest > 0) & (tile == 0):
        _zero_rows(ptr, start + TILE * SPLIT, rest, group, parts, width, share, BLOCK)


@triton.jit
def _zero_rows(
    ptr, first, rows, group, parts: tl.constexpr, width: tl.constexpr, share: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    columns = group * share + tl.arange(0, BLOCK)
    mine = (tl.arange(0, BLOCK) < share) & (columns < width)
    places = tl.arange(0, 16)
    for row in range(0, rows, 16):
        base = ptr + (first + row).to(tl.int64) * (parts * width)
        mask = (row + places < rows)[:, None] & mine[None, :]
        for part in tl.static_range(parts):
            offsets = (places * (parts * width))[:, None] + (part * width + columns)[None, :]
            tl.store(base + offsets, tl.zeros((16, BLOCK), ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_sequences", "slots"])
def _scatter_tiles(tiles_ptr, sequences_ptr, ends_ptr, counts_ptr, slots, num_sequences, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = place < num_sequences
    sequence = tl.load(sequences_ptr + place, mask=there, other=0).to(tl.int32)
    count = tl.load(counts_ptr + place, mask=there, other=0).to(tl.int32)
    first = tl.load(ends_ptr + place, mask=there, other=0).to(tl.int32) - count
    for tile in range(0, tl.max(count, 0)):
        mask = (tile < count) & (first + tile < slots)
        tl.store(tiles_ptr + 2 * (first + tile), sequence, mask=mask)
        tl.store(tiles_ptr + 2 * (first + tile) + 1, sequence * 0 + tile, mask=mask)


def build_tiles(cu_seqlens: Tensor, max_seqlen: int, total_tokens: int, batch_invariant: bool) -> Tensor:
    num_sequences = cu_seqlens.shape[0] - 1
    tiles = fake_tiles(cu_seqlens, max_seqlen, total_tokens, batch_invariant).fill_(-1)
    tile, listed = attention_tile(max_seqlen, total_tokens, num_sequences, batch_invariant)
    if not listed:
        return tiles
    offsets = F.pad(F.pad(cu_seqlens[1:], (1, 0)), (0, 1), value=total_tokens)
    lengths = offsets.clamp_(0, total_tokens).diff().clamp_(min=0)
    counts, sequences = torch.sort(
        (lengths + (tile - 1)).div_(tile, rounding_mode="floor"), descending=True, stable=True
    )
    slots = tile_slots(tile, total_tokens, num_sequences)
    block = 128
    grid = (triton.cdiv(num_sequences + 1, block),)
    _scatter_tiles[grid](tiles, sequences, counts.cumsum(0), counts, slots, num_sequences + 1, block, num_warps=4)
    return tiles


def tile_slots(tile: int, total_tokens: int, num_sequences: int) -> int:
    """Most tiles that there can be; num_sequences + 1 counts the rows past the last offset."""
    return total_tokens // tile + num_sequences + 1


def fake_tiles(cu_seqlens: Tensor, max_seqlen: int, total_tokens: int, batch_invariant: bool) -> Tensor:
    # Of one size whatever the longest sequence: a compiled graph serves all. Of another size in the batch-invariant
    # mode, so that neither takes the other's.
    slots = total_tokens // 16 + cu_seqlens.shape[0] + batch_invariant
    return torch.empty((slots, 2), dtype=torch.int32, device=cu_seqlens.device)


def attention_arguments(
    kernel: str, qkv: Tensor, cu_seqlens: Tensor, tiles: Tensor, max_seqlen: int, prefix_lens: Tensor | None,
    dropout_p: float, seed: Tensor | None, site: int, batch_invariant: bool,
) -> tuple[dict[str, Any], AttentionConfig, int, bool]:  # fmt: skip
    """What all kernels of the attention are launched with."""
    total_tokens, _, num_heads, head_dim = qkv.shape
    num_sequences = cu_seqlens.shape[0] - 1
    tile, listed = attention_tile(max_seqlen, total_tokens, num_sequences, batch_invariant)
    head_block = max(16, triton.next_power_of_2(head_dim))
    config = attention_config(kernel, qkv.device, tile, qkv.dtype, head_block, dropout_p > 0)
    arguments = {
        "cu_seqlens_ptr": cu_seqlens,
        "prefix_lens_ptr": cu_seqlens if prefix_lens is None else prefix_lens,
        "tiles_ptr": tiles,
        "total_tokens": total_tokens,
        "num_sequences": num_sequences,
        "scale": 1 / math.sqrt(head_dim),
        "NUM_HEADS": num_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_D": head_block,
        "PREFIX": prefix_lens is not None,
        "PRECISION": precision(qkv.dtype, qkv.device),
        "TILE": tile // config.split,
        "SPLIT": config.split,
        "num_warps": config.warps,
        "num_stages": config.stages,
        **dropout_arguments(dropout_p, seed, site, cu_seqlens),
    }
    slots = tile_slots(tile, total_tokens, num_sequences) if listed else num_sequences + 1
    return arguments, config, slots * config.split, listed
