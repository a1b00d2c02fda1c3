"""CAMLM leaks nothing of a sentence's own context into its predictions, through any number of layers."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers.objectives import (
    CLS,
    LAYERS,
    MARKERS,
    MASK,
    ORDINARY,
    SEP,
    Chosen,
    TinyTokenizer,
    losses_and_gradients,
    masked_pairs,
    models,
    padded_pairs,
    rng,
)
from helpers.pairs import assert_close
from hypothesis import given, settings
from torch import Tensor

from erniem_fast.training.objectives import CAMLM

X, Y = [4, 6, 8, 11, 14], [20, 23, 26, 28]
PLACES = [2, 4, 9, 11]
"""Two masks in each sentence: `[CLS] X [SEP] [SEP] Y [SEP]` has Y from place 8 on."""


def batch_of(samples: Any, places: Any, **options: Any) -> dict[str, Any]:
    objective = CAMLM(TinyTokenizer(), **options)
    Chosen(objective, places)
    return objective(samples, rng())


def states(model: Any, batch: dict[str, Any], embeds: Tensor | None = None) -> Tensor:
    """(total_tokens, hidden_size) of the last layer."""
    given = {name: value for name, value in batch.items() if name not in ("labels", "input_ids")}
    source = {"input_ids": batch["input_ids"]} if embeds is None else {"inputs_embeds": embeds}
    return model.ernie_m(**source, **given).last_hidden_state[0]


def test_layout() -> None:
    """Context before the bar, masks behind it, each token at its place in the pair."""
    batch = batch_of([(X, Y)], [PLACES])
    assert batch["input_ids"].tolist() == [[SEP, 20, 26, SEP, MASK, MASK, CLS, 4, 8, 14, SEP, MASK, MASK]]
    assert batch["position_ids"].tolist() == [[7, 8, 10, 12, 2, 4, 0, 1, 3, 5, 6, 9, 11]]
    assert batch["labels"].tolist() == [[-100] * 4 + [6, 11] + [-100] * 5 + [23, 28]]
    assert batch["prefix_lens"].tolist() == [4, 5]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 6, 13]
    assert batch["max_length_q"] == batch["max_length_k"] == 7
    assert batch["prefix_lens"].dtype == batch["cu_seq_lens_q"].dtype == torch.int32


def test_gradients_reach_the_other_sentence_and_own_masks_only() -> None:
    """Exactly 0 everywhere else, after four layers."""
    _, model = models()
    assert LAYERS >= 3
    batch = batch_of([(X, Y), (Y, X)], [PLACES, [1, 3, 10]])
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    rows = states(model, batch, embeds)
    # (pair, sentence) of each row, by its place in the pair: the second sentence's [SEP] is at 7, or at 6.
    pair = torch.tensor([0] * 13 + [1] * (rows.shape[0] - 13))
    sentence = (batch["position_ids"][0] >= torch.tensor([7, 6])[pair]).long()
    is_mask = batch["labels"][0] != -100
    assert is_mask.sum() == 7
    for row in is_mask.nonzero()[:, 0]:
        (grad,) = torch.autograd.grad(rows[row].sin().sum(), embeds, retain_graph=True)
        reached = (grad[0] != 0).any(1)
        own = (pair == pair[row]) & (sentence == sentence[row])
        other = (pair == pair[row]) & (sentence != sentence[row])
        assert not reached[own & ~is_mask].any(), "its own context"
        assert reached[own & is_mask].all(), "its own masks"
        assert reached[other & ~is_mask].all(), "the other sentence's context"
        assert not reached[other & is_mask].any(), "the other sentence's masks, which see its own context"
        assert not reached[pair != pair[row]].any()


@pytest.mark.parametrize("changed", [0, 1])
def test_outputs_are_bitwise_those_of_another_context(changed: int) -> None:
    """Predictions of a sentence stay when its own words change, bit for bit; the other's change."""
    _, model = models()
    results = []
    for word in (8, 50):
        sentences = [[word if token in (8, 26) else token for token in tokens] if side == changed else tokens
                     for side, tokens in enumerate((X, Y))]  # fmt: skip
        batch = batch_of([tuple(sentences)], [PLACES])
        with torch.no_grad():
            found = model.lm_head(states(model, batch))
        position, is_mask = batch["position_ids"][0], batch["labels"][0] != -100
        results.append([found[is_mask & (position < 7)], found[is_mask & (position >= 7)]])
    one, other = results
    assert len(one[0]) == len(one[1]) == 2
    assert torch.equal(one[changed], other[changed])
    assert (one[1 - changed] != other[1 - changed]).any(1).all()


