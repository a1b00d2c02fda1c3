"""Batches of at most so many tokens, and results in order of arrival."""

import io
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_fast import PackedBatch
from erniem_fast.inference.batching import as_completed, plan, run

LENGTHS = st.lists(st.integers(0, 40), max_size=60)
BUDGETS = st.integers(1, 100)


def sequences_of(lengths):
    """Each sequence of its own number, which starts at 1, so that a batch shows what is in it."""
    return [np.full(length, number, dtype=np.int32) for number, length in enumerate(lengths, 1)]


def split(batch):
    """Token ids of each sequence of a batch."""
    return [part.tolist() for part in batch.input_ids.split(batch.lengths.tolist())]


@given(LENGTHS, BUDGETS)
@settings(deadline=None)
def test_a_plan_holds_every_sequence_once_within_the_budget(lengths, batch_tokens):
    batches = list(plan(lengths, batch_tokens))
    assert sorted(index for batch in batches for index in batch) == [i for i, length in enumerate(lengths) if length]
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= batch_tokens
    for batch, following in pairwise(batches):
        assert sum(lengths[i] for i in batch) + lengths[following[0]] > batch_tokens
    in_order_of_plan = [lengths[i] for batch in batches for i in batch]
    assert in_order_of_plan == sorted(in_order_of_plan, reverse=True)


def test_plan_fills_batches_with_the_longest_first():
    lengths = [3, 9, 0, 4, 2, 6]
    batches = list(plan(lengths, 9))
    assert batches == [[1], [5], [3, 0, 4]]
    assert list(plan(lengths, 1)) == [[1], [5], [3], [0], [4]]
    assert list(plan([0, 0], 9)) == []


@given(LENGTHS, BUDGETS)
@settings(deadline=None)
def test_results_come_in_order_of_arrival(lengths, batch_tokens):
    sequences = sequences_of(lengths)
    results = run(sequences, split, batch_tokens)
    assert results == [sequence.tolist() or None for sequence in sequences]


@given(LENGTHS, BUDGETS)
@settings(deadline=None)
def test_batches_are_never_padded(lengths, batch_tokens):
    sequences = sequences_of(lengths)
    for indices, batch in as_completed(sequences, lambda batch: batch, batch_tokens):
        assert split(batch) == [sequences[i].tolist() for i in indices]
        assert batch.total_tokens == sum(lengths[i] for i in indices)
        assert batch.padded_shape is None


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_token_ids_of_any_kind(kind):
    assert run([kind([5, 6, 7]), kind([8])], split, 3) == [[5, 6, 7], [8]]


def test_batches_are_computed_one_at_a_time_in_inference_mode():
    computed = []

    def compute(batch: PackedBatch) -> None:
        assert torch.is_inference_mode_enabled()
        computed.append(batch.total_tokens)

    batches = as_completed(sequences_of([3, 2, 1]), compute, 3)
    assert computed == []
    next(batches)
    assert computed == [3]
    assert not torch.is_inference_mode_enabled()


def test_progress_counts_tokens(capsys):
    run(sequences_of([3, 2, 1]), split, 3, progress="Reading")
    assert "Reading: 100%" in capsys.readouterr().err
    run(sequences_of([3, 2, 1]), split, 3)
    assert capsys.readouterr().err == ""


class Unwritable(io.TextIOBase):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("stream", [Unwritable(), None])
def test_progress_that_cannot_be_shown_stops_nothing(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    assert run(sequences_of([3, 2, 1]), split, 3, progress="Reading") == [[1, 1, 1], [2, 2], [3]]


def test_bad_arguments():
    with pytest.raises(ValueError, match="batch_tokens must be at least 1, got 0"):
        run(sequences_of([3]), split, 0)
    with pytest.raises(ValueError, match="zip"):
        run(sequences_of([3, 3]), lambda batch: [None], 100)
