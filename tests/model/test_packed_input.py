"""Packed input: rows that hold several sequences, offsets and batches that cannot be right."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pairs import CLASSES, assert_close, labels_for, make
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DataCollatorWithFlattening

from erniem_fast import PackedBatch, reference
from erniem_fast.validation import Limits

LENGTHS = (7, 3, 10, 1)


def restarting(lengths: tuple[int, ...] | list[int]) -> dict[str, Tensor]:
    """Sequences in a lone row, as DataCollatorWithFlattening makes them."""
    ids = [{"input_ids": torch.randint(2, 100, (length,)).tolist()} for length in lengths]
    flattened = DataCollatorWithFlattening(return_tensors="pt")(ids)
    assert set(flattened) == {"input_ids", "position_ids", "labels"}
    return {name: flattened[name] for name in ("input_ids", "position_ids")}


def offsets(lengths: tuple[int, ...] | list[int]) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


@settings(max_examples=20)
@given(lengths=st.lists(st.integers(1, 12), min_size=2, max_size=8))
def test_a_row_whose_positions_restart_is_read_as_packed(lengths: list[int]) -> None:
    _, model = make()
    inputs = restarting(lengths)
    with torch.no_grad():
        expected = model(**inputs, cu_seq_lens_q=offsets(lengths), max_length_q=max(lengths))
        found = model(**inputs)
        embedded = model(inputs_embeds=model.embeddings.word_embeddings(inputs["input_ids"]), **{
            "position_ids": inputs["position_ids"]
        })  # fmt: skip
    for output in (found, embedded):
        assert output.last_hidden_state.shape == (1, sum(lengths), 32)
        assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
        assert torch.equal(output.pooler_output, expected.pooler_output)


def test_it_may_hold_more_tokens_than_a_sequence() -> None:
    _, model = make()
    inputs = restarting([60, 64, 9])
    with torch.no_grad():
        assert model(**inputs).pooler_output.shape == (3, 32)
        inputs["position_ids"][0, 124:] = torch.arange(64, 73)
        with pytest.raises(ValueError, match=r"position_ids must lie in \[0, 64\) .* got 72"):
            model(**inputs)


@pytest.mark.parametrize("name", ["ErnieMForTokenClassification", "ErnieMForSequenceClassification"])
def test_heads_read_it_too(name: str) -> None:
    _, model = make(name)
    inputs = restarting(LENGTHS)
    shape = (1, sum(LENGTHS)) if "Token" in name else (len(LENGTHS),)
    inputs["labels"] = torch.randint(2, shape)
    with torch.no_grad():
        expected = model(**inputs, cu_seq_lens_q=offsets(LENGTHS), max_length_q=10)
        found = model(**inputs)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.loss, expected.loss)


def test_other_rows_stay_one_sequence() -> None:
    """With a mask, with positions that jump or start later, in the reference: nothing restarts."""
    plain, model = make()
    inputs = restarting(LENGTHS)
    ids, total = inputs["input_ids"], sum(LENGTHS)
    jumping = inputs["position_ids"].clone()
    jumping[0, -2] = 40
    later = inputs["position_ids"] + 1
    cases: list[dict[str, Any]] = [
        inputs | {"attention_mask": torch.ones_like(ids)},
        {"input_ids": ids, "position_ids": jumping},
        {"input_ids": ids, "position_ids": later},
        {"input_ids": ids, "position_ids": torch.arange(total)[None]},
        {"input_ids": ids.expand(2, -1), "position_ids": inputs["position_ids"].expand(2, -1)},
    ]
    with torch.no_grad():
        for case in cases:
            found, expected = model(**case), plain(**case)
            assert found.pooler_output.shape == expected.pooler_output.shape
            torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-10)
        assert plain(**inputs).pooler_output.shape == (1, 32)


@pytest.mark.slow
def test_under_compile_in_one_graph_the_offsets_must_be_given() -> None:
    _, model = make()
    inputs = restarting(LENGTHS)
    with torch.no_grad():
        expected = model(**inputs).pooler_output
        assert torch.equal(torch.compile(model, backend="eager")(**inputs).pooler_output, expected)
        torch._dynamo.reset()
        whole = torch.compile(model, backend="eager", fullgraph=True)
        with pytest.raises(torch._dynamo.exc.Unsupported, match=r"ValueError\('cu_seq_lens_q must be given with"):
            whole(**inputs)
        output = whole(**inputs, cu_seq_lens_q=offsets(LENGTHS), max_length_q=10)
    assert torch.equal(output.pooler_output, expected)


@pytest.mark.parametrize("name", CLASSES)
def test_training_on_batches_of_nothing(name: str) -> None:
    """All padding, or sequences without tokens: no NaN, no error."""
    _, model = make(name, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3, act_dropout=0.2)
    model.train()
    shape = (2, 3, 4) if "MultipleChoice" in name else (2, 4)
    ids = torch.ones(shape, dtype=torch.int64)
    for inputs in (
        {"input_ids": ids, "attention_mask": torch.zeros_like(ids)},
        {"input_ids": PackedBatch.from_sequences([[], []])},
    ):
        if "MultipleChoice" in name and isinstance(inputs["input_ids"], PackedBatch):
            continue
        model.zero_grad()
        output = model(**inputs)
        values = [value for value in output.values() if isinstance(value, Tensor)]
        assert values
        assert all(value.isfinite().all() for value in values)
        sum(value.clamp(-1e6, 1e6).sum() for value in values).backward()  # type: ignore[union-attr]
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def good() -> dict[str, Any]:
    return {"input_ids": torch.randint(2, 100, (1, 9)), "cu_seq_lens_q": torch.tensor([0, 4, 9], dtype=torch.int32)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cu_seq_lens_q": torch.tensor([0, 2**32, 9])}, ValueError, "must start at 0, never fall and end at 9"),
        ({"cu_seq_lens_q": torch.tensor([0, 4, 2**32 + 9])}, ValueError, "must start at 0, never fall and end at 9"),
        ({"cu_seq_lens_q": torch.tensor([-(2**32), 4, 9])}, ValueError, "must start at 0, never fall and end at 9"),
        ({"cu_seq_lens_q": [0, 4, 9]}, TypeError, "cu_seq_lens_q must be a tensor, got list"),
        ({"cu_seq_lens_q": torch.tensor([0, 4, 9]).to_sparse()}, TypeError, "cu_seq_lens_q must be a dense tensor"),
        ({"cu_seq_lens_k": [0, 4, 9]}, TypeError, "cu_seq_lens_k must be a tensor, got list"),
        ({"cu_seq_lens_k": torch.tensor([0.0, 4.0, 9.0])}, TypeError, "cu_seq_lens_k must be int64 or int32"),
        ({"cu_seq_lens_k": torch.tensor([0, 5, 9])}, ValueError, "cu_seq_lens_k must equal cu_seq_lens_q"),
        (
            {"cu_seq_lens_k": torch.tensor([0, 4, 9], device="meta")},
            ValueError,
            "cu_seq_lens_k must be on cpu, where cu_seq_lens_q is, got meta",
        ),
        ({"max_length_q": 2**63}, ValueError, r"max_length_q\) must lie in \[0, 2147483647\], got 9223372036854775808"),
        ({"max_length_q": -1}, ValueError, r"max_length_q\) must lie in .* got -1"),
        ({"max_length_q": 5.0}, TypeError, "max_length_q must be an int, got float"),
        ({"max_length_q": 4}, ValueError, "must be at least 5, the longest sequence, got 4"),
        ({"prefix_lens": torch.tensor([1])}, ValueError, r"prefix_lens must have shape \(2,\) \(num_sequences\), got"),
        ({"prefix_lens": torch.tensor([5, 2])}, ValueError, "prefix_lens must lie between 0 and the length of each"),
        ({"prefix_lens": [1, 2]}, TypeError, "prefix_lens must be a tensor, got list"),
        ({"input_ids": torch.randint(2, 100, (1, 9)).to_sparse()}, TypeError, "input_ids must be a dense tensor"),
        ({"input_ids": [[1, 2]]}, TypeError, "input_ids must be a tensor, got list"),
        ({"position_ids": [[1, 2]]}, TypeError, "position_ids must be a tensor, got list"),
    ],
)
def test_bad_packed_input_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    _, model = make()
    with torch.no_grad():
        assert model(**good()).last_hidden_state.isfinite().all()
        with pytest.raises(error, match=message):
            model(**(good() | change))


@pytest.mark.parametrize("dense", [False, True])
def test_prefixes(dense: bool) -> None:
    """Of flattened input: tokens before a sequence's prefix length do not see those behind it."""
    plain, model = make()
    inputs = good() | {"prefix_lens": torch.tensor([3, 2])}
    with torch.no_grad():
        found = model(**inputs, output_attentions=dense).last_hidden_state[0]
        for (begin, end), prefix in zip(((0, 4), (4, 9)), (3, 2), strict=True):
            places = torch.arange(end - begin)
            sees = (places < prefix) | (places[:, None] >= prefix)
            alone = plain(inputs["input_ids"][:, begin:end], attention_mask=sees[None].long()).last_hidden_state[0]
            assert_close(found[begin:end], alone)
        with pytest.raises(ValueError, match="prefix_lens must be None: the reference takes padded batches only"):
            reference.ErnieMForMaskedLM(plain.config)(good()["input_ids"], prefix_lens=inputs["prefix_lens"])


