"""What XLM alone has: its states at padding are transformers', lengths, languages, beams, a triangle, no cache."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.families import (
    FAMILIES,
    NO_DROPOUT,
    assert_close,
    assert_same_outputs,
    batch,
    exact_softmax,
    for_head,
    labels_for,
    make,
    real_of,
    tensors,
)
from transformers import DynamicCache

TOKENS = ["Model", "ForTokenClassification", "ForQuestionAnsweringSimple", "ForQuestionAnswering"]
"""Heads that read no first token."""
CASES = [
    pytest.param(family, head, padding, marks=() if (family, padding) == ("xlm", "right") else pytest.mark.slow)
    for family in ("xlm", "sinusoidal xlm", "causal xlm")
    for head in TOKENS
    for padding in ("right", "left", "holes", "no mask", "empty row")
]


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    with exact_softmax():
        yield


@pytest.mark.parametrize(("family", "head", "padding"), CASES)
def test_padding_too_is_transformers(family: str, head: str, padding: str) -> None:
    """Transformers zeroes it, so that every output and the loss are the same."""
    plain, fast = make(family, head)
    inputs = batch(family, padding)
    inputs |= labels_for(family, head, inputs)
    with torch.no_grad():
        found, expected = (model(**inputs, output_hidden_states=True) for model in (fast, plain))
    assert_same_outputs(found, expected)


@pytest.mark.parametrize("head", [
    "ForQuestionAnswering", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES["xlm"].heads)
])  # fmt: skip
def test_no_cache_is_filled(head: str, monkeypatch: pytest.MonkeyPatch, rows: list[int]) -> None:
    """Transformers keeps keys and values of every layer, which nobody reads."""
    plain, fast = make("xlm", head, num_hidden_layers=1)
    filled: list[int] = []
    update = DynamicCache.update
    monkeypatch.setattr(DynamicCache, "update", lambda *a, **given: filled.append(1) or update(*a, **given))
    inputs = for_head("xlm", head, batch("xlm", "none"))
    with torch.no_grad():
        expected, found = tensors(plain(**inputs)), tensors(fast(**inputs))
    assert filled == [1]
    assert rows == [36]
    for name, value in expected.items():  # of a beam search, places included
        assert_close(found[name].double(), value.double(), name=name)


def test_beams_with_a_mask_of_places() -> None:
    plain, fast = make("xlm", "ForQuestionAnswering")
    inputs = batch("xlm")
    p_mask = torch.randint(2, (4, 9)).double()
    p_mask[:, 0] = 0
    with torch.no_grad():
        found, expected = (
            model(**inputs, p_mask=p_mask, cls_index=torch.tensor([0, 1, 2, 0])) for model in (fast, plain)
        )
    assert_close(found.cls_logits, expected.cls_logits)
    assert_close(found.start_top_log_probs, expected.start_top_log_probs)


def test_lengths_instead_of_a_mask(rows: list[int]) -> None:
    plain, fast = make("xlm", "WithLMHeadModel")
    inputs = batch("xlm")
    mask = inputs.pop("attention_mask")
    inputs["input_ids"] = torch.randint(3, 60, mask.shape)
    with torch.no_grad():
        found, expected = (model(**inputs, lengths=mask.sum(1)).logits for model in (fast, plain))
    assert_close(found[mask == 1], expected[mask == 1])
    assert rows == [20, 20]
    wrong: list[tuple[Any, str]] = [
        (mask.sum(1) + 5, "lengths must be at most 9"),
        (mask.sum(1)[:3], "lengths must have"),
    ]
    for lengths, message in wrong:
        with pytest.raises(ValueError, match=message):
            fast(**inputs, lengths=lengths)


def test_without_a_mask_as_many_columns_as_ids_that_are_not_the_pad_id() -> None:
    """Wherever those stand."""
    plain, fast = make("xlm")
    inputs = batch("xlm", "no mask")
    real = real_of("xlm", inputs)
    assert not real.all()
    with torch.no_grad():
        found, expected = (model(**inputs).last_hidden_state for model in (fast, plain))
        assert_close(found, expected)
        inputs["inputs_embeds"] = plain.embeddings(inputs.pop("input_ids"))  # then all are seen
        found, expected = (model(**inputs).last_hidden_state for model in (fast, plain))
    assert_close(found, expected)
    assert (found[~real] != 0).all()


@pytest.mark.parametrize("given", [("langs",), ("token_type_ids",), ()], ids=str)
def test_languages_and_token_types_are_read_where_they_are_given(given: tuple[str, ...]) -> None:
    """Left out, nothing is added; token types read the table of words."""
    plain, fast = make("xlm")
    inputs = batch("xlm", "none")
    with torch.no_grad():
        whole = fast(**inputs).last_hidden_state
        inputs = {name: ids for name, ids in inputs.items() if name not in ("langs", "token_type_ids") or name in given}
        found, expected = (model(**inputs).last_hidden_state for model in (fast, plain))
    assert_close(found, expected)
    assert float((found - whole).abs().max()) > 1e-3


def test_a_token_of_a_causal_model_sees_none_behind_it() -> None:
    _, fast = make("causal xlm", **NO_DROPOUT)
    ids = torch.randint(3, 60, (1, 9))
    other = ids.clone()
    other[0, 5] = (ids[0, 5] + 7) % 57 + 3
    with torch.no_grad():
        one, two = (fast(given).last_hidden_state for given in (ids, other))
    assert torch.equal(one[0, :5], two[0, :5])
    assert (one[0, 5:] != two[0, 5:]).any(-1).all()


def test_fewer_layers_by_their_number() -> None:
    plain, fast = make("xlm")
    inputs = batch("xlm")
    for model in (plain, fast):
        model.n_layers = 1
    with torch.no_grad():
        assert_same_outputs(fast(**inputs), plain(**inputs))


@pytest.mark.parametrize("logits_to_keep", [0, 1, 3])
def test_generation(logits_to_keep: int) -> None:
    """Transformers' greedy search with XLM's mask token, and the logits of the last columns alone."""
    plain, fast = make("causal xlm", "WithLMHeadModel", mask_token_id=5)
    ids = torch.randint(6, 60, (2, 4))
    with torch.no_grad():
        found, expected = (model(ids, logits_to_keep=logits_to_keep).logits for model in (fast, plain))
        assert_close(found, expected)
        options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
        assert torch.equal(fast.generate(ids, **options), plain.generate(ids, **options))
