"""Tiles of a packed batch: the list of them, and the device code and arguments that every attention kernel shares.

A tile is a run of rows of one sequence. Where every sequence fits one tile, a program finds its sequence by its own
number; else it reads (sequence, tile) from a list that is made once a batch on the device, longest sequences first. The
rows past the last offset, which belong to no sequence, have the sequence number num_sequences; unused slots of the list
have -1.
"""

import math
from typing import Any

import torch
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
SUM_FROM = 2048
"""Number of sequences above which a kernel of its own counts their tiles first."""


@triton.jit
def extent(
    cu_seqlens_ptr,  # (num_sequences + 1,) int32
    sequence,
    total_tokens,
    num_sequences,
):
    """(first row, length) of sequences, within the batch whatever cu_seqlens holds; number num_sequences is the tail.

    The first sequence begins at row 0, so that every row is a sequence's or past the last offset.
    """
    start = tl.load(cu_seqlens_ptr + sequence, mask=sequence <= num_sequences, other=0)
    end = tl.load(cu_seqlens_ptr + sequence + 1, mask=sequence < num_sequences, other=total_tokens)
    start = tl.where(sequence == 0, 0, tl.minimum(tl.maximum(start, 0), total_tokens))
    return start, tl.minimum(tl.maximum(end, start), total_tokens) - start


