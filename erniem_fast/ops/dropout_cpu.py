"""Masks of `kernels/dropout.py` on a CPU, by NumPy: bit for bit the same, several times sooner.

A block of calls stays in the cache through all rounds, and words that are the same for a row or for a column are
computed once.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..kernels.dropout import KEY_ROUNDS, KEY_STEPS, MULTIPLIER_2, MULTIPLIERS, ROUNDS, keep_scale, threshold
from .rows_cpu import computes_plainly

CALLS_PER_BLOCK = 16 * 1024
_MASK32 = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
Words = np.ndarray


def takes(x: Tensor) -> bool:
    """True if NumPy can read what stands in a tensor, here and now."""
    return x.is_cpu and x.dtype in (torch.float32, torch.float64) and computes_plainly(x)


def draws(seed: Tensor) -> bool:
    """True if the seed can be read here and now."""
    return seed.is_cpu and computes_plainly(seed)


def drop_(x: Tensor, keep: Tensor) -> Tensor:
    """Zero elements of a tensor that `takes` accepts, in place, where `keep` is False. Those kept are not scaled."""
    np.multiply(x.numpy(), keep.numpy(), out=x.numpy())
    return x


def drop_rows(x: Tensor, seed: Tensor, site: int, p: float) -> Tensor:
    """Dropout of (total_tokens, columns) rows, which `takes` accepts."""
    kept = np.multiply(x.numpy(), keep_rows(seed, site, x.shape[0], x.shape[1], p).numpy())
    kept *= kept.dtype.type(keep_scale(p))
    return torch.from_numpy(kept)


def keep_rows(seed: Tensor, site: int, rows: int, columns: int, p: float) -> Tensor:
    """(rows, columns) bool: the mask of a batch's packed rows, from the first on; see `kernels.dropout.keep_rows`."""
    calls = -(-columns // 8)
    keep = np.empty((rows, calls * 8), np.bool_)
    column, none = np.arange(calls, dtype=np.uint64)[None], np.zeros(1, np.uint64)
    for begin, end in _blocks(rows, calls):
        row = np.arange(begin, end, dtype=np.uint64)[:, None]
        words = _philox_4([column, row, none, none + np.uint64(site)], _words(seed), ROUNDS)
        pairs = np.empty((end - begin, calls, 2), np.uint64)
        for place in range(2):  # little-endian: the first word's low half comes first
            np.bitwise_or(words[2 * place], words[2 * place + 1] << _HALF, out=pairs[..., place])
        np.greater_equal(pairs.view(np.uint16).reshape(end - begin, -1), threshold(p), out=keep[begin:end])
    return torch.from_numpy(keep)[:, :columns]


def keep_scores(seed: Tensor, site: int, starts: Tensor, num_heads: int, length: int, p: float) -> Tensor:
    """(sequences * num_heads, length, length) bool; see `kernels.dropout.keep_scores`."""
    none = np.zeros(1, np.uint64)
    key, tweak, *_ = _philox_4([*_words(seed), none + np.uint64(site), none], [none, none], KEY_ROUNDS)
    patches = max(1, -(-length // 16))
    places = np.arange(patches * 16, dtype=np.uint64).reshape(patches, 2, 8)[:, 0].reshape(-1)
    first = starts.numpy().astype(np.uint64)
    limit = np.uint64(threshold(p))
    heads = np.arange(num_heads, dtype=np.uint64)
    # (sequence and head, row patch, word, row in 8, column patch, half), eight columns in each element
    keep = np.empty((len(first) * num_heads, patches, 2, 8, patches, 2), np.uint64)
    for begin, end in _blocks(len(keep), len(places) ** 2):
        pair = np.arange(begin, end)
        rows = first[pair // num_heads][:, None, None] + places[:, None] & _MASK32
        columns = ((heads[pair % num_heads] << np.uint64(16))[:, None, None] + places & _MASK32) ^ tweak
        for place, word in enumerate(_philox_2(rows, columns, key)):
            halves = word & np.uint64(0xFFFF) >= limit, word >= limit << np.uint64(16)
            for half, kept in enumerate(halves):
                keep[begin:end, :, place, ..., half] = kept.view(np.uint64).reshape(-1, patches, 8, patches)
    mask = keep.view(np.bool_).reshape(len(keep), patches * 16, patches * 16)
    return torch.from_numpy(mask)[:, :length, :length]


def _blocks(items: int, calls: int) -> Iterator[tuple[int, int]]:
    """Bounds of blocks of items that have so many calls each."""
    step = max(1, CALLS_PER_BLOCK // max(1, calls))
    for begin in range(0, items, step):
        yield begin, min(begin + step, items)


def _words(seed: Tensor) -> list[Words]:
    """The low and the high 32 bits, (1,) each."""
    return [np.array([int(seed) >> shift & 0xFFFFFFFF], np.uint64) for shift in (0, 32)]


def _philox_2(c0: Words, c1: Words, key: Words) -> tuple[Words, Words]:
    for _ in range(ROUNDS):
        product = c0 * np.uint64(MULTIPLIER_2)
        c0, c1 = product >> _HALF ^ key ^ c1, product & _MASK32
        key = key + np.uint64(KEY_STEPS[0]) & _MASK32
    return c0, c1


def _philox_4(counter: list[Words], keys: list[Words], rounds: int) -> list[Words]:
    (c0, c1, c2, c3), (k0, k1) = counter, keys
    for _ in range(rounds):
        even, odd = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        # Words that are the same for a row or for a column meet the key first.
        c0, c1, c2, c3 = odd >> _HALF ^ (c1 ^ k0), odd & _MASK32, even >> _HALF ^ (c3 ^ k1), even & _MASK32
        k0, k1 = k0 + np.uint64(KEY_STEPS[0]) & _MASK32, k1 + np.uint64(KEY_STEPS[1]) & _MASK32
    return [c0, c1, c2, c3]
