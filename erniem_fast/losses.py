"""Losses of the heads, on rows: all positions of a padded batch, or the real tokens only."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .validation import RangeCheck, check_device, check_integers, check_shape, check_tensor

IGNORED = -100
"""Label that no loss counts."""


class Layout(Protocol):
    """Positions of a model's rows in the caller's batch."""

    @property
    def num_sequences(self) -> int:
        """Sequences in the batch."""
        ...

    @property
    def token_shape(self) -> tuple[int, int]:
        """Shape of the caller's token tensors, labels among them."""
        ...

    def rows(self, values: Tensor) -> Tensor:
        """Token tensors of the caller's shape to rows."""
        ...

    def output(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """Rows to the caller's shape, positions without a row filled with `fill`."""
        ...

    def to_grid(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """Rows to (num_sequences, seq_len, ...), positions without a row filled with `fill`."""
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


def check_labels(name: str, labels: object) -> Tensor:
    """`labels`, if it is a dense tensor of bools, integers or floats; else a TypeError."""
    labels = check_tensor(name, labels)
    if labels.is_complex():
        raise TypeError(f"{name} must be bool, integer or floating point, got {labels.dtype}")
    return labels


def class_checks(name: str, labels: Tensor | None, limit: int, meaning: str) -> tuple[RangeCheck, ...]:
    """Check of class labels, (...) integers in [0, limit) or -100.

    The encoder reads it to the host with the input's own checks: one synchronisation for all.
    """
    return () if labels is None else (RangeCheck(name, check_integers(name, labels), limit, meaning),)


def boundary_checks(**labels: Tensor | None) -> tuple[BoundaryCheck, ...]:
    """Checks of boundary labels, (...) numbers in [0, 1] or -100, read like those of `class_checks`."""
    return tuple(BoundaryCheck(name, check_labels(name, value)) for name, value in labels.items() if value is not None)


def _upcast(values: Tensor) -> Tensor:
    """Float32 at least: the sum of many losses overflows half precision."""
    return values.float() if values.dtype.itemsize < 4 else values


def _mean(losses: Tensor, counted: Tensor) -> Tensor:
    """Mean of the counted losses; 0, with a graph, if none is."""
    total = torch.where(counted, _upcast(losses), 0.0).sum()
    return (total / counted.sum().clamp(min=1)).to(losses.dtype)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over labels other than -100, of (..., classes) logits and (...) labels."""
    logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long()
    counted = labels != IGNORED
    # Off the CPU labels may be unchecked, and one out of range would be a device-side assert.
    labels = torch.where(counted, labels.clamp(0, logits.shape[1] - 1), IGNORED)
    return _mean(F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED), counted)


def token_loss(logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
    """Mean cross-entropy of the tokens whose label is not -100.

    Args:
        logits: rows of class scores.
        labels: integers of the input's shape.
        layout: positions of the rows.
    """
    check_shape("labels", labels, layout.token_shape, "the input's shape")
    return cross_entropy(logits, layout.rows(labels))


def labelled_rows(rows: Tensor, labels: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Select the rows whose label is not -100, and give them with their labels."""
    check_shape("labels", labels, layout.token_shape, "the input's shape")
    targets = layout.rows(labels)
    chosen = (targets != IGNORED).nonzero().squeeze(1)
    return rows[chosen], targets[chosen]


def masked_lm(
    score: Callable[[Tensor], Tensor], rows: Tensor, labels: Tensor | None, layout: Layout, loss_only: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Give the loss and the logits of a masked language model, either of them None.

    Args:
        score: projection of (num_rows, hidden_size) to (num_rows, vocab_size).
        rows: (num_rows, hidden_size).
        labels: integers of the input's shape, or -100; None: no loss is asked for.
        layout: positions of the rows.
        loss_only: with labels, project the labelled rows only and give no logits. Off the CPU this waits for the device
            once more, to count them.
    """
    if labels is None:
        return None, score(rows)
    if not loss_only:
        logits = score(rows)
        return token_loss(logits, labels, layout), logits
    rows, targets = labelled_rows(rows, labels, layout)
    return cross_entropy(score(rows), targets), None


def span_loss(name: str, logits: Tensor, positions: Tensor, layout: Layout) -> Tensor:
    """Mean over the sequences of the cross-entropy of the answer's position among the sequence's tokens.

    Args:
        name: name of `positions` in errors.
        logits: one row a token.
        positions: (num_sequences,) integers, columns of the grid. Those outside it, or without a row, are ignored.
        layout: positions of the rows.
    """
    check_device(name, positions, logits.device, "the model's output")
    if positions.shape != (layout.num_sequences, 1):
        check_shape(name, positions, (layout.num_sequences,), "num_sequences")
    positions = positions.reshape(-1, 1).long()
    grid = layout.to_grid(logits, torch.finfo(logits.dtype).min)
    real = layout.to_grid(torch.ones_like(logits, dtype=torch.bool), False)
    inside = (positions >= 0) & (positions < grid.shape[1])
    positions = positions.clamp(0, grid.shape[1] - 1)
    return _mean(-F.log_softmax(grid, -1).gather(1, positions), inside & real.gather(1, positions))


def boundary_loss(name: str, logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
    """Mean over the sequences of their mean binary cross-entropy, so that a batch is worth its sequences one by one.

    Args:
        name: name of `labels` in errors.
        logits: one row a token.
        labels: numbers in [0, 1], or -100, of the input's shape.
        layout: positions of the rows.
    """
    check_shape(name, labels, layout.token_shape, "the input's shape")
    check_device(name, labels, logits.device, "the model's output")
    labels = layout.rows(labels)
    counted = labels != IGNORED
    targets = labels.to(logits.dtype).clamp(0, 1)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    sums = layout.to_grid(torch.where(counted, _upcast(losses), 0.0)).sum(1)
    counts = layout.to_grid(counted.to(sums.dtype)).sum(1)
    return _mean(sums / counts.clamp(min=1), counts > 0).to(losses.dtype)
