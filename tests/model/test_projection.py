"""The fused projection, and what changes the weights beneath it."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.pairs import (
    NO_DROPOUT,
    SIZES,
    as_fast,
    as_reference,
    assert_agree,
    assert_close,
    assert_same_gradients,
    batch,
    labels_for,
    make,
    real,
)
from torch import nn


def projections(model: Any) -> list[nn.Linear]:
    return [module for name, module in model.named_modules() if name.endswith(("q_proj", "k_proj", "v_proj"))]


def optimizer_step(model: Any) -> None:
    with torch.enable_grad():
        model(**batch()).last_hidden_state.square().sum().backward()
    torch.optim.AdamW(model.parameters(), lr=0.1).step()


def load_other(model: Any, assign: bool = False) -> None:
    model.load_state_dict({k: torch.randn_like(v) for k, v in model.state_dict().items()}, assign=assign)


def in_place(model: Any) -> None:
    for module in projections(model):
        module.weight.mul_(1.5)
        module.bias.add_(0.5)


def in_place_in_inference_mode(model: Any) -> None:
    with torch.inference_mode():
        in_place(model)


def through_data(model: Any) -> None:
    for module in projections(model):
        module.weight.data.mul_(1.5)


def biases_through_data(model: Any) -> None:
    for module in projections(model):
        module.bias.data.add_(0.5)


def one_row_through_data(model: Any) -> None:
    projections(model)[0].weight.data[3] = 2.0


def one_column_through_data(model: Any) -> None:
    projections(model)[1].weight.data[:, 5] = 2.0


def one_element_through_data(model: Any) -> None:
    projections(model)[2].weight.data[3, 5] += 8.0


def new_data(model: Any) -> None:
    for module in projections(model):
        module.weight.data = torch.randn_like(module.weight)


def new_data_at_a_freed_address(model: Any) -> None:
    for module in projections(model):
        shape = module.weight.shape
        module.weight.data = torch.empty(0)
        module.weight.data = torch.randn(shape, device=model.device, dtype=model.dtype)


def new_parameters(model: Any) -> None:
    for module in projections(model):
        module.weight = nn.Parameter(torch.randn_like(module.weight))


def new_modules(model: Any) -> None:
    size = SIZES["hidden_size"]
    for layer in model.encoder.layers:
        layer.self_attn.self_attn.k_proj = nn.Linear(size, size, device=model.device, dtype=model.dtype)
        layer.self_attn.self_attn.v_proj.weight.data.neg_()


def exchanged(model: Any) -> None:
    attention = model.encoder.layers[0].self_attn.self_attn
    attention.q_proj, attention.v_proj = attention.v_proj, attention.q_proj


def exchanged_layers(model: Any) -> None:
    first, second = model.encoder.layers
    first.self_attn, second.self_attn = second.self_attn, first.self_attn


def swapped_tensors(model: Any) -> None:
    for module in projections(model):
        torch.utils.swap_tensors(module.weight, nn.Parameter(torch.randn_like(module.weight)))


def half_and_back(model: Any) -> None:
    dtype = model.dtype
    model.bfloat16().to(dtype)


def to_single(model: Any) -> None:
    model.float()


def initialised_again(model: Any) -> None:
    for module in projections(model):
        nn.init.normal_(module.weight, std=0.7)


def ema(model: Any) -> None:
    """As averaging libraries write their weights back."""
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn_like(parameter))


CHANGES: list[Callable[[Any], None]] = [
    optimizer_step, load_other, lambda model: load_other(model, assign=True), in_place, in_place_in_inference_mode,
    through_data, biases_through_data, one_row_through_data, one_column_through_data, one_element_through_data,
    new_data, new_data_at_a_freed_address, new_parameters, new_modules, exchanged, exchanged_layers, swapped_tensors,
    half_and_back, to_single, initialised_again, ema,
]  # fmt: skip
NAMES = [change.__name__.replace("<lambda>", "load_other by assignment") for change in CHANGES]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_no_stale_projection(change: Callable[[Any], None], training: bool) -> None:
    """Forwards before and after, nothing between but the change."""
    _, fast = make(**NO_DROPOUT)
    fast.train(training)
    inputs = batch()
    with torch.no_grad():
        for _ in range(2):
            before = fast(**inputs).last_hidden_state
        change(fast)
        found = fast(**inputs).last_hidden_state
        expected = as_reference(fast)(**inputs).last_hidden_state
        tolerance = 1e-3 if change is to_single else 1e-5
        assert_close(real(found, inputs), real(expected, inputs), tolerance)
        assert change is to_single or (found - before).abs().max() > 1e-3
    # With a graph too, and after it.
    with torch.enable_grad():
        assert_close(fast(**inputs).last_hidden_state.detach(), found, tolerance)


def test_half_precision_after_float() -> None:
    _, fast = make()
    inputs = batch()
    with torch.no_grad():
        fast(**inputs)
        found = fast.bfloat16()(**inputs).last_hidden_state
        assert found.dtype == torch.bfloat16
        expected = as_fast(fast)(**inputs).last_hidden_state
        assert torch.equal(found, expected)


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_independent(copied: str) -> None:
    _, fast = make()
    inputs = batch()
    with torch.no_grad():
        before = fast(**inputs).last_hidden_state
        if copied == "deepcopy":
            other = copy.deepcopy(fast)
        elif copied == "pickle":
            other = pickle.loads(pickle.dumps(fast))
        else:
            buffer, fresh = io.BytesIO(), io.BytesIO()
            torch.save(fast, buffer)
            torch.save(as_fast(fast), fresh)
            assert abs(buffer.tell() - fresh.tell()) < 2000  # nothing that a forward made is in it
            buffer.seek(0)
            other = torch.load(buffer, weights_only=False)
        assert type(other) is type(fast)
        assert torch.equal(other(**inputs).last_hidden_state, before)
        in_place(other)
        assert torch.equal(fast(**inputs).last_hidden_state, before)
        assert_agree(other, as_reference(other), inputs)
        # A copy of a copy that has run.
        again = copy.deepcopy(other)
        load_other(other)
        assert_agree(again, as_reference(again), inputs)


def test_functional_call() -> None:
    """Other weights for one call, and the model's own again after it."""
    _, fast = make()
    inputs = batch()
    others = {name: torch.randn_like(p) for name, p in fast.named_parameters()}
    expected = as_reference(fast)
    expected.load_state_dict(others)
    with torch.no_grad():
        for _ in range(2):
            assert_agree(fast, as_reference(fast), inputs)
            found = torch.func.functional_call(fast, others, kwargs=inputs).last_hidden_state
            assert_close(real(found, inputs), real(expected(**inputs).last_hidden_state, inputs))


def test_inference_mode() -> None:
    """Tensors made in inference mode must not reach autograd later."""
    plain, fast = make("ErnieMForTokenClassification", **NO_DROPOUT)
    inputs = batch()
    inputs |= labels_for("ErnieMForTokenClassification", inputs)
    with torch.inference_mode():
        assert_agree(fast, plain, inputs)
        built_inside = as_fast(plain)
        assert_agree(built_inside, plain, inputs)
        assert_agree(built_inside, plain, inputs)
    with torch.no_grad():
        assert_agree(fast, plain, inputs)
    for model in (plain, fast):
        model(**inputs).loss.backward()
    assert_same_gradients(fast, plain)
    with torch.inference_mode():
        assert_agree(fast, plain, inputs)
    with torch.no_grad():
        assert_agree(built_inside, plain, inputs)