@settings(max_examples=8)
@given(drawn=masked_pairs())
def test_is_the_padded_reference_with_an_explicit_mask(drawn: Any) -> None:
    """One row a pair, each token once, and a (batch, queries, keys) mask: the same loss and gradients."""
    samples, places = drawn
    batch = batch_of(samples, places)
    ids, labels, sides = padded_pairs(samples, places)
    masked = labels != -100
    same = sides[:, :, None] == sides[:, None]
    context, mask = ~masked & (sides >= 0), masked
    sees = (
        (context[:, :, None] & context[:, None] & same)
        | (mask[:, :, None] & mask[:, None] & same)
        | (mask[:, :, None] & context[:, None] & ~same)
    )
    found, expected = losses_and_gradients(batch, input_ids=ids, attention_mask=sees.long(), labels=labels)
    assert_close(found, expected, 1e-12)
    assert (found == 0) == (not masked.any())


@settings(max_examples=12)
@given(drawn=masked_pairs())
def test_every_mask_is_predicted_once(drawn: Any) -> None:
    """Sequences without masks are left out; nothing else is."""
    samples, places = drawn
    batch = batch_of(samples, places)
    _, labels, sides = padded_pairs(samples, places)
    found = batch["labels"][0]
    assert sorted(found[found != -100].tolist()) == sorted(labels[labels != -100].tolist())
    assert (batch["input_ids"][0][found != -100] == MASK).all()
    lengths = []
    for (begin, end), prefix in zip(pairwise(batch["cu_seq_lens_q"].tolist()), batch["prefix_lens"], strict=True):
        is_behind = torch.arange(end - begin) >= prefix
        assert torch.equal(found[begin:end] != -100, is_behind)
        assert is_behind.any() or not any(places)
        lengths.append(end - begin)
    predicted = {(row, int(sides[row, place])) for row, chosen in enumerate(places) for place in chosen}
    assert len(lengths) == max(len(predicted), 1)
    assert batch["max_length_q"] == max(lengths)


def test_nothing_is_masked() -> None:
    """Zero loss, with a graph."""
    _, model = models()
    batch = CAMLM(TinyTokenizer(), mask_probability=0)([(X, Y), (Y, X)], rng())
    loss = model(**batch).loss
    loss.backward()
    assert loss == 0
    assert batch["cu_seq_lens_q"].tolist() == [0, 6]


def test_everything_is_masked() -> None:
    """Only the other sentence's special tokens tell anything, and the reference says the same."""
    batch = CAMLM(TinyTokenizer(), mask_probability=1)([(X, Y)], rng())
    assert batch["prefix_lens"].tolist() == [2, 2]
    assert batch["labels"][batch["labels"] != -100].tolist() == X + Y


def test_a_language_marker_goes_with_the_masks() -> None:
    """It stands behind the bar, is not predicted, and the context before the bar does not see it."""
    marked = [MARKERS[0], *X], [MARKERS[1], *Y]
    batch = batch_of([marked], [[2, 10]], language_markers=MARKERS)
    assert batch["input_ids"].tolist() == [
        [SEP, 23, 26, 28, SEP, MARKERS[0], MASK, CLS, 6, 8, 11, 14, SEP, MARKERS[1], MASK]
    ]
    assert batch["prefix_lens"].tolist() == [5, 6]
    assert batch["labels"][batch["labels"] != -100].tolist() == [4, 20]
    none = batch_of([marked], [[]], language_markers=MARKERS)
    assert (none["labels"] == -100).all()
    with pytest.raises(ValueError, match="language_markers must hold ids of the tokenizer's special tokens, got 5"):
        CAMLM(TinyTokenizer(), language_markers=[5])


@pytest.mark.parametrize("name", ["mask_share", "random_share"])
def test_chosen_tokens_always_become_masks(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must not be given: in CAMLM a chosen token always"):
        CAMLM(TinyTokenizer(), **{name: 0.5})
    batch = CAMLM(TinyTokenizer(), mask_probability=0.5)([(list(ORDINARY)[:25], list(ORDINARY)[25:50])] * 20, rng())
    chosen = batch["labels"] != -100
    assert chosen.sum() > 400
    assert (batch["input_ids"][chosen] == MASK).all()
    assert np.isin(batch["labels"][chosen], ORDINARY).all()
