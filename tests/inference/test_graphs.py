"""Buckets of CUDA graphs; the graphs themselves wait for a GPU (tests/gpu)."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_fast import GraphedEncoder, PackedBatch
from erniem_fast.inference.graphs import SEQUENCES, TOKENS, Captured, _bucket, _refill, in_bucket


def random_batch(lengths: list[int]) -> PackedBatch:
    return PackedBatch.from_sequences([torch.randint(2, 97, (length,)) for length in lengths])


@pytest.mark.parametrize(
    ("lengths", "backend"),
    [
        ([9, 30, 0, 1], "torch"),
        ([64], "torch"),
        ([0], "torch"),
        *(pytest.param(lengths, "triton", marks=pytest.mark.slow) for lengths in ([9, 30, 0, 1], [64], [0])),
    ],
)
def test_a_bucket_changes_nothing(
    lengths: list[int], backend: str, make_pair: Callable[..., Any], device: torch.device, monkeypatch: Any
) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    model = make_pair(dtype=torch.float32)[1].to(device)
    model.backend = backend
    batch = random_batch(lengths).to(device)
    padded = in_bucket(batch, 96, 8, model.config.max_tokens)
    assert (padded.total_tokens, padded.num_sequences, padded.max_seqlen) == (96, 8, 64)
    monkeypatch.setattr(PackedBatch, "_check_values", lambda *_: None)  # as on a GPU, where values are not read
    with torch.no_grad():
        expected, found = (model(given, return_packed=True) for given in (batch, padded))
    assert found.last_hidden_state.isfinite().all()
    for name, count in (("last_hidden_state", batch.total_tokens), ("pooler_output", batch.num_sequences)):
        torch.testing.assert_close(found[name][:count], expected[name], rtol=1e-5, atol=1e-5)


@settings(max_examples=30)
@given(
    one=st.lists(st.integers(0, 12), min_size=1, max_size=6), two=st.lists(st.integers(0, 12), min_size=1, max_size=6)
)
def test_a_bucket_is_filled_again(one: list[int], two: list[int]) -> None:
    static, batch = in_bucket(random_batch(one), 80, 6, 64), random_batch(two)
    _refill(static, batch)
    fresh = in_bucket(batch, 80, 6, 64)
    assert torch.equal(static.cu_seqlens, fresh.cu_seqlens)
    for name in ("input_ids", "position_ids"):
        assert torch.equal(getattr(static, name)[: batch.total_tokens], getattr(batch, name))


def test_the_smallest_bucket_that_holds_it() -> None:
    assert [_bucket((32, 48, 64), size) for size in (0, 1, 32, 33, 64, 65)] == [32, 32, 32, 48, 64, None]
    for sizes in (TOKENS, SEQUENCES):
        assert all(one < two <= 2 * one for one, two in itertools.pairwise(sizes))
    assert all(_bucket(TOKENS, size) <= 1.5 * size for size in range(32, TOKENS[-1]))


class Replayed(GraphedEncoder):
    """All but the graph."""

    device_type = "cpu"
    captures = 0

    def _capture(self, batch: PackedBatch) -> Captured:
        self.captures += 1
        room = self._room(batch)
        return Captured(SimpleNamespace(replay=lambda: self._run(batch, *room)), batch, *room)  # type: ignore[arg-type]


def test_batches_find_their_buckets(make_pair: Callable[..., Any], monkeypatch: Any) -> None:
    model = make_pair(dtype=torch.float32)[1]
    encoder = Replayed(model, tokens=(8, 32, 64), sequences=(2, 4), max_graphs=2)
    monkeypatch.setattr(PackedBatch, "_check_values", lambda *_: None)
    found = []
    #        8 x 2   32 x 2  8 x 2   64 x 4   32 x 2 again   beyond: no graph
    for lengths, captures in (
        ([3, 4], 1),
        ([9], 2),
        ([8], 2),
        ([20, 0, 30], 3),
        ([30, 2], 4),
        ([60, 5], 4),
        ([1] * 5, 4),
    ):
        batch = random_batch(lengths)
        with torch.no_grad():
            expected = model(batch, return_packed=True)
        output = encoder(batch)
        assert encoder.captures == captures
        assert output.batch is batch
        found.append((output, expected))
    for output, expected in found:  # results of one batch outlive the next ones
        for name in ("last_hidden_state", "pooler_output"):
            assert not output[name].requires_grad
            torch.testing.assert_close(output[name], expected[name], rtol=1e-5, atol=1e-5)


def test_graphs_of_other_modes_are_others(make_pair: Callable[..., Any], monkeypatch: Any) -> None:
    encoder = Replayed(make_pair(dtype=torch.float32)[1])
    monkeypatch.setattr(PackedBatch, "_check_values", lambda *_: None)
    encoder(random_batch([3]))
    monkeypatch.setattr("erniem_fast.inference.graphs.is_batch_invariant", lambda: True)
    encoder(random_batch([4]))
    assert encoder.captures == 2


def test_what_graphs_would_leave_out_is_refused(make_pair: Callable[..., Any]) -> None:
    model = make_pair(dtype=torch.float32)[1]
    encoder, batch = Replayed(model), random_batch([3, 4])
    with pytest.raises(ValueError, match="prefix_lens must be None"):
        encoder(replace(batch, prefix_lens=torch.tensor([1, 2], dtype=torch.int32)))
    with pytest.raises(ValueError, match="inputs_embeds must be None"):
        encoder(replace(batch, input_ids=None, inputs_embeds=torch.randn(7, 32)))
    with pytest.raises(ValueError, match="batch must be on cpu, where the model is, got meta"):
        encoder(batch.to("meta"))
    hook = model.encoder.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="no forward hooks"):
        encoder(batch)
    hook.remove()
    model.train()
    with pytest.raises(ValueError, match="eval mode"):
        encoder(batch)
    for wrong in ({"tokens": (8, 8)}, {"sequences": ()}, {"tokens": (0, 4)}, {"max_graphs": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Replayed(model, **wrong)


def test_graphs_need_a_gpu(make_pair: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="model must be on a CUDA device, got cpu"):
        GraphedEncoder(make_pair()[1])


def test_further_ids_fill_their_bucket() -> None:
    ids = {"token_type_ids": torch.tensor([0, 1, 1, 0, 1])}
    batch = replace(PackedBatch.from_sequences([[5, 6, 7], [8, 9]]), token_ids=ids)
    static = in_bucket(batch, 8, 4, 64)
    assert static.token_ids["token_type_ids"].tolist() == [0, 1, 1, 0, 1, 0, 0, 0]
    _refill(static, replace(PackedBatch.from_sequences([[5, 6]]), token_ids={"token_type_ids": torch.tensor([2, 3])}))
    assert static.token_ids["token_type_ids"].tolist()[:2] == [2, 3]
