"""Sequences in batches of at most so many tokens, results in order of arrival.

logits = run(sequences, lambda batch: classifier(batch).logits.cpu(), batch_tokens=8192)
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..packing import PackedBatch
from .progress import progress_bar

T = TypeVar("T")
TokenIds = Sequence[int] | np.ndarray | Tensor
"""Token ids of one sequence, special tokens included: (length,) integers."""


def plan(lengths: Sequence[int] | np.ndarray, batch_tokens: int) -> Iterator[list[int]]:
    """Group sequences by length, the longest first, into batches of at most `batch_tokens` tokens.

    Args:
        lengths: tokens of each sequence; empty sequences are left out.
        batch_tokens: most tokens of a batch; a longer sequence makes a batch alone.

    Yields:
        Indices into `lengths`.

    Raises:
        ValueError: `batch_tokens` is below 1.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    batch: list[int] = []
    tokens = 0
    for index, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        if batch and tokens + size > batch_tokens:
            yield batch
            batch, tokens = [], 0
        if size:
            batch.append(index)
            tokens += size
    if batch:
        yield batch


def as_completed(
    sequences: Sequence[TokenIds],
    compute: Callable[[PackedBatch], T],
    batch_tokens: int,
    device: torch.device | str | None = None,
    progress: str | None = None,
    lengths: Sequence[int] | np.ndarray | None = None,
    first_position: int = 0,
) -> Iterator[tuple[list[int], T]]:
    """Compute sequences a batch at a time; for results that are stored elsewhere, or too large to be kept.

    Args:
        sequences: token ids of each; empty ones are left out.
        compute: from a batch, whose sequences are in the order of the yielded indices, to its result. Runs in
            inference mode.
        batch_tokens: most tokens of a batch; a longer sequence makes a batch alone.
        device: where the batches go.
        progress: description of a progress bar on stderr; None: no bar.
        lengths: tokens of each, where sequences are put together when they are read; None: they are asked.
        first_position: position of a sequence's first token, `limits.first_position` of the model.

    Yields:
        Indices of the batch's sequences, and the batch's result.

    Raises:
        ValueError: `batch_tokens` is below 1.
    """
    if lengths is None:
        lengths = [len(sequence) for sequence in sequences]
    with progress_bar(int(np.sum(lengths)), progress or "", " tokens", progress is not None) as bar:
        for indices in plan(lengths, batch_tokens):
            rows = (torch.as_tensor(sequences[i]) for i in indices)
            batch = PackedBatch.from_sequences(rows, device, first_position)
            with torch.inference_mode():
                result = compute(batch)
            yield indices, result
            bar.update(batch.total_tokens)


def run(
    sequences: Sequence[TokenIds],
    compute: Callable[[PackedBatch], Iterable[T]],
    batch_tokens: int,
    device: torch.device | str | None = None,
    progress: str | None = None,
    first_position: int = 0,
) -> list[T | None]:
    """Compute sequences in batches; results in order of arrival.

    Args:
        sequences, batch_tokens, device, progress, first_position: see `as_completed`.
        compute: from a batch to one result for each of its sequences, in order. Runs in inference mode.

    Returns:
        The result of each sequence; None for an empty one.

    Raises:
        ValueError: `batch_tokens` is below 1, or `compute` gives more or fewer results than the batch has sequences.
    """
    results: list[T | None] = [None] * len(sequences)
    completed = as_completed(sequences, compute, batch_tokens, device, progress, first_position=first_position)
    for indices, batch_results in completed:
        for index, result in zip(indices, batch_results, strict=True):
            results[index] = result
    return results
