"""A plain layer of inference on a CPU: to the bit what the operations give one by one, and only where all is plain."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

import erniem_fast
from erniem_fast import ErnieMConfig, ErnieMModel, PackedBatch, cpu_layer
from erniem_fast.inference.prepacking import prepack_weights
from erniem_fast.inference.projections import join_projections

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
POSITIONS = 120


def ernie_m(act: str = "gelu") -> ErnieMModel:
    return ErnieMModel(ErnieMConfig(**SIZES, hidden_act=act, max_position_embeddings=POSITIONS)).eval()


def bert(act: str = "gelu") -> Any:
    config = BertConfig(**SIZES, hidden_act=act, max_position_embeddings=POSITIONS)
    return erniem_fast.padding_free(BertModel(config).eval())


MODELS: dict[str, Callable[..., Any]] = {"ErnieM": ernie_m, "BERT": bert}


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each layer that is computed from now on, whether it was by `cpu_layer`."""
    taken: list[bool] = []
    run = cpu_layer.run

    def watched(*arguments: Any) -> Tensor | None:
        rows = run(*arguments)
        taken.append(rows is not None)
        return rows

    monkeypatch.setattr(cpu_layer, "run", watched)
    return taken


def batch_of(lengths: list[int]) -> PackedBatch:
    return PackedBatch.from_sequences([torch.randint(5, 97, (length,)) for length in lengths])


def one_by_one(model: Any, batch: PackedBatch, **options: Any) -> Any:
    """The model's output where each operation decides for itself."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(cpu_layer, "run", lambda *_: None)
        return model(batch, return_packed=True, **options)


@pytest.mark.parametrize("act", ["gelu", "relu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_the_bits_are_those_of_the_operations(name: str, dtype: torch.dtype, act: str, layers: list[bool]) -> None:
    """Packed weights or not, joined or not, with all rows or the first tokens' alone."""
    model = MODELS[name](act).to(dtype)
    pooled_only = {"pooled_only": True} if name == "ErnieM" else {"scores_sequences": True}

    @settings(max_examples=6)
    @given(lengths=st.lists(st.sampled_from([0, 1, 3, 3, 16, 17, 40, 64, 100]), min_size=1, max_size=9))
    def check(lengths: list[int]) -> None:
        batch = batch_of([*lengths, 2])
        layers.clear()
        with torch.inference_mode():
            found = model(batch, return_packed=True)
            firsts = model(batch, return_packed=True, **pooled_only)
        assert layers == [True] * 4
        expected, first = one_by_one(model, batch), one_by_one(model, batch, **pooled_only)
        for ours, theirs in ((found, expected), (firsts, first)):
            for key in ("last_hidden_state", "pooler_output"):
                assert (ours.get(key) is None) == (theirs.get(key) is None)
                assert ours.get(key) is None or torch.equal(ours[key], theirs[key])
        assert found.last_hidden_state.isfinite().all()

    check()
    join_projections(model)
    check()
    prepack_weights(model)
    check()


def _linear(model: Any) -> nn.Linear:
    return model.encoder.layers[0].linear2  # type: ignore[no-any-return]


class Adapter(nn.Linear):
    """A linear layer with more in it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def _adapt(model: Any) -> None:
    adapter = Adapter(48, 32)
    adapter.load_state_dict(_linear(model).state_dict())
    model.encoder.layers[0].linear2 = adapter


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a hook on a linear layer": lambda model: _linear(model).register_forward_hook(lambda *_: None),
    "a hook on a norm": lambda model: model.encoder.layers[0].norm1.register_forward_hook(
        lambda module, arguments, rows: rows + 1
    ),
    "a dropout left on": lambda model: model.encoder.layers[0].dropout1.train(),
    "a linear layer of another class": _adapt,
    "a norm of another class": lambda model: setattr(model.encoder.layers[0], "norm2", nn.RMSNorm(32)),
    "another activation": lambda model: setattr(model.encoder.layers[0], "activation", nn.SiLU()),
    "a weight of another dtype": lambda model: _linear(model).double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_that_is_not_plain_is_left_to_its_parts(change: str, layers: list[bool]) -> None:
    model, batch = ernie_m(), batch_of([5, 17, 3])
    CHANGES[change](model)
    if "dtype" in change:
        with torch.inference_mode(), pytest.raises(RuntimeError, match="dtype"):
            model(batch, return_packed=True)
        assert layers == [False]
        return
    with torch.inference_mode():
        found = model(batch, return_packed=True)
    assert layers == [False, True]
    if "dropout" not in change:
        assert torch.equal(found.last_hidden_state, one_by_one(model, batch).last_hidden_state)


def test_a_hook_sees_the_tokens_and_no_others(layers: list[bool]) -> None:
    model, batch, seen = ernie_m().bfloat16(), batch_of([5, 17, 3]), []
    for layer in model.encoder.layers:
        layer.register_forward_hook(lambda module, arguments, output: seen.append(output[0].shape))
    with torch.inference_mode():
        model(batch, return_packed=True)
    assert layers == [True, True]
    assert seen == [(25, 32), (25, 32)]


@pytest.mark.parametrize("what", ["gradients", "autocast", "a mode that looks on"])
def test_more_than_values_is_left_to_the_operations(what: str, layers: list[bool]) -> None:
    model, batch = ernie_m(), batch_of([5, 17, 3])
    modes: dict[str, Any] = {
        "gradients": torch.enable_grad(),
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "a mode that looks on": FlopCounterMode(display=False),
    }
    with torch.no_grad() if what != "gradients" else nullcontext(), modes[what]:
        model(batch, return_packed=True)
    assert layers == [False, False]
