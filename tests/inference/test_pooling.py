"""Poolings of packed rows: each sequence as if it were alone, by formulas in float64."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erniem_fast import PackedBatch
from erniem_fast.inference.pooling import POOLINGS, pool

HIDDEN = 5
FORMULAS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean": lambda rows, skipped: rows.mean(0),
    "cls": lambda rows, skipped: rows[0],
    "max": lambda rows, skipped: rows.amax(0),
    "mean_sqrt_len": lambda rows, skipped: rows.sum(0) / len(rows) ** 0.5,
    "weightedmean": lambda rows, skipped: (
        sum((k * row for k, row in enumerate(rows, skipped + 1)), torch.zeros(HIDDEN, dtype=torch.float64))
        / sum(range(skipped + 1, skipped + len(rows) + 1))
    ),
    "lasttoken": lambda rows, skipped: rows[-1],
}
"""From the rows that are pooled, and how many of the sequence's are skipped before them."""
LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=6)


def alone(name: str, rows: Tensor, skipped: int) -> Tensor:
    kept = rows[skipped:]
    return FORMULAS[name](kept, skipped) if len(kept) else torch.zeros(HIDDEN, dtype=torch.float64)


def batch_of(lengths: list[int], first_position: int = 0) -> PackedBatch:
    return PackedBatch.from_sequences([torch.arange(length) for length in lengths], first_position=first_position)


def test_every_pooling_has_a_formula() -> None:
    assert FORMULAS.keys() == POOLINGS.keys()


@settings(max_examples=60)
@given(LENGTHS, st.integers(0, 3), st.integers(0, 2), st.data())
def test_each_sequence_is_pooled_alone(lengths: list[int], behind: int, first: int, data: st.DataObject) -> None:
    """Also with tokens that are skipped, more than there are even, and with rows behind the last sequence."""
    skip = data.draw(st.none() | st.lists(st.integers(0, 11), min_size=len(lengths), max_size=len(lengths)))
    batch, rows = batch_of(lengths, first), torch.randn(sum(lengths) + behind, HIDDEN, dtype=torch.float64)
    found = pool(batch, rows, None, FORMULAS, None if skip is None else torch.tensor(skip))
    assert found.dtype == torch.float32
    sequences = rows[: sum(lengths)].split(lengths)
    for vector, sequence, skipped in zip(found, sequences, skip or [0] * len(lengths), strict=True):
        expected = torch.cat([alone(name, sequence, skipped) for name in FORMULAS])
        torch.testing.assert_close(vector.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_alone_and_among_others_are_bitwise_the_same(name: str) -> None:
    lengths = [1, 300, 2, 1, 40]
    rows = torch.randn(sum(lengths), 64)
    together = pool(batch_of(lengths), rows, None, (name,))
    for vector, length, part in zip(together, lengths, rows.split(lengths), strict=True):
        assert torch.equal(vector, pool(batch_of([length]), part, None, (name,))[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FORMULAS)
def test_sums_of_half_precision_are_float32(name: str, dtype: torch.dtype) -> None:
    lengths = [3000, 7]
    rows = torch.randn(sum(lengths), HIDDEN).to(dtype)
    found = pool(batch_of(lengths), rows, None, (name,))
    expected = pool(batch_of(lengths), rows.double(), None, (name,))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_batch_without_tokens() -> None:
    found = pool(batch_of([0, 0]), torch.empty(0, HIDDEN), None, FORMULAS, torch.tensor([0, 3]))
    assert torch.equal(found, torch.zeros(2, len(FORMULAS) * HIDDEN))


@pytest.mark.parametrize("lengths", [(3, 0, 5, 1), (0,), (4, 4)], ids=str)
def test_means_and_first_rows_of_a_batch(lengths: tuple[int, ...]) -> None:
    """Rows behind the last offset, which buckets leave, belong to no sequence."""
    batch = PackedBatch.from_sequences([torch.arange(length) for length in lengths])
    rows = torch.randn(sum(lengths) + 2, 6, dtype=torch.float64)
    expected = [part.mean(0) if len(part) else torch.zeros(6) for part in rows[: sum(lengths)].split(lengths)]
    torch.testing.assert_close(batch.mean(rows).double(), torch.stack(expected).double(), rtol=1e-6, atol=1e-6)
    first = [part[0] if len(part) else torch.zeros(6) for part in rows[: sum(lengths)].split(lengths)]
    assert torch.equal(batch.first(rows), torch.stack(first).double())
    rows = rows.float().requires_grad_()
    batch.mean(rows).sum().backward()
    weights = torch.cat([torch.full((length,), 1 / length) for length in lengths if length] + [torch.zeros(2)])
    torch.testing.assert_close(rows.grad, weights[:, None].expand(-1, 6))
