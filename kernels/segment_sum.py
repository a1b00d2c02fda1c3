"""The gradient of an embedding table: rows added up by id, deterministically.

    table[i] = sum of rows[t] over the t with ids[t] = i

rows: (total_tokens, hidden_size), M x N in the kernels; ids: (total_tokens,) integers; table: (num_ids, hidden_size).
The ids are sorted, stably, and rows added in that order in float32, CHUNK of them a program. The sum of an id whose
rows lie in several chunks is left in pieces, which a second kernel adds up, again in order. No atomics.
"""

import torch
import triton.language as tl
from torch import Tensor

from .common import cdiv, narrow, next_power_of_2
from .jit import jit

CHUNK = 32
"""Sorted rows a program."""
_NO_ID = tl.constexpr(-1)


def segment_sum_oracle(rows: Tensor, ids: Tensor, num_ids: int, padding_idx: int) -> Tensor:
    """The operation by torch's index_add, in the dtype of `rows`."""
    counted = ids != padding_idx
    return rows.new_zeros(num_ids, rows.shape[1]).index_add(0, ids[counted], rows[counted])


@jit(do_not_specialize=["M", "padding_idx"])
def _segment_sum_chunks_kernel(
    rows_ptr,  # (M, N)
    ids_ptr,  # (M,) int64, sorted
    order_ptr,  # (M,) int64: the row of each sorted id
    table_ptr,  # (num_ids, N)
    pieces_ptr,  # (chunks, 2, N) float32
    M,
    N: tl.constexpr,
    padding_idx,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A chunk of CHUNK sorted rows a program.

    pieces[chunk, 0]: of an id that runs on from the chunk before, or from the chunk's first row into the next.
    pieces[chunk, 1]: of an id that begins inside the chunk and runs into the next.
    """
    begin = tl.program_id(0) * CHUNK
    end = tl.minimum(begin + CHUNK, M)
    offs_n = tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    before = tl.load(ids_ptr + begin - 1, mask=begin > 0, other=_NO_ID)
    runs_on = tl.load(ids_ptr + begin) == before
    piece = begin * 0
    acc = tl.zeros((BLOCK_N,), tl.float32)
    pieces = pieces_ptr + tl.program_id(0).to(tl.int64) * (2 * N)
    for index in range(begin, end):
        row, id = tl.load(order_ptr + index), tl.load(ids_ptr + index)
        after = tl.load(ids_ptr + index + 1, mask=index + 1 < M, other=_NO_ID)
        acc += tl.load(rows_ptr + row * N + offs_n, mask=mask_n, other=0.0).to(tl.float32)
        last = after != id
        if last & (runs_on == 0) & (id != padding_idx):
            tl.store(table_ptr + id * N + offs_n, narrow(acc, table_ptr.dtype.element_ty), mask=mask_n)
        if (last & runs_on) | ((last == 0) & (index + 1 == end)):
            tl.store(pieces + piece * N + offs_n, acc, mask=mask_n)
        acc = tl.where(last, 0.0, acc)
        runs_on = runs_on & (last == 0)
        piece = tl.where(last, 1, piece)


@jit(do_not_specialize=["M", "padding_idx"])
def _segment_sum_merge_kernel(
    ids_ptr,  # (M,) int64, sorted
    table_ptr,  # (num_ids, N)
    pieces_ptr,  # (chunks, 2, N) float32
    M,
    N: tl.constexpr,
    padding_idx,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The id, if any, that begins in this program's chunk and runs into the next: its pieces added up."""
    chunk = tl.program_id(0)
    begin, end = chunk * CHUNK, (chunk + 1) * CHUNK
    if end >= M:
        return
    id = tl.load(ids_ptr + end - 1)
    first = tl.load(ids_ptr + begin)
    before = tl.load(ids_ptr + begin - 1, mask=begin > 0, other=_NO_ID)
    if (tl.load(ids_ptr + end) != id) | (before == id) | (id == padding_idx):
        return
    offs_n = tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    piece = tl.where(first == id, 0, 1)
    acc = tl.load(pieces_ptr + (2 * chunk.to(tl.int64) + piece) * N + offs_n, mask=mask_n, other=0.0)
    index = end
    while tl.load(ids_ptr + index, mask=index < M, other=_NO_ID) == id:
        acc += tl.load(pieces_ptr + tl.cast(index // CHUNK, tl.int64) * (2 * N) + offs_n, mask=mask_n, other=0.0)
        index += CHUNK
    tl.store(table_ptr + id * N + offs_n, narrow(acc, table_ptr.dtype.element_ty), mask=mask_n)


def segment_sum(rows: Tensor, ids: Tensor, num_ids: int, padding_idx: int, dtype: torch.dtype) -> Tensor:
    """Launch the kernels.

    Args:
        rows: (total_tokens, hidden_size), contiguous.
        ids: (total_tokens,) integers, clamped to [0, num_ids).
        num_ids: rows of the table.
        padding_idx: an id whose sum is left at 0; -1: none.
        dtype: dtype of the table.

    Returns:
        (num_ids, hidden_size).
    """
    m, n = rows.shape
    table = rows.new_zeros((num_ids, n), dtype=dtype)
    if not rows.numel():
        return table
    ids, order = torch.sort(ids.long().clamp(0, num_ids - 1), stable=True)
    chunks = cdiv(m, CHUNK)
    pieces = rows.new_empty((chunks, 2, n), dtype=torch.float32)
    sizes = {"M": m, "N": n, "padding_idx": padding_idx, "CHUNK": CHUNK, "BLOCK_N": next_power_of_2(n)}
    _segment_sum_chunks_kernel[(chunks,)](rows, ids, order, table, pieces, **sizes, num_warps=4)
    _segment_sum_merge_kernel[(chunks,)](ids, table, pieces, **sizes, num_warps=4)
    return table
