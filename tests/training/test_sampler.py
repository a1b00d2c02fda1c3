"""Batches by tokens: even, whole, the same number on every process, and where accelerate looks for them."""

from itertools import chain, combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader, skip_first_batches
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from erniem_fast.training import TokenBudgetBatchSampler, prepare_loader

lengths_of_samples = st.lists(st.integers(1, 60), min_size=1, max_size=60)


def loads(sampler: TokenBudgetBatchSampler) -> list[int]:
    return [int(sampler.lengths[batch].sum()) for batch in sampler]


def made(lengths: list[int], max_tokens: int, **options: Any) -> TokenBudgetBatchSampler:
    """A sampler of these lengths; hypothesis leaves out those that can't be shared."""
    try:
        return TokenBudgetBatchSampler(lengths, max_tokens, **options)
    except ValueError:
        assume(False)
        raise


@given(lengths_of_samples, st.integers(1, 200), st.integers(1, 4), st.integers(0, 99), st.integers(0, 3))
@settings(max_examples=50)
def test_every_epoch_holds_every_sample_once(
    lengths: list[int], max_tokens: int, num_replicas: int, seed: int, epoch: int
) -> None:
    sampler = made(lengths, max_tokens, seed=seed, num_replicas=num_replicas)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(chain(*batches)) == list(range(len(lengths)))
    assert all(len(batch) == 1 or sum(lengths[i] for i in batch) <= max_tokens for batch in batches)
    assert all(batches)
    assert len(batches) == len(sampler) == len(list(TokenBudgetBatchSampler(
        lengths, max_tokens, seed=seed + 1, num_replicas=num_replicas
    )))  # fmt: skip
    assert len(batches) % num_replicas == 0
    assert batches == list(sampler)
    assert sorted(sampler.batch_sizes) == sorted(map(len, batches))


@given(lengths_of_samples, st.integers(1, 200), st.integers(1, 4), st.booleans(), st.data())
@settings(max_examples=50)
def test_processes_share_an_epoch_through_accelerate(
    lengths: list[int], max_tokens: int, num_replicas: int, even_batches: bool, data: st.DataObject
) -> None:
    sampler = made(lengths, max_tokens, num_replicas=num_replicas)
    sampler.set_epoch(data.draw(st.integers(0, 5)))
    shards = [BatchSamplerShard(sampler, num_replicas, rank, even_batches=even_batches) for rank in range(num_replicas)]
    shares = [list(shard) for shard in shards]
    assert {len(share) for share in shares} == {len(shard) for shard in shards} == {len(sampler) // num_replicas}
    assert [batch for batches in zip(*shares, strict=True) for batch in batches] == list(sampler)
    skipped = data.draw(st.integers(0, len(shares[0])))
    for rank, share in enumerate(shares):
        loader = prepare_data_loader(
            DataLoader(range(len(lengths)), batch_sampler=sampler, collate_fn=list), num_processes=num_replicas,
            process_index=rank, put_on_device=False, even_batches=even_batches,
        )  # fmt: skip
        assert list(skip_first_batches(loader, skipped).batch_sampler) == share[skipped:]


def fits(lengths: list[int], max_tokens: int, number: int) -> bool:
    """True if the rule, written naively, keeps so many batches to the budget."""
    batches: list[list[int]] = [[] for _ in range(number)]
    for length in sorted(lengths, reverse=True):
        min(batches, key=sum).append(length)
    return all(len(batch) == 1 or sum(batch) <= max_tokens for batch in batches)


@given(lengths_of_samples, st.integers(1, 200), st.integers(1, 4))
@example([21] * 60, 62, 1)  # far from the bound by tokens
@settings(max_examples=50)
def test_one_round_fewer_would_not_fit(lengths: list[int], max_tokens: int, num_replicas: int) -> None:
    number = len(made(lengths, max_tokens, num_replicas=num_replicas))
    assert fits(lengths, max_tokens, number)
    assert number == num_replicas or not fits(lengths, max_tokens, number - num_replicas)


@given(st.integers(0, 99))
@settings(max_examples=5)
def test_batches_are_even_and_differ_between_epochs(seed: int) -> None:
    """Lengths as of sentences: 5 to 200 tokens, mostly short."""
    lengths = np.random.default_rng(seed).geometric(0.03, 3000).clip(5, 200)
    sampler = TokenBudgetBatchSampler(lengths, 1024, seed=seed, num_replicas=4)
    assert len(sampler) <= lengths.sum() / 1024 + 8
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        found = np.array(loads(sampler)).reshape(-1, 4)
        assert found.max() <= 1024
        assert found.min() >= 0.9 * found.mean()
        assert (np.ptp(found, axis=1)[:-1] <= 32).mean() > 0.9  # processes do not wait for one another
    together = [{frozenset(pair) for batch in epoch for pair in pairwise(batch)} for epoch in epochs]
    assert all(len(one & other) < 0.1 * len(one) for one, other in [together[:2], together[1:]])
    # Another seed is another order; a batch's place in the epoch is not that of its load.
    assert list(TokenBudgetBatchSampler(lengths, 1024, seed=seed + 1, num_replicas=4)) != epochs[0]
    first, last = np.array_split(loads(sampler), 2)
    assert abs(first.mean() - last.mean()) < 0.01 * first.mean()


def test_samples_of_different_lengths_meet_others_too() -> None:
    """No two lengths are the same, and some are a little below or over the budget."""
    lengths = [*range(20, 140), *range(990, 1010)]
    sampler = TokenBudgetBatchSampler(lengths, 1000)
    pairs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        pairs.append({frozenset(pair) for batch in sampler for pair in combinations(batch, 2)})
    assert len(pairs[0] & pairs[1]) < 0.3 * len(pairs[0])


def test_a_sample_over_the_budget_is_alone() -> None:
    lengths = [9, 3, 40, 4, 7, 30, 2, 5]
    sampler = TokenBudgetBatchSampler(lengths, 10, num_replicas=2)
    for epoch in range(20):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        rounds = list(zip(batches[::2], batches[1::2], strict=True))
        assert [5] in batches
        # The two long ones are computed at the same time.
        assert any({2, 5} == {*one, *other} for one, other in rounds)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, tuple])
