"""What the GPU suite runs on: uniform lengths and two mixes, from 4 k to 512 k tokens."""

import json
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from .shapes import BASE, LENGTHS_FILE, PAIR_LENGTHS_FILE, TINY, Shape, Sizes

BASE_MODEL = Sizes(num_layers=12)
LARGE_MODEL = Sizes(hidden_size=1024, num_heads=16, intermediate_size=4096, num_layers=24)
TINY_MODEL = Sizes(hidden_size=32, num_heads=4, intermediate_size=64, vocab_size=100, num_layers=2)
PARTS = ("kernels", "models")
"""Of the suite, each run by itself."""
DROPOUT_P = 0.1
K = 1024
UNIFORM = (512, 128, 64, 32, 16, 256)
TEXTS_A_BATCH = 64
NUM_BATCHES = 8
MIXES = {"pairs": PAIR_LENGTHS_FILE, "xquad": LENGTHS_FILE}
"""Histograms by name; `bench/data/README.md` says what they are."""


def lengths_of(histogram: str) -> list[int]:
    """All lengths of a mix in the order of arrival."""
    path: Path = MIXES[histogram]
    lengths: list[int] = json.loads(path.read_text(encoding="utf-8"))["lengths"]
    return lengths


def _fill(lengths: Iterator[int], tokens: int) -> Iterator[int]:
    """Lengths until there are `tokens` of them; the last is cut."""
    while tokens > 0:
        length = min(next(lengths), tokens)
        yield length
        tokens -= length


def mixed(histogram: str, tokens: int, sizes: Sizes = BASE) -> Shape:
    """One batch of a mix, in order of arrival, again and again until there are so many tokens."""
    lengths = tuple(_fill(cycle(lengths_of(histogram)), tokens))
    return Shape(f"{histogram}-{tokens // K}k", (lengths,), sizes, histogram)


def uniform(length: int, tokens: int, sizes: Sizes = BASE) -> Shape:
    """One batch of sequences of one length."""
    return Shape(f"{length}-{tokens // K}k", ((length,) * (tokens // length),), sizes, f"all {length}")


def single(length: int, sizes: Sizes) -> Shape:
    """One sequence."""
    return Shape(f"1x{length}", ((length,),), sizes, f"all {length}")


def batched(histogram: str, order: str, sizes: Sizes) -> Shape:
    """Eight batches of 64 texts, as they arrive, or after all texts were sorted: then every n-th batch."""
    lengths = lengths_of(histogram)
    if order == "sorted":
        lengths = sorted(lengths)
    batches = [tuple(lengths[begin : begin + TEXTS_A_BATCH]) for begin in range(0, len(lengths), TEXTS_A_BATCH)]
    step = max(1, len(batches) // NUM_BATCHES)
    return Shape(f"{histogram}-64-{order}", tuple(batches[step // 2 :: step][:NUM_BATCHES]), sizes, histogram, order)


ATTENTION_SHAPES = (
    mixed("pairs", 64 * K),
    mixed("xquad", 64 * K),
    *(uniform(length, 64 * K) for length in UNIFORM),
    mixed("pairs", 4 * K),
    mixed("xquad", 4 * K),
    mixed("pairs", 512 * K),
    mixed("xquad", 512 * K),
    mixed("pairs", 16 * K),
    uniform(512, 16 * K),
    uniform(512, 512 * K),
)
"""The most important first."""
ROW_SHAPES = tuple(mixed("pairs", tokens * K) for tokens in (64, 4, 16, 256))
TINY_SHAPE = Shape("tiny", ((9, 3, 1, 17, 2),), TINY, "tiny")
TINY_UNIFORM = Shape("tiny-uniform", ((8, 8),), TINY, "all 8")
