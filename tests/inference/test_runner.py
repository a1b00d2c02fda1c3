"""Rows in batches within a budget, out of memory or not."""

import gc
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_models import small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from erniem_fast import ErnieMModel, PackedBatch
from erniem_fast.inference import runner as runner_module
from erniem_fast.inference.runner import Runner, budget, pack
from erniem_fast.inference.tokens import Row

LENGTHS = st.lists(st.integers(0, 40), max_size=60)
BUDGETS = st.integers(1, 100)


@pytest.fixture(scope="module")
def model() -> ErnieMModel:
    return small_model()


def rows_of(lengths: list[int]) -> list[Row]:
    """Rows that each repeat a number of their own, from 1 on, so that a batch shows what is in it."""
    return [Row(np.full(length, number, dtype=np.int32)) for number, length in enumerate(lengths, 1)]


def sums(batch: PackedBatch) -> torch.Tensor:
    """(num_sequences, 2): each sequence's first id and the sum of its ids."""
    rows = torch.stack([batch.input_ids, batch.input_ids], 1).double()
    return torch.stack([batch.first(rows)[:, 0], batch.mean(rows)[:, 1] * batch.lengths], 1)


@given(LENGTHS, BUDGETS)
def test_every_row_comes_once_within_the_budget_and_the_longest_first(
    model: ErnieMModel, lengths: list[int], batch_tokens: int
) -> None:
    batches: list[PackedBatch] = []
    runner = Runner(model, batch_tokens)

    def compute(batch: PackedBatch) -> torch.Tensor:
        batches.append(batch)
        return sums(batch)

    results = runner.run(rows_of(lengths), compute)
    for number, (length, result) in enumerate(zip(lengths, results, strict=True), 1):
        assert result is None if not length else result.tolist() == pytest.approx([number, number * length])
    assert all(batch.num_sequences == 1 or batch.total_tokens <= batch_tokens for batch in batches)
    seen = [length for batch in batches for length in batch.lengths.tolist()]
    assert seen == sorted((length for length in lengths if length), reverse=True)
    for batch, following in pairwise(batches):
        assert batch.total_tokens + int(following.lengths[0]) > batch_tokens


class Small:
    """A computation that runs out of memory above so many tokens."""

    def __init__(self, tokens: int, error: Exception) -> None:
        self.tokens, self.error, self.failed = tokens, error, 0
        self.lengths: list[int] = []

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        if batch.total_tokens > self.tokens:
            self.failed += 1
            raise self.error
        self.lengths += batch.lengths.tolist()
        return sums(batch)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(40, 90))
@settings(max_examples=30)
def test_rows_that_did_not_fit_are_computed_again(
    model: ErnieMModel, error: Exception, lengths: list[int], room: int
) -> None:
    runner, compute = Runner(model, 1000), Small(room, error)
    results = runner.run(rows_of(lengths), compute)
    for number, (length, result) in enumerate(zip(lengths, results, strict=True), 1):
        assert result is None if not length else result.tolist() == pytest.approx([number, number * length])
    assert compute.lengths == sorted(compute.lengths, reverse=True)
    assert (runner.batch_tokens < 1000) == (sum(lengths) > room)
    assert runner.batch_tokens >= 1


def test_a_smaller_budget_is_kept_and_said(model: ErnieMModel, caplog: pytest.LogCaptureFixture) -> None:
    runner, compute = Runner(model, 1000), Small(100, ERRORS[0])
    runner.run(rows_of([20] * 60), compute)
    assert runner.batch_tokens <= 125
    assert "Out of memory: batches have at most" in caplog.text
    before = compute.failed
    runner.run(rows_of([20] * 60), compute)
    assert compute.failed - before <= 1


def test_a_row_that_never_fits_is_an_error(model: ErnieMModel) -> None:
    runner = Runner(model, 64)
    with pytest.raises(torch.OutOfMemoryError):
        runner.run(rows_of([3, 30, 5]), Small(20, ERRORS[0]))


def test_graphs_make_room_for_a_row(model: ErnieMModel) -> None:
    runner = Runner(model, 64)
    graphs: Any = object()
    runner._graphed = graphs

    def compute(batch: PackedBatch) -> torch.Tensor:
        if runner._graphed is graphs:
            raise ERRORS[0]
        return sums(batch)

    assert runner._can_be_graphed()
    (result,) = runner.run(rows_of([30]), compute)
    assert result.tolist() == pytest.approx([1, 30])
    assert not runner._can_be_graphed()


