"""Philox in numpy, from the published algorithm, and the mappings that kernels/dropout.py documents."""

import numpy as np
import torch
from torch import Tensor

WORD = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def philox(counter: list[np.ndarray], seed: int, rounds: int = 7) -> np.ndarray:
    """Philox4x32: (..., 4) words of counters that broadcast against each other; seed: the key, low word first."""
    c = list(np.broadcast_arrays(*[np.asarray(x, dtype=np.uint64) for x in counter]))
    keys = [np.uint64(seed & 0xFFFFFFFF), np.uint64((seed >> 32) & 0xFFFFFFFF)]
    for _ in range(rounds):
        one, two = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(two >> HALF) ^ c[1] ^ keys[0], two & WORD, (one >> HALF) ^ c[3] ^ keys[1], one & WORD]
        keys = [(keys[0] + np.uint64(0x9E3779B9)) & WORD, (keys[1] + np.uint64(0xBB67AE85)) & WORD]
    return np.stack(c, -1)


def philox_2(counter: list[np.ndarray], key: int, rounds: int = 7) -> np.ndarray:
    """Philox2x32: (..., 2) words of counters that broadcast against each other."""
    left, right = np.broadcast_arrays(*[np.asarray(x, dtype=np.uint64) for x in counter])
    for index in range(rounds):
        product = np.uint64(0xD256D193) * left
        left, right = (product >> HALF) ^ np.uint64((key + index * 0x9E3779B9) & 0xFFFFFFFF) ^ right, product & WORD
    return np.stack((left, right), -1)


def kept(words: np.ndarray, word: np.ndarray, high: np.ndarray, p: float) -> Tensor:
    chosen = np.take_along_axis(words, np.broadcast_to(word, words.shape[:-1])[..., None].astype(np.int64), -1)[..., 0]
    half = np.where(high, chosen >> np.uint64(16), chosen & np.uint64(0xFFFF))
    return torch.from_numpy(half >= min(round(p * 65536), 65535))


def keep_rows(seed: Tensor, site: int, first_row: int, rows: int, columns: int, p: float) -> Tensor:
    """(rows, columns) bool of packed rows first_row and on."""
    row, column = np.arange(first_row, first_row + rows)[:, None], np.arange(columns)[None]
    words = philox([column // 8, row, 0 * row, 0 * row + site], int(seed))
    return kept(words, column % 8 // 2, column % 2 == 1, p)


def keep_scores(seed: Tensor, site: int, start: int, head: int, rows: int, columns: int, p: float) -> Tensor:
    """(rows, columns) bool of the scores of one head of the sequence that begins at a packed row."""
    counter = [np.array(word) for word in (int(seed) % 2**32, int(seed) >> 32, site, 0)]
    key, tweak, _, _ = philox(counter, 0, rounds=10).tolist()
    row, column = np.arange(rows)[:, None], np.arange(columns)[None]
    counter = [start + row // 16 * 16 + row % 8, (head * 65536 + column // 16 * 16 + column % 8) ^ tweak]
    return kept(philox_2(counter, key), row // 8 % 2, column // 8 % 2 == 1, p)


def scale(p: float) -> float:
    return 1 / (1 - min(round(p * 65536), 65535) / 65536)
