"""Weights in oneDNN's order: the same results, from the weights that the model has now."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.pairs import make
from torch import nn
from transformers import BertConfig, BertModel

from erniem_fast import PackedBatch, join_projections, padding_free, prepack_weights
from erniem_fast.inference.quantisation import quantise_int8
from erniem_fast.ops import onednn

LENGTHS = (3, 61, 1, 64, 41, 64, 64)


@pytest.fixture(autouse=True)
def _packs() -> None:
    if not onednn.is_available(torch.bfloat16):
        pytest.skip("oneDNN's private operations are missing here")


def batch_for(model: Any) -> PackedBatch:
    return PackedBatch.from_sequences([torch.randint(2, 90, (length,)) for length in LENGTHS])


@torch.inference_mode()
def rows(model: Any, batch: PackedBatch) -> torch.Tensor:
    found: torch.Tensor = model(batch, return_packed=True).last_hidden_state
    return found


def bfloat16_model(joined: bool) -> Any:
    model = make()[1].bfloat16().eval()
    if joined:
        join_projections(model)
    return model


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of all rows together: the worst element of two roundings differs by more than their quality."""
    return (one.double() - other.double()).norm().item()


@pytest.mark.parametrize("joined", [True, False])
def test_the_same_numbers(joined: bool) -> None:
    model = bfloat16_model(joined)
    batch, exact = batch_for(model), copy.deepcopy(model).double()
    before, expected = rows(model, batch), rows(exact, batch)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert prepack_weights(model) == 6 * len(model.encoder.layers)
    found = rows(model, batch)
    assert distance(found, expected) <= 1.5 * distance(before, expected)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def through_load_state_dict(model: Any) -> None:
    model.load_state_dict({name: torch.randn_like(value) / 9 for name, value in model.state_dict().items()})


def by_assignment(model: Any) -> None:
    state = {name: torch.randn_like(value) / 9 for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def in_place(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)


def in_place_in_inference_mode(model: Any) -> None:
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.mul_(1.25)


def by_a_new_parameter(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.detach() * 1.25)


def by_data_of_its_own(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.25


def one_alone(model: Any) -> None:
    with torch.no_grad():
        model.encoder.layers[0].self_attn.self_attn.v_proj.weight.neg_()


def through_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.25)
    assert prepack_weights(model)  # a write that leaves no trace


CHANGES = [
    through_load_state_dict, by_assignment, in_place, in_place_in_inference_mode, by_a_new_parameter,
    by_data_of_its_own, one_alone, through_data,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("joined", [True, False])
def test_changed_weights_are_read(joined: bool, change: Callable[[Any], None]) -> None:
    model = bfloat16_model(joined)
    batch = batch_for(model)
    prepack_weights(model)
    before = rows(model, batch)
    change(model)
    plain = bfloat16_model(False)
    plain.load_state_dict(model.state_dict())
    expected, exact = rows(plain, batch), rows(copy.deepcopy(plain).double(), batch)
    assert distance(before, exact) > 10 * distance(expected, exact)
    assert distance(rows(model, batch), exact) <= 1.5 * distance(expected, exact)


def test_copies_and_files_hold_plain_weights() -> None:
    model = bfloat16_model(True)
    prepack_weights(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    batch = batch_for(model)
    exact = rows(copy.deepcopy(model).double(), batch)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert distance(rows(other, batch), exact) <= 1.5 * distance(rows(model, batch), exact)
    wide = rows(model.float(), batch)
    assert wide.dtype == torch.float32
    assert wide.isfinite().all()


@pytest.fixture
def hooked() -> Any:
    model = bfloat16_model(True)
    seen: list[str] = []
    for name, module in model.encoder.layers[0].named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    return model, seen


def test_hooks_are_called(hooked: Any) -> None:
    model, seen = hooked
    count = prepack_weights(model)
    assert count == 6 * (len(model.encoder.layers) - 1)
    rows(model, batch_for(model))
    assert len(seen) == 6


def test_what_is_left_alone() -> None:
    assert prepack_weights(nn.Linear(4, 4).bfloat16()) == 0
    assert prepack_weights(make()[1]) == 0  # float32
    assert prepack_weights(quantise_int8(make()[1].float())) == 0
    with torch.inference_mode():
        assert prepack_weights(bfloat16_model(False)) == 0


def test_other_families() -> None:
    config = BertConfig(vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    model = padding_free(BertModel(config).bfloat16().eval())
    batch = batch_for(model)
    before = rows(model, batch)
    assert prepack_weights(model) == 12
    exact = rows(copy.deepcopy(model).double(), batch)
    assert distance(rows(model, batch), exact) <= 1.5 * distance(before, exact)
