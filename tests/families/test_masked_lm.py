"""Masked LM on labelled rows only: the loss and gradients of the whole, and no logits."""

import copy
from typing import Any
from unittest import mock

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
from torch import Tensor, nn

from erniem_fast import ops


def head_of(family: str) -> str:
    return "WithLMHeadModel" if FAMILIES[family].prefix == "XLM" else "ForMaskedLM"


def assert_loss_only(model: Any, inputs: dict[str, Tensor], decoder: Any) -> None:
    """Projects the labelled rows alone, by the operation; where the decoder is watched by calling it."""
    seen: list[int] = []
    call = decoder.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[:-1].numel()))
    assert model.loss_only is False
    expected = model(**inputs)
    expected.loss.backward()
    wanted = gradients(model)
    model.loss_only = True
    labelled = int((inputs["labels"] != -100).sum())
    fused = []
    for watched in (True, False):
        if not watched:
            call.remove()
        model.zero_grad(set_to_none=True)
        with mock.patch.object(ops, "linear_cross_entropy", wraps=ops.linear_cross_entropy) as operation:
            found = model(**inputs)
        fused += [call.args[0].shape[0] for call in operation.call_args_list]
        found.loss.backward()
        assert found.logits is None
        assert_close(found.loss, expected.loss)
        assert_same_gradients(gradients(model), wanted)
        assert seen == [20, labelled]
    assert fused == [labelled]
    assert_close(model(**inputs, num_items_in_batch=5).loss * 5, expected.loss * labelled)
    assert model(**inputs, return_dict=False)[0] == found.loss
    without = {name: value for name, value in inputs.items() if name != "labels"}
    with torch.no_grad():
        assert_close(model(**without).logits, expected.logits)
        nothing = model(**without, labels=torch.full_like(inputs["labels"], -100))
    assert nothing.loss == 0


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


class Halved(nn.Linear):
    """A linear layer whose class is not the plain one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


class Doubled(nn.Module):
    """A head in the place of another."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(rows) * 2


def test_a_replaced_decoder_or_head_is_called() -> None:
    model = pairs.make("ErnieMForMaskedLM", **pairs.NO_DROPOUT)[1]
    inputs = pairs.batch((7, 3, 9, 1))
    inputs |= pairs.labels_for("ErnieMForMaskedLM", inputs)

    def losses() -> list[Tensor]:
        found = []
        for loss_only in (False, True):
            model.loss_only = loss_only
            found.append(model(**inputs).loss)
        return found

    plain = losses()
    assert_close(*plain)
    model.lm_head.decoder.__class__ = Halved
    halved = losses()
    assert_close(*halved)
    assert not torch.isclose(halved[0], plain[0])
    model.lm_head.decoder.__class__ = nn.Linear
    model.lm_head = Doubled(model.lm_head)
    doubled = losses()
    assert_close(*doubled)
    assert not torch.isclose(doubled[0], plain[0])


def test_the_reference_computes_plainly() -> None:
    plain, _ = pairs.make("ErnieMForMaskedLM", **pairs.NO_DROPOUT)
    inputs = pairs.batch((7, 3, 9, 1))
    inputs |= pairs.labels_for("ErnieMForMaskedLM", inputs)
    expected = plain(**inputs).loss
    plain.loss_only = True
    with mock.patch.object(ops, "linear_cross_entropy", side_effect=AssertionError):
        assert_close(plain(**inputs).loss, expected)


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
