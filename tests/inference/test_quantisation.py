"""Linear layers in int8."""

import copy
import warnings
from typing import Any

import pytest
import torch
from helpers.pairs import make
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import erniem_fast
from erniem_fast import padding_free
from erniem_fast.inference.quantisation import ENGINE, Int8Linear, quantise_int8

pytestmark = pytest.mark.skipif(
    ENGINE not in torch.backends.quantized.supported_engines, reason="torch without oneDNN for this processor"
)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (70, 24), (2, 3, 24), (0, 24)])
def test_a_layer_in_int8(shape: tuple[int, ...], biased: bool) -> None:
    """Near the product of weights and activations that are rounded to 8 bits."""
    linear = nn.Linear(24, 40, bias=biased)
    with torch.inference_mode():
        x = torch.randn(shape)
        found = Int8Linear(linear)(x)
        expected = linear(x)
    assert found.shape == expected.shape
    if x.numel():
        scale = linear.weight.abs().amax(1) / 127
        # Half a step of each weight and, with 7 bits where the processor lacks VNNI, of each activation.
        steps = x.abs().sum(-1, keepdim=True) * scale / 2
        steps = steps + linear.weight.abs().sum(1) * (x.max().clamp(min=0) - x.min().clamp(max=0)) / 127 / 2
        assert ((found - expected).abs() <= 1.1 * steps + 1e-5).all()
        assert not torch.equal(found, expected)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("part", ["v_proj", "norm1"])
def test_weights_that_are_not_finite_are_refused(part: str, value: float) -> None:
    """Else the layer behind would make numbers of them."""
    model = families()["ErnieM"].eval()
    (weight, *_) = (weight for name, weight in model.named_parameters() if f"{part}.weight" in name)
    with torch.no_grad():
        weight[3] = value
    with pytest.raises(ValueError, match=rf"dtype 'int8' needs finite weights, got NaN or infinity in .*{part}.weight"):
        quantise_int8(model)


def test_weights_keep_eight_bits() -> None:
    """Of activations that are exact in 8 bits, 0 and 1."""
    linear = nn.Linear(24, 40)
    with torch.inference_mode():
        error = (Int8Linear(linear)(torch.eye(24)) - linear(torch.eye(24))).abs()
    assert (error <= 0.505 * linear.weight.detach().abs().amax(1) / 127 + 1e-6).all()


def test_rows_that_are_filled_up_change_nothing() -> None:
    layer, x = Int8Linear(nn.Linear(8, 8)), torch.randn(600, 8)
    x[0] = torch.linspace(-6, 6, 8)  # the range of every batch below
    with torch.inference_mode():
        whole = layer(x)
        for rows in (1, 31, 33, 513):
            torch.testing.assert_close(layer(x[:rows]), whole[:rows], rtol=0, atol=1e-5)


def families() -> dict[str, Any]:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2}
    return {"ErnieM": make()[1].float(), "BERT": padding_free(BertModel(BertConfig(vocab_size=97, **sizes)))}


@pytest.mark.parametrize("family", ["ErnieM", "BERT"])
def test_an_encoder_in_int8(family: str) -> None:
    model = families()[family].eval()
    quantised = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert quantise_int8(quantised) is quantised
    layers = model.config.num_hidden_layers
    replaced = [module for module in quantised.modules() if isinstance(module, Int8Linear)]
    assert len(replaced) == 6 * layers
    pooler = [module for name, module in quantised.named_modules() if "pooler" in name and type(module) is nn.Linear]
    assert len(pooler) == 1
    calls: list[Tensor] = []
    replaced[0].register_forward_hook(lambda module, inputs, output: calls.append(output))
    ids = torch.randint(4, 97, (3, 9))
    with torch.inference_mode():
        found = quantised(input_ids=ids).last_hidden_state
        expected = model(input_ids=ids).last_hidden_state
    assert calls
    relative = (found - expected).norm() / expected.norm()
    assert 0 < relative < 0.1
    assert "int8" in erniem_fast.explain(quantised) or "Int8Linear" in erniem_fast.explain(quantised)


def test_what_can_not_be_quantised_is_refused() -> None:
    with pytest.raises(ValueError, match="model holds no linear layers of a padding-free encoder, got Linear"):
        quantise_int8(nn.Linear(4, 4))
    model = make()[1].bfloat16()
    with pytest.raises(ValueError, match=r"starts from float32 on the CPU, got torch.bfloat16 on cpu"):
        quantise_int8(model)
    assert not any(isinstance(module, Int8Linear) for module in model.modules())


def test_int8_is_not_saved_as_if_it_were_whole(tmp_path: Any) -> None:
    model = quantise_int8(make()[1].float())
    with pytest.raises(RuntimeError, match="save the model before quantise_int8"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_layer_with_a_hook_stays() -> None:
    model = make()[1].float()
    layer = model.encoder.layers[0].linear1
    layer.register_forward_hook(lambda *_: None)
    quantise_int8(model)
    assert model.encoder.layers[0].linear1 is layer