@triton.jit
def locate(
    cu_seqlens_ptr,  # (num_sequences + 1,) int32
    tiles_ptr,  # (slots, 4) int32, if USE_TILE_LIST
    slot,
    total_tokens,
    num_sequences,
    USE_TILE_LIST: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """(sequence, tile, first row, length, rest) of a slot; the length of an unused slot is 0.

    There are SPLIT slots to each tile of the list, BLOCK rows each; `tile` counts in them.

    rest: tokens that a sequence has beyond its only tile, because max_seqlen was too small; length counts none of them.
    """
    part, slot = slot % SPLIT, slot // SPLIT
    if USE_TILE_LIST:
        entry = tiles_ptr + slot.to(tl.int64) * 4
        sequence, tile = tl.load(entry), tl.load(entry + 1) * SPLIT + part
        start, length = tl.load(entry + 2), tl.load(entry + 3)
        rest = length * 0
    else:
        sequence, tile = slot, part
        start, length = extent(cu_seqlens_ptr, sequence, total_tokens, num_sequences)
        rest = tl.where(sequence < num_sequences, tl.maximum(length - BLOCK * SPLIT, 0), 0)
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


@triton.jit
def _tiles_of_block(
    cu_seqlens_ptr,  # (num_sequences + 1,) int32
    block,
    total_tokens,
    num_sequences,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sequences of a block, with (BLOCK, CLASSES) counts of their tiles, each in the column of the sequence's class.

    (sequence, first row, length, tiles, tiles by class). Sequences of more tiles have a higher class: one for each
    number up to 8, then four from each power of two to the next.
    """
    sequence = block * BLOCK + tl.arange(0, BLOCK)
    start, length = extent(cu_seqlens_ptr, sequence, total_tokens, num_sequences)
    # Sums of a block stay below 2**31; no sequence has 2**20 tiles.
    count = tl.where(sequence < num_sequences, tl.minimum((length + (TILE - 1)) // TILE, 1 << 20), 0)
    # Exponent and two bits of a float's mantissa.
    class_ = (tl.maximum(count, 1).to(tl.float32).to(tl.int32, bitcast=True) >> 21) - (127 << 2)
    member = tl.minimum(class_, CLASSES - 1)[:, None] == tl.arange(0, CLASSES)[None, :]
    return sequence, start, length, count, tl.where(member, count[:, None], 0)


@jit(do_not_specialize=["total_tokens", "num_sequences"])
def _attn_tile_sums_kernel(
    sums_ptr,  # (blocks, CLASSES) int32
    cu_seqlens_ptr,  # (num_sequences + 1,) int32
    total_tokens,
    num_sequences,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Tiles of BLOCK sequences by class."""
    block = tl.program_id(0)
    _, _, _, _, tiles = _tiles_of_block(cu_seqlens_ptr, block, total_tokens, num_sequences, TILE, CLASSES, BLOCK)
    tl.store(sums_ptr + block * CLASSES + tl.arange(0, CLASSES), tl.sum(tiles, 0))


@jit(do_not_specialize=["slots", "total_tokens", "num_sequences"])
def _attn_tiles_kernel(
    tiles_ptr,  # (slots, 4) int32: sequence, tile, first row and length of the sequence
    sums_ptr,  # (blocks, CLASSES) int32, if SUMMED
    cu_seqlens_ptr,  # (num_sequences + 1,) int32
    slots,
    total_tokens,
    num_sequences,
    SUMMED: tl.constexpr,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The tiles of BLOCK sequences a program, behind those of higher classes and of earlier sequences of their own."""
    program, classes = tl.program_id(0), tl.arange(0, CLASSES)
    blocks = (num_sequences + (BLOCK - 1)) // BLOCK
    # int64: wrong offsets may overlap, and add up to any number.
    total, before = tl.zeros((CLASSES,), tl.int64), tl.zeros((CLASSES,), tl.int64)
    if SUMMED:
        for first_block in range(0, blocks, 128):
            block = first_block + tl.arange(0, 128)
            offsets = block[:, None] * CLASSES + classes[None, :]
            sums = tl.load(sums_ptr + offsets, mask=(block < blocks)[:, None], other=0).to(tl.int64)
            total += tl.sum(sums, 0)
            before += tl.sum(tl.where((block < program)[:, None], sums, 0), 0)
    else:
        for block in range(0, blocks):
            _, _, _, _, tiles = _tiles_of_block(
                cu_seqlens_ptr, block, total_tokens, num_sequences, TILE, CLASSES, BLOCK
            )  # fmt: skip
            sums = tl.sum(tiles, 0).to(tl.int64)
            total += sums
            before += tl.where(block < program, sums, 0)
    higher = tl.sum(tl.where(classes[None, :] > classes[:, None], total[None, :], 0), 1)
    sequence, start, length, count, tiles = _tiles_of_block(
        cu_seqlens_ptr, program, total_tokens, num_sequences, TILE, CLASSES, BLOCK
    )  # fmt: skip
    place = tl.minimum(higher + before, slots).to(tl.int32)[None, :] + tl.cumsum(tiles, 0) - tiles
    first = tl.sum(tl.where(tiles > 0, place, 0), 1)
    for tile in range(0, tl.max(count, 0)):
        _store_entries(tiles_ptr, first + tile, sequence, tile, start, length, (tile < count) & (first + tile < slots))

    used = tl.minimum(tl.sum(total, 0), slots).to(tl.int32)
    start_rest, length_rest = extent(cu_seqlens_ptr, num_sequences, total_tokens, num_sequences)
    for behind in range(program * BLOCK, slots - used, tl.num_programs(0) * BLOCK):
        place_behind = behind + tl.arange(0, BLOCK)
        listed = place_behind < (length_rest + (TILE - 1)) // TILE
        _store_entries(
            tiles_ptr, used + place_behind, tl.where(listed, num_sequences, -1), tl.where(listed, place_behind, 0),
            tl.where(listed, start_rest, 0), tl.where(listed, length_rest, 0), place_behind < slots - used,
        )  # fmt: skip


@triton.jit
def _store_entries(tiles_ptr, slot, sequence, tile, start, length, mask):
    entry = tiles_ptr + slot.to(tl.int64) * 4
    tl.store(entry, sequence, mask=mask)
    tl.store(entry + 1, sequence * 0 + tile, mask=mask)
    tl.store(entry + 2, start, mask=mask)
    tl.store(entry + 3, length, mask=mask)


def build_tiles(cu_seqlens: Tensor, max_seqlen: int, total_tokens: int, block_m: int) -> Tensor:
    """The list of tiles, (slots, 4) int32: sequence, tile, first row and length of the sequence; -1 in unused slots.

    Args:
        cu_seqlens: (num_sequences + 1,) int32 offsets.
        max_seqlen: tokens in the longest sequence.
        total_tokens: tokens in all.
        block_m: size of a tile, see `configs.attention_tile`.
    """
    num_sequences = cu_seqlens.shape[0] - 1
    tiles = fake_tiles(cu_seqlens, max_seqlen, total_tokens, block_m)
    tile, listed = attention_tile(max_seqlen, total_tokens, num_sequences, block_m)
    if not listed:
        return tiles.fill_(-1)
    summed = num_sequences > SUM_FROM
    block = 256
    grid = (cdiv(num_sequences, block),)
    blocks: dict[str, Any] = {"TILE": tile, "CLASSES": 32, "BLOCK": block, "num_warps": 8}
    sums = tiles
    if summed:
        sums = tiles.new_empty(grid[0], blocks["CLASSES"])
        _attn_tile_sums_kernel[grid](sums, cu_seqlens, total_tokens, num_sequences, **blocks)
    _attn_tiles_kernel[grid](
        tiles, sums, cu_seqlens, tiles.shape[0], total_tokens, num_sequences, SUMMED=summed, **blocks
    )
    return tiles


def tile_slots(tile: int, total_tokens: int, num_sequences: int) -> int:
    """Most tiles that there can be; num_sequences + 1 counts the rows past the last offset."""
    return total_tokens // tile + num_sequences + 1


def fake_tiles(cu_seqlens: Tensor, max_seqlen: int, total_tokens: int, block_m: int) -> Tensor:
    # Of one size whatever the longest sequence and the tile: a compiled graph serves all.
    slots = tile_slots(16, total_tokens, cu_seqlens.shape[0] - 1)
    return torch.empty((slots, 4), dtype=torch.int32, device=cu_seqlens.device)


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
    owned = config.block_n if kernel == "bwd_dkdv" else config.block_m
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
        # Masks of the columns past head_dim take registers: under a cap they would spill.
        **launch_options(config, qkv.device, capped=head_dim == head_block),
        **dropout_arguments(dropout, cu_seqlens),
    }
    slots = tile_slots(tile, total_tokens, num_sequences) if listed else num_sequences + 1
    return arguments, config, slots * (tile // owned)
