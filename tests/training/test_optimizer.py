"""Parameter groups: each trainable parameter once, at the rate of its depth."""

import re
from typing import Any

import pytest
import torch
from helpers.families import make, make_plain
from helpers.pairs import make as make_ernie_m
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_fast.training.optimizer import parameter_groups

RATE = 1e-3


def model_of(family: str, head: str) -> Any:
    return make_ernie_m(f"ErnieM{head}")[1] if family == "ernie-m" else make(family, head)[1]


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"])
@pytest.mark.parametrize("family", ["ernie-m", "bert", "roberta", "electra", "distilbert", "xlm"])
def test_every_trainable_parameter_is_in_one_group(family: str, head: str) -> None:
    model = model_of(family, head + ("Simple" if (family, head) == ("xlm", "ForQuestionAnswering") else ""))
    for parameter in list(model.parameters())[:: int(torch.randint(3, 8, ()))]:
        parameter.requires_grad_(False)
    groups = parameter_groups(model, RATE, 0.8, 0.1)
    found = [parameter for group in groups for parameter in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {parameter for parameter in model.parameters() if parameter.requires_grad}


def depth_of(name: str, layers: int) -> int:
    """Steps below the head, by the parameter's name."""
    number = re.search(r"\.(\d+)\.", name)
    if number:
        return layers - int(number[1])
    return layers + 1 if "emb" in name else 0


@pytest.mark.parametrize("family", ["ernie-m", "bert", "electra", "distilbert", "xlm"])
def test_rates_fall_from_layer_to_layer_and_vectors_do_not_decay(family: str) -> None:
    model = model_of(family, "ForSequenceClassification")
    groups = parameter_groups(model, RATE, 0.5, 0.1)
    of = {parameter: group for group in groups for parameter in group["params"]}
    depths = {name: depth_of(name, 2) for name, _ in model.named_parameters()}
    assert set(depths.values()) == {0, 1, 2, 3}
    for name, parameter in model.named_parameters():
        assert of[parameter]["lr"] == RATE * 0.5 ** depths[name], name
        assert of[parameter]["weight_decay"] == (0.0 if parameter.dim() < 2 else 0.1), name
    assert groups[0]["lr"] == RATE  # what Trainer logs


@settings(max_examples=5)
@given(decay=st.floats(0.1, 1.0), layers=st.integers(1, 5))
def test_any_decay_and_number_of_layers(decay: float, layers: int) -> None:
    model = make_plain_layers(layers)
    rates = sorted({group["lr"] for group in parameter_groups(model, RATE, decay)}, reverse=True)
    expected = sorted({RATE * decay**depth for depth in range(layers + 2)}, reverse=True)
    assert rates == expected


def make_plain_layers(layers: int) -> Any:
    return make_ernie_m("ErnieMForSequenceClassification", num_hidden_layers=layers)[1]


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.1])
def test_decay_out_of_range(decay: float) -> None:
    with pytest.raises(ValueError, match="layer_decay must be in"):
        parameter_groups(make_plain_layers(1), RATE, decay)


def test_a_model_without_such_an_encoder_or_without_gradients() -> None:
    with pytest.raises(ValueError, match="padding_free encoder, got BertForSequenceClassification"):
        parameter_groups(make_plain("bert", "ForSequenceClassification"), RATE)
    with pytest.raises(ValueError, match="require gradients"):
        parameter_groups(make_plain_layers(1).requires_grad_(False), RATE)