def test_lengths_of_any_kind(kind: Any) -> None:
    batches = list(TokenBudgetBatchSampler(kind([5, 3, 3, 5]), 8))
    assert sorted(map(len, batches)) == [2, 2]
    assert all(type(index) is int for batch in batches for index in batch)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 60), st.integers(2, 4))
@settings(max_examples=50)
def test_a_budget_that_processes_cannot_share_says_which_one_is_enough(
    lengths: list[int], max_tokens: int, num_replicas: int
) -> None:
    assume(len(lengths) >= num_replicas)
    try:
        TokenBudgetBatchSampler(lengths, max_tokens, num_replicas=num_replicas)
        message = ""
    except ValueError as error:
        message = str(error)
    if message:
        enough = int(message.removeprefix("max_tokens must be at least ").split()[0])
        assert enough > max_tokens
        assert len(TokenBudgetBatchSampler(lengths, enough, num_replicas=num_replicas))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": []}, r"^lengths must hold a sample for each of 1 processes, got 0$"),
        ({"lengths": [3, 4], "num_replicas": 3}, r"^lengths must hold a sample for each of 3 processes, got 2$"),
        ({"lengths": [3, 0, 4]}, r"^lengths must be at least 1, got 0 at index 1$"),
        ({"lengths": [3.5, 4.0]}, r"^lengths must be whole numbers, one a sample, got shape \(2,\) and dtype float64"),
        ({"lengths": [[3, 4]]}, r"^lengths must be whole numbers, one a sample, got shape \(1, 2\)"),
        ({"lengths": [True, True]}, r"^lengths must be whole numbers, .* dtype bool"),
        ({"lengths": 7}, r"^lengths must be whole numbers, .* shape \(\)"),
        ({"max_tokens": 0}, r"^max_tokens must be a whole number of at least 1, got 0$"),
        ({"max_tokens": 8.0}, r"^max_tokens must be a whole number of at least 1, got 8.0$"),
        ({"seed": -1}, r"^seed must be a whole number of at least 0, got -1$"),
        ({"num_replicas": 0}, r"^num_replicas must be a whole number of at least 1, got 0$"),
        ({"max_tokens": 5, "lengths": [5, 5, 4], "num_replicas": 2}, r"^max_tokens must be at least 9 for these 3"),
    ],
)
def test_bad_arguments_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"lengths": [3, 4, 5], "max_tokens": 8} | changes
    with pytest.raises(ValueError, match=message):
        TokenBudgetBatchSampler(**arguments)