def test_int64_offsets_are_taken() -> None:
    _, model = make()
    inputs = good()
    with torch.no_grad():
        expected = model(**inputs)
        found = model(**(inputs | {"cu_seq_lens_q": inputs["cu_seq_lens_q"].long()}))
        batch = PackedBatch(inputs["cu_seq_lens_q"].long(), 5, torch.arange(9) % 5, inputs["input_ids"][0])
        by_hand = model(replace(batch, position_ids=torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4])))
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(by_hand.last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"indices": torch.tensor([0, 1, 2, 3, 5, 6, 7, 8])}, ValueError, r"indices must have shape \(9,\)"),
        ({"indices": torch.arange(9) + 40}, ValueError, "indices must rise, and those of sequence i lie in line i"),
        ({"indices": torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8])}, ValueError, "indices must rise"),
        ({"indices": torch.tensor([3, 2, 1, 0, 6, 7, 8, 9, 10])}, ValueError, "indices must rise"),
        ({"indices": [0, 1]}, TypeError, "indices must be a tensor, got list"),
        ({"token_ids": None}, TypeError, "token_ids must be a dict of tensors, got NoneType"),
        ({"padded_shape": (3, 6)}, ValueError, r"padded_shape must be .*, got \(3, 6\)"),
        ({"padded_shape": (2, 4)}, ValueError, r"padded_shape must be \(num_sequences, 5 or more\), got \(2, 4\)"),
        ({"padded_shape": None}, ValueError, "indices must be None without padded_shape"),
        ({"max_seqlen": 5.0}, TypeError, "max_seqlen .* must be an int, got float"),
        ({"cu_seqlens": None}, TypeError, "cu_seqlens must be a tensor, got NoneType"),
        ({"position_ids": None}, TypeError, "position_ids must be a tensor, got NoneType"),
        (
            {"token_ids": {"task_type_ids": torch.zeros(8, dtype=torch.int64)}},
            ValueError,
            "no further ids; got task_type_ids",
        ),
    ],
)
def test_a_batch_made_by_hand_is_checked(change: dict[str, Any], error: type[Exception], message: str) -> None:
    _, model = make()
    positions = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4])
    batch = PackedBatch(
        torch.tensor([0, 4, 9], dtype=torch.int32), 5, positions, torch.randint(2, 100, (9,)),
        indices=torch.tensor([0, 1, 2, 3, 6, 7, 8, 9, 10]), padded_shape=(2, 6),
    )  # fmt: skip
    with torch.no_grad():
        assert model(batch).last_hidden_state.shape == (2, 6, 32)
        with pytest.raises(error, match=message):
            model(replace(batch, **change))


