"""Philox4x32-7 in numpy, from the published algorithm, and the two mappings that kernels/dropout.py documents."""

import numpy as np
import torch
from torch import Tensor

WORD = np.uint64(0xFFFFFFFF)


def philox(counter: list[np.ndarray], seed: int) -> np.ndarray:
    """(..., 4) words of counters that broadcast against each other."""
    c = list(np.broadcast_arrays(*[np.asarray(x, dtype=np.uint64) for x in counter]))
    keys = [np.uint64(seed & 0xFFFFFFFF), np.uint64((seed >> 32) & 0xFFFFFFFF)]
    for _ in range(7):
        one, two = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            (two >> np.uint64(32)) ^ c[1] ^ keys[0], two & WORD,
            (one >> np.uint64(32)) ^ c[3] ^ keys[1], one & WORD,
        ]  # fmt: skip
        keys = [(keys[0] + np.uint64(0x9E3779B9)) & WORD, (keys[1] + np.uint64(0xBB67AE85)) & WORD]
    return np.stack(c, -1)


def kept(counter: list[np.ndarray], word: np.ndarray, columns: np.ndarray, seed: int, p: float) -> Tensor:
    words = philox(counter, seed)
    chosen = np.take_along_axis(words, np.broadcast_to(word, words.shape[:-1])[..., None].astype(np.int64), -1)[..., 0]
    half = np.where(columns % 2 == 1, chosen >> np.uint64(16), chosen & np.uint64(0xFFFF))
    return torch.from_numpy(half >= min(round(p * 65536), 65535))


def keep_rows(seed: Tensor, site: int, first_row: int, rows: int, columns: int, p: float) -> Tensor:
    """(rows, columns) bool of packed rows first_row and on."""
    row, column = np.arange(first_row, first_row + rows)[:, None], np.arange(columns)[None]
    return kept([column // 8, row, 0 * row, 0 * row + site], column % 8 // 2, column, int(seed), p)


def keep_scores(seed: Tensor, site: int, start: int, head: int, rows: int, columns: int, p: float) -> Tensor:
    """(rows, columns) bool of the scores of one head of the sequence that begins at a packed row."""
    row, column = np.arange(rows)[:, None], np.arange(columns)[None]
    counter = [
        column // 16 * 4 + column % 8 // 2, start + row // 16 * 16 + row % 8, 0 * row + head, 0 * row + site,
    ]  # fmt: skip
    return kept(counter, 2 * (row // 8 % 2) + column // 8 % 2, column, int(seed), p)


def scale(p: float) -> float:
    return 1 / (1 - min(round(p * 65536), 65535) / 65536)