def test_what_a_graph_would_leave_out_is_not_graphed() -> None:
    def runner(change: Any = None) -> Any:
        model: Any = small_model()
        layer = model.encoder.layers[0]
        if change == "hook":
            layer.linear1.register_forward_pre_hook(lambda module, inputs: None)
        elif change == "forward":
            layer.norm1.forward = nn.LayerNorm(32).forward
        elif change == "adapter":
            model = get_peft_model(model, LoraConfig(target_modules=["q_proj"])).eval()
        return Runner(model)

    assert runner()._can_be_graphed()
    assert not any(runner(change)._can_be_graphed() for change in ("hook", "forward", "adapter"))
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not runner()._can_be_graphed()
    handle.remove()


def test_other_errors_are_not_tried_again(model: ErnieMModel) -> None:
    compute = Small(5, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Runner(model, 64).run(rows_of([3, 3, 3]), compute)
    assert compute.failed == 1


def test_what_a_failed_batch_held_is_freed_before_the_next_try(model: ErnieMModel) -> None:
    held: list[Any] = []

    def compute(batch: PackedBatch) -> torch.Tensor:
        gc.collect()
        assert all(reference() is None for reference in held)
        if batch.total_tokens > 10:
            big = torch.zeros(1000)
            held.append(weakref.ref(big))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sums(batch)

    assert len(Runner(model, 100).run(rows_of([5] * 8), compute)) == 8
    assert held


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(0, 4))
def test_rows_are_packed_as_a_batch_packs_sequences(lengths: list[int], first: int) -> None:
    rng = np.random.default_rng()
    rows = [Row(rng.integers(0, 97, length).astype(np.int32)) for length in lengths]
    expected = PackedBatch.from_sequences([row.ids for row in rows], first_position=first)
    found = pack(rows, first)
    for name in ("cu_seqlens", "position_ids", "input_ids"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    assert (found.max_seqlen, found.token_ids) == (expected.max_seqlen, {})


def test_token_types_are_packed_where_a_row_has_some() -> None:
    rows = [Row(np.array([5, 6], np.int32)), Row(np.array([7, 8, 9], np.int32), np.array([0, 1, 1], np.int32))]
    assert pack(rows, 0, {"token_type_ids": 2}).token_ids["token_type_ids"].tolist() == [0, 0, 0, 1, 1]
    assert pack(rows, 0, {"task_type_ids": 3}).token_ids == {}
    assert pack(rows[:1], 0, {"token_type_ids": 2}).token_ids == {}


def test_the_budget_follows_the_free_memory(model: ErnieMModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "_free_bytes", lambda device: None)
    assert budget(model) == runner_module.CPU_TOKENS
    budgets = []
    for free in (10**6, 10**7, 2 * 10**7, 10**12):
        monkeypatch.setattr(runner_module, "_free_bytes", lambda device, free=free: free)
        budgets.append(budget(model))
    assert budgets[0] == runner_module.LEAST_TOKENS
    assert budgets[-1] == runner_module.CPU_TOKENS
    assert budgets == sorted(budgets)
    assert budgets[2] == pytest.approx(2 * budgets[1], rel=0.01)


def test_memory_that_holds_files_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, cpu = tmp_path / "meminfo", torch.device("cpu")
    memory.write_text("MemTotal:  9000 kB\nMemFree:  20 kB\nMemAvailable:    7000 kB\n")
    monkeypatch.setattr(runner_module, "MEMORY", memory)
    assert runner_module._free_bytes(cpu) == 7000 * 1024
    memory.unlink()
    assert runner_module._free_bytes(cpu) is None


def test_bad_arguments(model: ErnieMModel) -> None:
    with pytest.raises(ValueError, match="batch_tokens must be a whole number of at least 1, got 0"):
        Runner(model, 0)
    with pytest.raises(ValueError, match="model must be in eval mode"):
        Runner(small_model().train())
    with pytest.raises(TypeError, match="model must hold a padding-free encoder, got Linear"):
        Runner(nn.Linear(2, 2).eval())