def test_epoch_must_be_whole() -> None:
    with pytest.raises(ValueError, match=r"^epoch must be a whole number of at least 0, got -1$"):
        TokenBudgetBatchSampler([3], 8).set_epoch(-1)


class Processes:
    """An accelerator of one of several processes that are not there."""

    def __init__(self, rank: int, num_processes: int) -> None:
        self.rank, self.num_processes = rank, num_processes

    def prepare(self, loader: DataLoader) -> Any:
        return prepare_data_loader(
            loader, num_processes=self.num_processes, process_index=self.rank, put_on_device=False
        )


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_a_loader_follows_the_epoch_where_it_skips_batches_too(num_processes: int) -> None:
    """As Trainer does it: set the epoch, skip what a checkpoint has seen; epochs that nobody sets follow."""
    lengths = np.random.default_rng(1).integers(1, 40, 200).tolist()
    expected = []
    for epoch in range(4):
        whole = TokenBudgetBatchSampler(lengths, 100, seed=5, num_replicas=num_processes)
        whole.set_epoch(epoch)
        expected.append(list(whole))
    for rank in range(num_processes):
        sampler = TokenBudgetBatchSampler(lengths, 100, seed=5, num_replicas=num_processes)
        loader: Any = prepare_loader(Processes(rank, num_processes), range(200), sampler, list)  # type: ignore[arg-type]
        for epoch in range(2):
            assert list(loader) == expected[epoch][rank::num_processes]
        resumed = skip_first_batches(loader, 2)
        resumed.set_epoch(3)
        assert list(resumed) == expected[3][rank::num_processes][2:]
        loader.set_epoch(1)
        assert list(loader) == expected[1][rank::num_processes]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_epochs_follow_one_another_in_a_loader_that_accelerate_prepares(num_processes: int) -> None:
    lengths = np.random.default_rng(1).integers(1, 40, 200).tolist()
    sampler = TokenBudgetBatchSampler(lengths, 100, seed=5, num_replicas=num_processes)
    loader = Processes(0, num_processes).prepare(DataLoader(range(200), batch_sampler=sampler, collate_fn=list))
    for epoch in range(3):
        found = list(loader)
        sampler.set_epoch(epoch)
        assert found == list(sampler)[::num_processes]


def test_a_loader_refuses_another_dataset_and_other_processes() -> None:
    sampler = TokenBudgetBatchSampler([3, 4, 5], 8, num_replicas=1)
    with pytest.raises(ValueError, match=r"^dataset must hold the sampler's 3 samples, got 4$"):
        prepare_loader(Processes(0, 1), range(4), sampler, list)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^sampler must be made with num_replicas=2, the number of processes; got 1"):
        prepare_loader(Processes(0, 2), range(3), sampler, list)  # type: ignore[arg-type]


def test_a_million_lengths_need_few_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted on a hundredth of them: what takes time is a pass over the samples."""
    from erniem_fast.training import sampler as module

    passes = []
    assign = module._assign
    monkeypatch.setattr(module, "_assign", lambda *arguments: passes.append(1) or assign(*arguments))
    lengths = np.random.default_rng(2).integers(100, 250, 10_000)
    TokenBudgetBatchSampler(lengths, 4096)
    assert len(passes) <= 12
    passes.clear()
    TokenBudgetBatchSampler(lengths, 512, num_replicas=2)  # two samples a batch: far from the bound by tokens
    assert len(passes) <= 24