@pytest.mark.parametrize(
    ("sequences", "error", "message"),
    [
        ([[1, 2], [3.7, 4]], TypeError, r"sequences\[1\] must hold integers, got torch.float32"),
        ([torch.tensor([1.0])], TypeError, r"sequences\[0\] must hold integers, got torch.float32"),
        ([torch.tensor([True])], TypeError, r"sequences\[0\] must hold integers, got torch.bool"),
        ({"input_ids": [[1, 2]]}, TypeError, r"sequences\[0\] must hold integers, got 'input_ids'"),
        ([[1], "text"], TypeError, r"sequences\[1\] must hold integers, got 'text'"),
        ([[1], None], TypeError, r"sequences\[1\] must hold integers, got NoneType"),
        ([[1], [2, None]], TypeError, r"sequences\[1\] must hold integers, got list"),
        ([[1], [[2, 3]]], ValueError, r"sequences\[1\] must have shape \(length,\), got \(1, 2\)"),
        ([], ValueError, "at least one sequence, got none"),
    ],
)
def test_from_sequences_takes_integers(sequences: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PackedBatch.from_sequences(sequences)


def test_further_ids_are_checked_and_clamped() -> None:
    limits = Limits.of(make()[0].config)._replace(token_ids={"token_type_ids": 2})
    weight = torch.zeros(1, dtype=torch.float64)
    batch = PackedBatch.from_sequences([torch.arange(2, 6), torch.arange(5)])
    for ids, message in ((torch.arange(9), r"token_type_ids must lie in \[0, 2\)"), (torch.ones(8).long(), "shape")):
        with pytest.raises(ValueError, match=message):
            replace(batch, token_ids={"token_type_ids": ids}).checked(limits, weight, False)
    unread = replace(batch, token_ids={"token_type_ids": torch.arange(9, device="meta")}).to("meta")
    assert unread.checked(limits, weight.to("meta"), False).token_ids["token_type_ids"].shape == (9,)


def test_int32_indices_are_taken() -> None:
    _, model = make()
    batch = replace(PackedBatch.from_sequences([[5, 6, 7], [8]]), padded_shape=(2, 4))
    indices = torch.tensor([0, 2, 3, 5])
    with torch.no_grad():
        expected = model(replace(batch, indices=indices), output_attentions=True)
        found = model(replace(batch, indices=indices.int()), output_attentions=True)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(found.attentions[0], expected.attentions[0])


@pytest.mark.parametrize("sequence", [None, {1: 2}, torch.tensor([1, 2]).to_sparse()])
def test_a_sequence_that_is_no_list_of_integers(sequence: Any) -> None:
    with pytest.raises(TypeError, match=r"sequences\[1\] must"):
        PackedBatch.from_sequences([[3], sequence])


def test_further_ids_travel_with_the_batch() -> None:
    ids = {"token_type_ids": torch.arange(9)}
    batch = replace(PackedBatch.from_sequences([torch.arange(2, 6), torch.arange(5)]), token_ids=ids)
    moved = batch.to("meta")
    assert moved.token_ids["token_type_ids"].device.type == "meta"
    assert torch.equal(batch.to("cpu").token_ids["token_type_ids"], torch.arange(9))


def test_labels_of_a_restarting_row_count_each_token_once() -> None:
    plain, model = make("ErnieMForTokenClassification", hidden_dropout_prob=0.0)
    inputs = restarting(LENGTHS)
    labels = labels_for("ErnieMForTokenClassification", {
        "input_ids": inputs["input_ids"], "attention_mask": torch.ones_like(inputs["input_ids"])
    })["labels"]  # fmt: skip
    found = model(**inputs, labels=labels).loss
    losses = []
    for ids, row in zip(inputs["input_ids"][0].split(LENGTHS), labels[0].split(LENGTHS), strict=True):
        losses.append(plain(ids[None], labels=row[None]).loss * len(row))
    torch.testing.assert_close(found, sum(losses) / sum(LENGTHS), rtol=0, atol=1e-10)
