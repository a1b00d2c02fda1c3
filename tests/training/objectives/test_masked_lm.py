"""MMLM and TLM: every token sees its whole sample, and only that."""

from typing import Any

from helpers.objectives import (
    CLS,
    SEP,
    Chosen,
    TinyTokenizer,
    losses_and_gradients,
    masked_pairs,
    models,
    padded,
    padded_pairs,
    rng,
)
from helpers.pairs import assert_close
from hypothesis import given, settings

from erniem_fast.training.objectives import MMLM, TLM


@settings(max_examples=4)
@given(drawn=masked_pairs())
def test_tlm_is_the_padded_reference(drawn: Any) -> None:
    samples, places = drawn
    objective = TLM(TinyTokenizer(), mask_share=1.0, random_share=0.0)
    Chosen(objective, places)
    ids, labels, sides = padded_pairs(samples, places)
    batch = objective(samples, rng())
    found, expected = losses_and_gradients(batch, input_ids=ids, attention_mask=(sides >= 0).long(), labels=labels)
    assert_close(found, expected, 1e-12)
    assert "prefix_lens" not in batch


def test_mmlm_is_the_padded_reference() -> None:
    """Masks, random and kept tokens alike."""
    samples = [[4, 6, 9], [12, 13, 16, 18, 20], [30]]
    batch = MMLM(TinyTokenizer(), mask_probability=0.6)(samples, rng(1))
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    ends = batch["cu_seq_lens_q"].tolist()[1:-1]
    rows = padded([part.tolist() for part in ids.tensor_split(ends)])
    targets = padded([part.tolist() for part in labels.tensor_split(ends)], -100)
    assert (targets != -100).sum() > 2
    found, expected = losses_and_gradients(batch, input_ids=rows, labels=targets)
    assert_close(found, expected, 1e-12)


def test_layout() -> None:
    batch = TLM(TinyTokenizer(), mask_probability=0, first_position=2)([([4, 5], [6]), ([7], [8, 9])], rng())
    assert batch["input_ids"].tolist() == [[CLS, 4, 5, SEP, SEP, 6, SEP, CLS, 7, SEP, SEP, 8, 9, SEP]]
    assert batch["position_ids"].tolist() == [[2, 3, 4, 5, 6, 7, 8] * 2]
    assert batch["cu_seq_lens_q"].tolist() == [0, 7, 14]
    loss = models()[1](**(batch | {"position_ids": batch["position_ids"] - 2})).loss
    loss.backward()
    assert loss == 0
