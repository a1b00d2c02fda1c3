"""The gradient of an embedding table: rows added up by id, deterministically.

    table[i] = sum of rows[t] over the t with ids[t] = i

rows: (total_tokens, hidden_size); ids: (total_tokens,) integers; table: (num_ids, hidden_size). The ids are sorted,
stably, and rows added in that order in float32, CHUNK of them a program. An id whose rows lie in several programs'
chunks is left in pieces, which a second kernel adds up, again in order. No atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import narrow

CHUNK = 32
_NO_ID = tl.constexpr(-1)


def segment_sum_oracle(rows: Tensor, ids: Tensor, num_ids: int, padding_idx: int) -> Tensor:
    """The same by torch's index_add, in the dtype of `rows`."""
    counted = ids != padding_idx
    return rows.new_zeros(num_ids, rows.shape[1]).index_add(0, ids[counted], rows[counted])


@triton.jit(do_not_specialize=["total_rows", "padding_idx"])
def _sum_chunks(
    rows_ptr, ids_ptr, order_ptr, table_ptr, pieces_ptr, total_rows, padding_idx,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """pieces[chunk, 0]: of an id that runs on from the chunk before, or from the chunk's first row into the next;
    pieces[chunk, 1]: of one that begins inside and runs into the next."""
    begin = tl.program_id(0) * CHUNK
    end = tl.minimum(begin + CHUNK, total_rows)
    columns = tl.arange(0, BLOCK)
    before = tl.load(ids_ptr + begin - 1, mask=begin > 0, other=_NO_ID)
    runs_on = tl.load(ids_ptr + begin) == before
    piece = begin * 0
    acc = tl.zeros((BLOCK,), tl.float32)
    pieces = pieces_ptr + tl.program_id(0).to(tl.int64) * (2 * SIZE)
    for place in range(begin, end):
        row, id = tl.load(order_ptr + place), tl.load(ids_ptr + place)
        after = tl.load(ids_ptr + place + 1, mask=place + 1 < total_rows, other=_NO_ID)
        acc += tl.load(rows_ptr + row * SIZE + columns, mask=columns < SIZE, other=0.0).to(tl.float32)
        last = after != id
        if last & (runs_on == 0) & (id != padding_idx):
            tl.store(table_ptr + id * SIZE + columns, narrow(acc, table_ptr.dtype.element_ty), mask=columns < SIZE)
        if (last & runs_on) | ((last == 0) & (place + 1 == end)):
            tl.store(pieces + piece * SIZE + columns, acc, mask=columns < SIZE)
        acc = tl.where(last, 0.0, acc)
        runs_on = runs_on & (last == 0)
        piece = tl.where(last, 1, piece)


@triton.jit(do_not_specialize=["total_rows", "padding_idx"])
def _sum_pieces(
    ids_ptr, table_ptr, pieces_ptr, total_rows, padding_idx, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """The id, if any, that begins in this chunk and runs into the next."""
    chunk = tl.program_id(0)
    begin, end = chunk * CHUNK, (chunk + 1) * CHUNK
    if end >= total_rows:
        return
    id = tl.load(ids_ptr + end - 1)
    first = tl.load(ids_ptr + begin)
    before = tl.load(ids_ptr + begin - 1, mask=begin > 0, other=_NO_ID)
    if (tl.load(ids_ptr + end) != id) | (before == id) | (id == padding_idx):
        return
    columns = tl.arange(0, BLOCK)
    piece = tl.where(first == id, 0, 1)
    acc = tl.load(pieces_ptr + (2 * chunk.to(tl.int64) + piece) * SIZE + columns, mask=columns < SIZE, other=0.0)
    place = end
    while tl.load(ids_ptr + place, mask=place < total_rows, other=_NO_ID) == id:
        acc += tl.load(
            pieces_ptr + tl.cast(place // CHUNK, tl.int64) * (2 * SIZE) + columns, mask=columns < SIZE, other=0.0
        )
        place += CHUNK
    tl.store(table_ptr + id * SIZE + columns, narrow(acc, table_ptr.dtype.element_ty), mask=columns < SIZE)


def segment_sum(rows: Tensor, ids: Tensor, num_ids: int, padding_idx: int, dtype: torch.dtype) -> Tensor:
    """The launcher.

    Args:
        rows: (total_tokens, hidden_size), contiguous.
        ids: (total_tokens,) integers, clamped to [0, num_ids).
        num_ids: rows of the table.
        padding_idx: an id whose sum is left at 0; -1: none.
        dtype: of the table.

    Returns:
        (num_ids, hidden_size).
    """
    total, size = rows.shape
    table = rows.new_zeros((num_ids, size), dtype=dtype)
    if not rows.numel():
        return table
    ids, order = torch.sort(ids.long().clamp(0, num_ids - 1), stable=True)
    chunks = triton.cdiv(total, CHUNK)
    pieces = rows.new_empty((chunks, 2, size), dtype=torch.float32)
    sizes = {"SIZE": size, "BLOCK": triton.next_power_of_2(size), "CHUNK": CHUNK, "num_warps": 4}
    _sum_chunks[(chunks,)](rows, ids, order, table, pieces, total, padding_idx, **sizes)
    _sum_pieces[(chunks,)](ids, table, pieces, total, padding_idx, **sizes)
    return table
