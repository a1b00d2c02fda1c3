"""Batches of about as many tokens each, the same number of them in every epoch and on every process."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import BatchSampler, DataLoader

from ..inference.arguments import check_whole

if TYPE_CHECKING:
    from accelerate import Accelerator

# Relative changes of length by which an epoch mixes samples, tried in this order; 0 exchanges equal lengths only.
JITTERS = (0.5, 0.1, 0.02, 0.004, 0.0)
# Share by which an epoch's fullest and emptiest batch may differ from those without mixing.
TOLERANCE = 0.05


class TokenBudgetBatchSampler(BatchSampler):
    """Batches of at most `max_tokens` tokens, for `DataLoader(batch_sampler=...)` and models that need no padding.

    The number of batches follows from the lengths: the smallest multiple of `num_replicas` (within a thousandth) for
    which the longest-processing-time rule (Graham, 1969: longest sample first, each to the batch of the fewest tokens)
    keeps every batch to `max_tokens`. Each epoch fills the same places with other samples of about the same lengths,
    and shuffles the batches; `num_replicas` successive batches, one a process, are of about the same size. Every epoch
    holds every sample once; a sample longer than `max_tokens` is a batch of its own.

    Batch i is for process i % num_replicas, which is how accelerate shares them: see `prepare_loader`.

    Args:
        lengths: tokens of each sample, special tokens included: whole numbers of at least 1.
        max_tokens: tokens that a batch may hold.
        seed: with the epoch, decides the order; must be the same on every process.
        num_replicas: number of processes.

    Raises:
        ValueError: an argument is out of range, there are fewer samples than processes, or the samples are too long
            for a number of batches that is a multiple of `num_replicas`.
    """

    def __init__(self, lengths: Sequence[int], max_tokens: int, *, seed: int = 0, num_replicas: int = 1) -> None:
        check_whole("max_tokens", max_tokens, 1)
        check_whole("seed", seed, 0)
        check_whole("num_replicas", num_replicas, 1)
        self.lengths = _check_lengths(lengths, num_replicas)
        self.max_tokens, self.seed, self.num_replicas = max_tokens, seed, num_replicas
        self.epoch = 0
        # DataLoader and accelerate read these: the batch size varies, and `set_epoch` is looked for in `sampler`.
        self.batch_size = None  # type: ignore[assignment]
        self.drop_last = False
        self.sampler: Any = self

        descending = np.sort(self.lengths)[::-1]
        # The longest samples, each alone in one of the first batches.
        self._alone = int(np.count_nonzero(descending > max_tokens))
        shared = _fewest_batches(descending.tolist(), self._alone, max_tokens, num_replicas)
        # Place i is the i-th longest sample's; this is the batch that it lies in.
        self._batch_of_place = np.concatenate([np.arange(self._alone), np.asarray(shared, np.int64) + self._alone])
        self._places = np.argsort(self._batch_of_place, kind="stable")
        self._ends = np.cumsum(np.bincount(self._batch_of_place))
        loads = np.bincount(self._batch_of_place, descending)[self._alone :]
        self._least = (1 - TOLERANCE) * loads.min(initial=max_tokens)
        self._most = min((1 + TOLERANCE) * loads.max(initial=0), max_tokens)

    def __len__(self) -> int:
        """Number of batches of an epoch, for all processes together."""
        return len(self._ends)

    @property
    def batch_sizes(self) -> np.ndarray:
        """Samples of each batch, (len(self),) int64; those of every epoch, in another order."""
        return np.diff(self._ends, prepend=0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        check_whole("epoch", epoch, 0)
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of the samples of each batch."""
        generator = np.random.default_rng((self.seed, self.epoch))
        samples, loads = self._mix(generator)
        samples = samples[self._places]
        by_load = np.lexsort((generator.random(len(loads)), loads))
        rounds = generator.permutation(by_load.reshape(-1, self.num_replicas))
        for batch in generator.permuted(rounds, axis=1).flat:
            start = self._ends[batch - 1] if batch else 0
            yield samples[start : self._ends[batch]].tolist()

    def _mix(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Sample in each place, and tokens of each batch."""
        noise = generator.random(len(self.lengths))
        for jitter in JITTERS:
            keys = np.where(self.lengths > self.max_tokens, np.inf, self.lengths * (1 + jitter * noise))
            samples = np.lexsort((noise, -keys))
            loads = np.bincount(self._batch_of_place, self.lengths[samples])
            shared = loads[self._alone :]
            if ((self._least <= shared) & (shared <= self._most)).all():
                break
        return samples, loads


def prepare_loader(
    accelerator: "Accelerator", dataset: Any, sampler: TokenBudgetBatchSampler, collate_fn: Callable, **options: Any
) -> DataLoader:
    """Load this process' batches, for training with accelerate or in a Trainer's `get_train_dataloader`.

    Args:
        accelerator: knows the processes; `trainer.accelerator` in Trainer.
        dataset: samples by index, as many as the sampler has lengths.
        sampler: gives the batches; its `num_replicas` is `accelerator.num_processes`.
        collate_fn: makes a batch of a list of samples, for instance a PackedCollator.
        **options: other arguments of torch's DataLoader: `num_workers`, `pin_memory`.

    Raises:
        ValueError: dataset and sampler differ in length, or sampler and accelerator in the number of processes.
    """
    if len(dataset) != len(sampler.lengths):
        raise ValueError(f"dataset must hold the sampler's {len(sampler.lengths)} samples, got {len(dataset)}")
    if sampler.num_replicas != accelerator.num_processes:
        raise ValueError(
            f"sampler must be made with num_replicas={accelerator.num_processes}, the number of processes; "
            f"got {sampler.num_replicas}"
        )
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_fn, **options)
    prepared: Any = accelerator.prepare(loader)
    # As for accelerate's own sampler: else a resumed run, which skips batches, doesn't reach `set_epoch`.
    prepared.set_sampler(sampler)
    return prepared


def _check_lengths(lengths: object, num_replicas: int) -> np.ndarray:
    """Return lengths as int64, or raise a ValueError."""
    array = np.asarray(lengths)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(
            f"lengths must be whole numbers, one a sample, got shape {array.shape} and dtype {array.dtype}"
        )
    if array.size < num_replicas:
        raise ValueError(f"lengths must hold a sample for each of {num_replicas} processes, got {array.size}")
    if array.min() < 1:
        raise ValueError(f"lengths must be at least 1, got {array.min()} at index {array.argmin()}")
    return array.astype(np.int64)


def _fewest_batches(descending: list[int], alone: int, max_tokens: int, multiple: int) -> list[int]:
    """Batch, from 0, of each of the samples that are not alone; the number of all batches is a multiple of `multiple`.

    The number is the smallest one that `_assign` finds to fit, or up to a thousandth more where that saves time.
    """
    shared = descending[alone:]
    most = len(descending) // multiple * multiple - alone
    least = -((-(alone + -(-sum(shared) // max_tokens))) // multiple) * multiple - alone
    precision = max(1, least // 1000 // multiple) * multiple
    too_few, number, step = least - precision, least, precision
    while (found := _assign(shared, number, max_tokens) if number <= most else None) is None:
        if number >= most:
            enough = _fullest_shared(descending, most + alone)
            raise ValueError(
                f"max_tokens must be at least {enough} for these {len(descending)} samples to give each of "
                f"{multiple} processes the same number of batches, got {max_tokens}"
            )
        too_few, number, step = number, min(number + step, most), 2 * step
    while number - too_few > precision:
        middle = too_few + (number - too_few) // multiple // 2 * multiple
        fewer = _assign(shared, middle, max_tokens)
        if fewer is None:
            too_few = middle
        else:
            number, found = middle, fewer
    return found


def _assign(descending: list[int], number: int, max_tokens: int) -> list[int] | None:
    """Batch of each sample by the longest-processing-time rule, or None if a batch would exceed `max_tokens`."""
    # load * number + batch: the first of the heap is the batch of the fewest tokens.
    heap = list(range(number))
    too_full = (max_tokens + 1) * number
    batches = []
    for length in descending:
        before = heap[0]
        after = before + length * number
        if after >= too_full:
            return None
        batches.append(before % number)
        heapq.heapreplace(heap, after)
    return batches


def _fullest_shared(descending: list[int], number: int) -> int:
    """Tokens of the fullest batch of several samples, if they are put into so many batches."""
    batches = np.asarray(_assign(descending, number, sum(descending)))
    loads = np.bincount(batches, descending)
    return int(loads[np.bincount(batches) > 1].max())
