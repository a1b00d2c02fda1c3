"""Batches side by side: the same results, in order, whatever goes wrong in one of them."""

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from helpers import family_folders
from helpers.processes import PATIENCE
from helpers.small_models import small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from erniem_fast import ErnieMModel, PackedBatch, padding_free
from erniem_fast.inference import cpu_streams
from erniem_fast.inference.runner import Runner
from erniem_fast.inference.tokens import Row


@pytest.fixture(scope="module")
def model() -> ErnieMModel:
    return small_model()


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two threads of torch, and streams that are worth it for few tokens."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(cpu_streams, "LEAST_TOKENS", 4)
    monkeypatch.setattr(cpu_streams, "STREAM_TOKENS", 50)
    yield
    torch.set_num_threads(before)


def rows_of(lengths: list[int]) -> list[Row]:
    return [Row(np.arange(length, dtype=np.int32) % 90 + 3) for length in lengths]


class Watched:
    """What a model gives, and in which threads, with how many of torch's own."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.threads: set[str] = set()
        self.torch_threads: set[int] = set()
        self.tokens: list[int] = []

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        self.threads.add(threading.current_thread().name)
        self.torch_threads.add(torch.get_num_threads())
        self.tokens.append(batch.total_tokens)
        found: torch.Tensor = batch.mean(self.model(batch, return_packed=True).last_hidden_state)
        return found


@given(st.lists(st.integers(0, 40), min_size=1, max_size=40))
@settings(max_examples=30)
def test_results_are_those_of_one_thread(model: ErnieMModel, lengths: list[int]) -> None:
    compute, rows = Watched(model), rows_of(lengths)
    found = Runner(model, 1000).run(rows, compute)
    for row, result in zip(rows, found, strict=True):
        if not len(row.ids):
            assert result is None
            continue
        with torch.inference_mode():
            expected = Watched(model)(PackedBatch.from_sequences([torch.tensor(row.ids)]))[0]
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    if np.count_nonzero(lengths) > 1 and sum(lengths) >= 8:
        assert all(name.startswith("stream") for name in compute.threads)
        assert compute.torch_threads == {1}
    assert torch.get_num_threads() == 2


def test_streams_get_even_parts(model: ErnieMModel) -> None:
    for total, batches in ((40, 2), (100, 2), (101, 4), (990, 20)):
        compute = Watched(model)
        Runner(model, 1000).run(rows_of([1] * total), compute)
        assert len(compute.tokens) == batches
        assert max(compute.tokens) - min(compute.tokens) <= 1


def test_two_batches_are_computed_at_once(model: ErnieMModel) -> None:
    meeting = threading.Barrier(2, timeout=PATIENCE)

    def compute(batch: PackedBatch) -> torch.Tensor:
        meeting.wait()  # for a batch of the other thread
        return torch.zeros(batch.num_sequences)

    assert len(Runner(model, 1000).run(rows_of([20] * 20), compute)) == 20


def test_memory_that_runs_out_halves_the_budget_once(model: ErnieMModel) -> None:
    watched, failed = Watched(model), []

    def compute(batch: PackedBatch) -> torch.Tensor:
        if batch.total_tokens > 30:
            failed.append(batch.total_tokens)
            raise MemoryError
        return watched(batch)

    runner = Runner(model, 1000)
    results = runner.run(rows_of([10] * 60), compute)
    assert all(result is not None for result in results)
    assert runner.batch_tokens == 25  # half of a batch of 50
    assert 1 <= len(failed) <= 4  # what was under way


def test_a_row_that_fits_alone_is_not_lost(model: ErnieMModel) -> None:
    lock = threading.Lock()

    def compute(batch: PackedBatch) -> torch.Tensor:
        if not lock.acquire(blocking=False):
            raise MemoryError
        time.sleep(0.02)
        lock.release()
        return batch.lengths

    results = Runner(model, 1000).run(rows_of([40] * 8), compute)
    assert [int(result) for result in results] == [40] * 8


def test_an_error_is_the_callers_and_nothing_is_computed_after_it(model: ErnieMModel) -> None:
    begun = []

    def compute(batch: PackedBatch) -> torch.Tensor:
        begun.append(batch)
        raise ValueError("a bad batch")

    with pytest.raises(ValueError, match="a bad batch"):
        Runner(model, 1000).run(rows_of([10] * 500), compute)
    time.sleep(0.05)
    assert len(begun) <= 6


def test_a_reader_that_stops_leaves_no_work(model: ErnieMModel) -> None:
    begun = []

    def compute(batch: PackedBatch) -> torch.Tensor:
        begun.append(batch)
        return torch.zeros(batch.num_sequences)

    results = Runner(model, 1000).as_completed(rows_of([10] * 500), compute)
    next(results)
    results.close()
    assert len(begun) <= 8


def test_modes_of_the_calling_thread_hold(model: ErnieMModel) -> None:
    compute = Watched(model)
    with FlopCounterMode(display=False) as counter:
        Runner(model, 1000).run(rows_of([20] * 20), compute)
    assert counter.get_total_flops() > 0
    with torch.autocast("cpu", torch.bfloat16):
        Runner(model, 1000).run(rows_of([20] * 20), compute)
    assert compute.threads == {threading.current_thread().name}


def test_one_thread_of_torch_computes_alone(model: ErnieMModel) -> None:
    torch.set_num_threads(1)
    compute = Watched(model)
    Runner(model, 1000).run(rows_of([20] * 20), compute)
    assert compute.threads == {threading.current_thread().name}
    assert len(compute.tokens) == 1


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("Bert", "ForSequenceClassification"),
        pytest.param("XLMRoberta", "ForTokenClassification", marks=pytest.mark.slow),
        *(pytest.param(family, "Model", marks=pytest.mark.slow) for family in family_folders.FAMILIES),
    ],
)
def test_a_new_model_is_called_by_two_threads_at_once(family: str, head: str) -> None:
    """Whatever its forward sets up when it is first called."""
    if family == "XLM":
        pytest.importorskip("sacremoses")
    model, tokenizer = family_folders.build(family, head)
    model = padding_free(model.eval())
    per_token = head == "ForTokenClassification"

    def compute(batch: PackedBatch) -> Any:
        if head == "Model":
            return batch.first(model(batch, return_packed=True).last_hidden_state)
        logits = model(batch, return_dict=True).logits
        return batch.first(logits[0]) if per_token else logits

    ids = torch.randint(len(tokenizer) // 2, len(tokenizer), (80, 30)).numpy().astype(np.int32)
    rows = [Row(row[: 1 + place % 30]) for place, row in enumerate(ids)]
    together = Runner(model, 1000).run(rows, compute)
    torch.set_num_threads(1)
    alone = Runner(model, 60).run(rows, compute)
    torch.testing.assert_close(torch.stack(together), torch.stack(alone), atol=1e-5, rtol=1e-5)
