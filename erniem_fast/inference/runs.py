"""A task over a list of items that are in memory, with progress bars."""

from collections.abc import Iterator, Sequence
from typing import Any

from .progress import progress_bar
from .tokens import TEXTS_PER_CALL

TOKENS_PER_WINDOW = 2**20
"""Rows of so many tokens are put together at once: enough for many batches of like lengths."""


def tokenize_all(task: Any, items: Sequence[Any], progress: bool) -> list[Any]:
    """Tokens of each item.

    Args:
        task: whose `tokenize` also takes the number of the first item.
        items: any number of them.
        progress: show a progress bar on stderr.
    """
    tokens = []
    with progress_bar(len(items), "Tokenizing", " texts", progress) as bar:
        for start in range(0, len(items), TEXTS_PER_CALL):
            chunk = items[start : start + TEXTS_PER_CALL]
            tokens += task.tokenize(chunk, start)
            bar.update(len(chunk))
    return tokens


def compute_all(task: Any, tokens: Sequence[Any], description: str, progress: bool) -> Iterator[Any]:
    """Yield each item's result, in order; memory holds the rows of a window only.

    Args:
        task: whose `size` and `compute` are called; its `runner` is nobody else's.
        tokens: of each item.
        description: of the progress bar.
        progress: show it on stderr.
    """
    sizes = [task.size(one) for one in tokens]
    with progress_bar(sum(sizes), description, " tokens", progress) as bar:
        task.runner.on_tokens = bar.update
        for part in windows_of(sizes):
            yield from task.compute(tokens[part])


def windows_of(sizes: Sequence[int]) -> Iterator[slice]:
    """Cut a list into parts of at most `TOKENS_PER_WINDOW` tokens, or a single item.

    Args:
        sizes: tokens of each item.
    """
    start, total = 0, 0
    for stop, size in enumerate(sizes):
        if stop > start and total + size > TOKENS_PER_WINDOW:
            yield slice(start, stop)
            start, total = stop, 0
        total += size
    if sizes:
        yield slice(start, len(sizes))
