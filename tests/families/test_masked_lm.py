"""Masked LM on labelled rows only: the loss and gradients of the whole, and no logits."""

import copy
from typing import Any

import pytest
import torch
from helpers import pairs
from helpers.families import (
    FAMILIES,
    NO_DROPOUT,
    assert_close,
    assert_same_gradients,
    batch,
    gradients,
    labels_for,
    make,
)
from torch import Tensor


def head_of(family: str) -> str:
    return "WithLMHeadModel" if FAMILIES[family].prefix == "XLM" else "ForMaskedLM"


def assert_loss_only(model: Any, inputs: dict[str, Tensor], decoder: Any) -> None:
    """Projects the labelled rows alone."""
    seen: list[int] = []
    call = decoder.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[:-1].numel()))
    assert model.loss_only is False
    expected = model(**inputs)
    expected.loss.backward()
    wanted = gradients(model)
    model.loss_only = True
    found = model(**inputs)
    found.loss.backward()
    assert found.logits is None
    assert_close(found.loss, expected.loss)
    assert_same_gradients(gradients(model), wanted)
    assert seen == [20, int((inputs["labels"] != -100).sum())]
    assert model(**inputs, return_dict=False)[0] == found.loss
    without = {name: value for name, value in inputs.items() if name != "labels"}
    with torch.no_grad():
        assert_close(model(**without).logits, expected.logits)
        nothing = model(**without, labels=torch.full_like(inputs["labels"], -100))
    assert nothing.loss == 0
    call.remove()


@pytest.mark.parametrize(
    "family", ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "bert")]
)
def test_loss_only(family: str) -> None:
    _, fast = make(family, head_of(family), **NO_DROPOUT)
    inputs = batch(family)
    inputs |= labels_for(family, head_of(family), inputs)
    assert_loss_only(fast, inputs, fast.get_output_embeddings())
    assert copy.deepcopy(fast).loss_only


def test_loss_only_of_ernie_m() -> None:
    _, fast = pairs.make("ErnieMForMaskedLM", **pairs.NO_DROPOUT)
    inputs = pairs.batch((7, 3, 9, 1))
    inputs |= pairs.labels_for("ErnieMForMaskedLM", inputs)
    inputs["labels"][0, :3] = -100
    assert_loss_only(fast, inputs, fast.get_output_embeddings())


@pytest.mark.parametrize("loss_only", [True, False])
def test_adaptive_softmax_of_xlm(loss_only: bool) -> None:
    """Transformers crashes on it: its head is torch's own, on the rows."""
    changes = {"asm": True, "asm_cutoffs": [10, 30], "asm_div_value": 2.0, "tie_word_embeddings": False}
    plain, fast = make("xlm", "WithLMHeadModel", **changes, **NO_DROPOUT)
    inputs = batch("xlm")
    real = inputs["attention_mask"] == 1
    labels = labels_for("xlm", "WithLMHeadModel", inputs)["labels"]
    with pytest.raises(RuntimeError):
        plain(**inputs)
    fast.loss_only = loss_only
    found = fast(**inputs, labels=labels)
    states = fast.transformer(**inputs).last_hidden_state
    chosen = labels != -100
    expected = plain.pred_layer.proj(states[chosen], labels[chosen]).loss
    assert_close(found.loss, expected)
    assert (found.logits is None) == loss_only
    scores = fast(**inputs).logits
    assert_close(scores[real], plain.pred_layer.proj.log_prob(states[real]))
    assert_close(scores[real].exp().sum(-1), torch.ones(20).double())
