"""Losses of the heads, on rows: all positions of a padded batch, or the real tokens only."""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .validation import RangeCheck, check_device, check_integers, check_shape

IGNORED = -100


class Layout(Protocol):
    """Where a model's rows stand in its caller's batch."""

    @property
    def num_sequences(self) -> int: ...

    @property
    def token_shape(self) -> tuple[int, int]:
        """Shape of the caller's token tensors, labels among them."""
        ...

    def rows(self, values: Tensor) -> Tensor:
        """Token tensors of the caller's shape to rows."""
        ...

    def output(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """Rows to the caller's shape."""
        ...

    def to_grid(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """Rows to one line a sequence, (num_sequences, seq_len, ...)."""
        ...


class BoundaryCheck(NamedTuple):
    """Labels that must lie in [0, 1] or be ignored."""

    name: str
    values: Tensor

    def _wrong(self) -> Tensor:
        return (self.values != IGNORED) & ~((self.values >= 0) & (self.values <= 1))

    def extremes(self) -> list[Tensor]:
        return [self._wrong().sum()] * 2

    def check(self, low: int, high: int) -> None:
        if high:
            wrong = self.values[self._wrong()][0].item()
            raise ValueError(f"{self.name} must lie in [0, 1] or be {IGNORED} (ignored), got {wrong}")


def label_checks(name: str, labels: Tensor | None, limit: int, meaning: str) -> tuple[RangeCheck, ...]:
    """Labels are read where the input is read, so that checking them costs no synchronisation of its own."""
    return () if labels is None else (RangeCheck(name, check_integers(name, labels), limit, meaning),)


def _upcast(values: Tensor) -> Tensor:
    """Sums of many losses don't fit into half precision."""
    return values.float() if values.dtype.itemsize < 4 else values


def _mean(losses: Tensor, counted: Tensor) -> Tensor:
    """Mean of the counted losses; 0, with a graph, if none is."""
    total = torch.where(counted, _upcast(losses), 0.0).sum()
    return (total / counted.sum().clamp(min=1)).to(losses.dtype)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over labels other than -100, of (..., classes) logits and (...) labels."""
    logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long()
    counted = labels != IGNORED
    # Labels that nobody has read must not become a device-side assert.
    labels = torch.where(counted, labels.clamp(0, logits.shape[1] - 1), IGNORED)
    return _mean(F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED), counted)


def token_loss(logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
    check_shape("labels", labels, layout.token_shape, "the input's shape")
    return cross_entropy(logits, layout.rows(labels))


def span_loss(name: str, logits: Tensor, positions: Tensor, layout: Layout) -> Tensor:
    """Mean over the sequences of the cross-entropy of the answer's place among the sequence's tokens."""
    check_integers(name, positions)
    check_device(name, positions, logits.device, "the model's output")
    if positions.shape != (layout.num_sequences, 1):
        check_shape(name, positions, (layout.num_sequences,), "num_sequences")
    positions = positions.reshape(-1, 1).long()
    lowest = torch.finfo(logits.dtype).min
    grid = layout.to_grid(logits, lowest)
    inside = (positions >= 0) & (positions < grid.shape[1])
    positions = positions.clamp(0, grid.shape[1] - 1)
    counted = inside & (grid.gather(1, positions) > lowest)
    return _mean(-F.log_softmax(grid, -1).gather(1, positions), counted)


def boundary_loss(name: str, logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
    """Mean over the sequences of their mean binary cross-entropy, so that a batch is worth its sequences one by one."""
    check_shape(name, labels, layout.token_shape, "the input's shape")
    check_device(name, labels, logits.device, "the model's output")
    labels = layout.rows(labels)
    counted = labels != IGNORED
    targets = labels.to(logits.dtype).clamp(0, 1)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    sums = layout.to_grid(torch.where(counted, _upcast(losses), 0.0)).sum(1)
    counts = layout.to_grid(counted.to(sums.dtype)).sum(1)
    return _mean(sums / counts.clamp(min=1), counts > 0).to(losses.dtype)
