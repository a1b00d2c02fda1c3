"""The fused projection, and what changes the weights beneath it."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
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
from torch import Tensor, nn
from torch.autograd import forward_ad

from erniem_fast import fusion, join_projections


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


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of weights and of biases that each forward's projections concatenate."""
    counts: list[int] = []
    real_one = fusion.as_one

    def counted(tensors: Any) -> Any:
        one = real_one(tensors)
        counts.append(one is None)
        return one

    monkeypatch.setattr(fusion, "as_one", counted)
    return counts


@pytest.mark.parametrize(("training", "joined"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_no_stale_projection(change: Callable[[Any], None], training: bool, joined: bool) -> None:
    """Forwards before and after, nothing between but the change."""
    _, fast = make(**NO_DROPOUT)
    fast.train(training)
    if joined:
        assert join_projections(fast) == len(fast.encoder.layers)
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


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_independent(copied: str, joined: bool) -> None:
    _, fast = make()
    if joined:
        join_projections(fast)
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
        assert join_projections(fast) > 0
        assert join_projections(built_inside) > 0
        assert_agree(fast, plain, inputs)
    with torch.no_grad():
        assert_agree(fast, plain, inputs)
    for model in (plain, fast):
        model(**inputs).loss.backward()
    assert_same_gradients(fast, plain)
    with torch.inference_mode():
        assert_agree(fast, plain, inputs)
    with torch.no_grad():
        assert_agree(built_inside, plain, inputs)


def test_joined_projections_are_read_in_place(copied: list[int]) -> None:
    _, fast = make(**NO_DROPOUT)
    inputs, layers = batch(), len(fast.encoder.layers)
    parameters = dict(fast.named_parameters())
    with torch.no_grad():
        before = fast(**inputs).last_hidden_state
    assert copied == [True] * (2 * layers)
    assert join_projections(fast) == layers
    assert all(parameters[name] is parameter for name, parameter in fast.named_parameters())
    assert join_projections(fast) == layers
    for mode in (torch.no_grad, torch.inference_mode):
        copied.clear()
        with mode():
            assert torch.equal(fast(**inputs).last_hidden_state, before)
        assert copied == [False] * (2 * layers)
    # One tensor that was replaced is concatenated with its neighbours, the others are not.
    copied.clear()
    with torch.no_grad():
        projections(fast)[1].weight.data = projections(fast)[1].weight.data.clone()
        assert torch.equal(fast(**inputs).last_hidden_state, before)
    assert sum(copied) == 1


def test_joined_projections_train() -> None:
    plain, fast = make("ErnieMForTokenClassification", **NO_DROPOUT)
    inputs = batch()
    inputs |= labels_for("ErnieMForTokenClassification", inputs)
    assert join_projections(fast)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01) for model in (plain, fast)]
    for _ in range(2):
        for model, optimizer in zip((plain, fast), optimizers, strict=True):
            optimizer.zero_grad()
            model(**inputs).loss.backward()
        assert_same_gradients(fast, plain)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            assert_agree(fast, plain, inputs)


def test_a_few_rows_copy_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, where copying three weights takes longer than a short text through the layer."""
    fast = make()[1].float()
    size, real_cat, copied = SIZES["hidden_size"], torch.cat, []

    def cat(tensors: Any, *arguments: Any) -> Tensor:
        copied.append(sum(tensor.numel() for tensor in tensors) >= 3 * size**2)
        return real_cat(tensors, *arguments)

    monkeypatch.setattr(torch, "cat", cat)
    for texts, gradients in ((1, False), (20, False), (1, True)):
        copied.clear()
        ids = torch.randint(4, SIZES["vocab_size"], (texts, 8))
        with torch.set_grad_enabled(gradients):
            found = fast(input_ids=ids).last_hidden_state
        assert any(copied) == gradients
        assert_close(found, as_reference(fast)(input_ids=ids).last_hidden_state, 1e-5)


def test_joined_projections_are_saved_apart(tmp_path: Path) -> None:
    _, fast = make()
    expected = {name: tensor.clone() for name, tensor in fast.state_dict().items()}
    sizes = []
    for folder in ("apart", "joined"):
        fast.save_pretrained(tmp_path / folder)
        sizes.append((tmp_path / folder / "model.safetensors").stat().st_size)
        join_projections(fast)
    assert sizes[0] == sizes[1]
    assert fast.state_dict().keys() == expected.keys()
    for found in (fast.state_dict(), type(fast).from_pretrained(tmp_path / "joined").state_dict()):
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    fast.load_state_dict({name: tensor + 1 for name, tensor in expected.items()})
    with torch.no_grad():
        assert fusion.as_one([module.weight for module in projections(fast)[:3]]) is not None
    assert all(torch.equal(tensor, expected[name] + 1) for name, tensor in fast.state_dict().items())


def test_only_plain_projections_of_one_kind_are_joined() -> None:
    _, fast = make()
    first, second = (layer.self_attn.self_attn for layer in fast.encoder.layers[:2])
    first.q_proj = torch.nn.Sequential(first.q_proj)
    second.k_proj.bfloat16()
    assert join_projections(fast) == len(fast.encoder.layers) - 2
    assert join_projections(make()[1].to("meta")) == 0


def test_neighbours_by_chance_are_not_one() -> None:
    """Storages that happen to touch."""
    memory = torch.arange(24.0)
    whole = memory.untyped_storage()
    parts = []
    for start in range(0, 96, 32):
        parts.append(torch.empty(0).set_(whole[start : start + 32], 0, (2, 4)))
    with torch.no_grad():
        assert [part.data_ptr() - memory.data_ptr() for part in parts] == [0, 32, 64]
        assert fusion.as_one(parts) is None
        assert torch.equal(fusion.as_one(list(memory.view(3, 2, 4))), memory.view(6, 4))
        assert fusion.as_one(list(memory.view(3, 2, 4))[::-1]) is None
    assert fusion.as_one(list(memory.view(3, 2, 4))) is None  # gradients are recorded


class Projections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return fusion.project_qkv(self.q_proj, self.k_proj, self.v_proj, x)


def test_joined_projections_pass_tangents_on() -> None:
    module, x = Projections().double(), torch.randn(4, 6).double()
    tangents = {name: torch.randn_like(parameter) for name, parameter in module.named_parameters()}

    def tangent() -> Tensor:
        with torch.no_grad(), forward_ad.dual_level():
            duals = {
                name: forward_ad.make_dual(parameter.detach(), tangents[name])
                for name, parameter in module.named_parameters()
            }
            return forward_ad.unpack_dual(torch.func.functional_call(module, duals, x)).tangent.clone()

    apart = tangent()
    assert join_projections(module) == 1
    torch.testing.assert_close(tangent(), apart)
