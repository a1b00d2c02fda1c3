"""Losses of the heads, on rows: all positions of a padded batch, or the real tokens only."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .validation import RangeCheck, check_device, check_integers, check_shape, check_tensor

IGNORED = -100
"""Label that no loss counts."""
NumItems = Tensor | int | None
"""Losses counted in all batches of an optimiser's step, whose sum each batch gives its share of; None: the batch's."""


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


def average(losses: Tensor, counted: Tensor | None = None, num_items: NumItems = None) -> Tensor:
    """Sum of the counted losses over their number, or over `num_items`; 0, with a graph, if there is none.

    Args:
        losses: (...).
        counted: (...) bool; None: all of them.
        num_items: number that the sum is divided by, that of all batches of an optimiser's step.
    """
    counted = torch.ones_like(losses, dtype=torch.bool) if counted is None else counted
    total = torch.where(counted, _upcast(losses), 0.0).sum()
    items = counted.sum().clamp(min=1) if num_items is None else _checked(num_items, total.device)
    return (total / items).to(losses.dtype)


def _checked(num_items: Tensor | int, device: torch.device) -> Tensor | int:
    """`num_items`, at least 1."""
    if isinstance(num_items, Tensor) and num_items.numel() == 1 and num_items.dtype != torch.bool:
        return num_items.reshape(()).to(device).clamp(min=1)
    if isinstance(num_items, int) and not isinstance(num_items, bool) and num_items >= 0:
        return max(num_items, 1)
    got = f"a tensor of shape {tuple(num_items.shape)}" if isinstance(num_items, Tensor) else repr(num_items)
    raise ValueError(f"num_items_in_batch must be a whole number of at least 0, or a tensor of one, got {got:.80}")


def cross_entropy(logits: Tensor, labels: Tensor, num_items: NumItems = None) -> Tensor:
    """Mean over labels other than -100, of (..., classes) logits and (...) labels; see `average`."""
    logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long()
    counted = labels != IGNORED
    # Off the CPU labels may be unchecked, and one out of range would be a device-side assert.
    labels = torch.where(counted, labels.clamp(0, logits.shape[1] - 1), IGNORED)
    return average(F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED), counted, num_items)


def token_loss(logits: Tensor, labels: Tensor, layout: Layout, num_items: NumItems = None) -> Tensor:
    """Mean cross-entropy of the tokens whose label is not -100.

    Args:
        logits: rows of class scores.
        labels: integers of the input's shape.
        layout: positions of the rows.
        num_items: see `average`.
    """
    check_shape("labels", labels, layout.token_shape, "the input's shape")
    return cross_entropy(logits, layout.rows(labels), num_items)


def labelled_rows(rows: Tensor, labels: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Select the rows whose label is not -100, and give them with their labels."""
    check_shape("labels", labels, layout.token_shape, "the input's shape")
    rows, targets = rows.reshape(-1, rows.shape[-1]), layout.rows(labels).reshape(-1)
    chosen = (targets != IGNORED).nonzero().squeeze(1)
    return rows[chosen], targets[chosen]


def masked_lm(
    score: Callable[[Tensor], Tensor],
    rows: Tensor,
    labels: Tensor | None,
    layout: Layout,
    loss_only: bool,
    num_items: NumItems = None,
    fused_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Give the loss and the logits of a masked language model, either of them None.

    Args:
        score: projection of (num_rows, hidden_size) to (num_rows, vocab_size).
        rows: (num_rows, hidden_size).
        labels: integers of the input's shape, or -100; None: no loss is asked for.
        layout: positions of the rows.
        loss_only: with labels, project the labelled rows only and give no logits. Off the CPU this waits for the device
            once more, to count them.
        num_items: see `average`.
        fused_loss: with `loss_only` computes the sum of the losses from (num_labelled, hidden_size) rows and their
            (num_labelled,) labels, in float32 at least, and has no logits; None: they are scored.
    """
    if labels is None:
        return None, score(rows)
    if not loss_only:
        logits = score(rows)
        return token_loss(logits, labels, layout, num_items), logits
    rows, targets = labelled_rows(rows, labels, layout)
    if fused_loss is not None:
        return average(fused_loss(rows, targets), None, len(targets) if num_items is None else num_items), None
    return cross_entropy(score(rows), targets, num_items), None


def span_loss(name: str, logits: Tensor, positions: Tensor, layout: Layout, num_items: NumItems = None) -> Tensor:
    """Mean over the sequences of the cross-entropy of the answer's position among the sequence's tokens.

    Args:
        name: name of `positions` in errors.
        logits: one row a token.
        positions: (num_sequences,) integers, columns of the grid. Those outside it, or without a row, are ignored.
        layout: positions of the rows.
        num_items: see `average`.
    """
    check_device(name, positions, logits.device, "the model's output")
    if positions.shape != (layout.num_sequences, 1):
        check_shape(name, positions, (layout.num_sequences,), "num_sequences")
    grid = layout.to_grid(logits, torch.finfo(logits.dtype).min)
    return row_cross_entropy(
        grid, positions, layout.to_grid(torch.ones_like(logits, dtype=torch.bool), False), num_items
    )


def row_cross_entropy(scores: Tensor, positions: Tensor, real: Tensor, num_items: NumItems = None) -> Tensor:
    """Mean cross-entropy of a position in each row of scores.

    Args:
        scores: (num_rows, seq_len), the dtype's minimum where there is no token.
        positions: (num_rows, 1) or (num_rows,) integers. Those outside the row, or without a token, are ignored.
        real: (num_rows, seq_len) bool, True at tokens.
        num_items: see `average`.
    """
    positions = positions.reshape(-1, 1).long()
    inside = (positions >= 0) & (positions < scores.shape[1])
    counted = inside & real.gather(1, positions.clamp(0, scores.shape[1] - 1))
    return cross_entropy(scores, torch.where(counted, positions, IGNORED), num_items)


def boundary_loss(name: str, logits: Tensor, labels: Tensor, layout: Layout, num_items: NumItems = None) -> Tensor:
    """Mean over the sequences of their mean binary cross-entropy, so that a batch is worth its sequences one by one.

    Args:
        name: name of `labels` in errors.
        logits: one row a token.
        labels: numbers in [0, 1], or -100, of the input's shape.
        layout: positions of the rows.
        num_items: see `average`.
    """
    check_shape(name, labels, layout.token_shape, "the input's shape")
    check_device(name, labels, logits.device, "the model's output")
    labels = layout.rows(labels)
    counted = labels != IGNORED
    targets = labels.to(logits.dtype).clamp(0, 1)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    sums = layout.to_grid(torch.where(counted, _upcast(losses), 0.0)).sum(1)
    counts = layout.to_grid(counted.to(sums.dtype)).sum(1)
    return average(sums / counts.clamp(min=1), counts > 0, num_items).to(losses.dtype)
