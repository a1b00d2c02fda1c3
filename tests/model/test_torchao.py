"""Weights quantised by torchao: tensor subclasses in plain linear layers, which must be called and never read."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from helpers.pairs import as_fast, assert_close, batch, make, real
from torch import nn
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
from transformers import TorchAoConfig

from erniem_fast import ErnieMForSequenceClassification, PackedBatch, fusion, join_projections

CONFIGS = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}
Filter = Callable[[nn.Module, str], bool]
PARTS = {
    "all": lambda module, name: isinstance(module, nn.Linear),
    "value only": lambda module, name: name.endswith("v_proj"),
    "first of the feed-forward": lambda module, name: name.endswith("linear1"),
    "second of the feed-forward": lambda module, name: name.endswith("linear2"),
    "output": lambda module, name: name.endswith("out_proj"),
}


def models(config: Any, part: Filter) -> tuple[Any, Any, Any]:
    """The fast model as it was, quantised, and the reference with the values that the quantised weights have."""
    plain, before = make("ErnieMForSequenceClassification", torch.float32)
    quantised = copy.deepcopy(before)
    quantize_(quantised, config(), filter_fn=part)
    with torch.no_grad():
        for name, module in plain.named_modules():
            if part(module, name):
                module.weight.copy_(quantised.get_submodule(name).weight.dequantize())
    return before, quantised, plain


CASES = [(name, "torch") for name in PARTS] + [pytest.param("all", "triton", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("name", "backend"), CASES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_quantised_layers_are_called(config: Any, name: str, backend: str) -> None:
    part = PARTS[name]
    before, quantised, plain = models(config, part)
    quantised.ernie_m.backend = backend
    inputs = batch()
    join_projections(quantised)  # must leave them alone
    for name, module in quantised.named_modules():
        assert not (part(module, name) and fusion.is_plain(module, nn.Linear)), name
    with torch.no_grad():
        logits, states = quantised(**inputs).logits, quantised.ernie_m(**inputs).last_hidden_state
        assert_close(logits, plain(**inputs).logits, 2e-5)
        assert_close(real(states, inputs), real(plain.ernie_m(**inputs).last_hidden_state, inputs), 2e-5)
        packed = PackedBatch.from_sequences([row[row != 1] for row in inputs["input_ids"]])
        assert_close(quantised(packed).logits, logits, 2e-5)
        assert float((logits - before(**inputs).logits).abs().max()) > 1e-4


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_gradients_pass_through_quantised_layers(config: Any) -> None:
    """To the embeddings and the norms, as by the values of the quantised weights."""
    _, quantised, plain = models(config, PARTS["all"])
    inputs = batch() | {"labels": torch.tensor([0, 1, 1, 0])}
    for model in (quantised, plain):
        model(**inputs).loss.backward()
    trained = [name for name, parameter in quantised.named_parameters() if parameter.grad is not None]
    assert any("embeddings" in name for name in trained)
    assert any("norm1" in name for name in trained)
    for name in trained:
        assert_close(quantised.get_parameter(name).grad, plain.get_parameter(name).grad, 2e-5)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_lora_on_quantised_layers(config: Any) -> None:
    _, quantised, plain = models(config, PARTS["value only"])
    inputs = batch() | {"labels": torch.tensor([0, 1, 1, 0])}
    settings = peft.LoraConfig(task_type="SEQ_CLS", lora_dropout=0.0, init_lora_weights=False)
    one, other = (peft.get_peft_model(model, settings).eval() for model in (quantised, plain))
    other.load_state_dict({name: value for name, value in one.state_dict().items() if "lora_" in name}, strict=False)
    for model in (one, other):
        model(**inputs).loss.backward()
    for name, parameter in other.named_parameters():
        if parameter.grad is not None:
            assert_close(one.get_parameter(name).grad, parameter.grad, 2e-5)
    with torch.no_grad():
        logits = one(**inputs).logits
        assert_close(logits, other(**inputs).logits, 2e-5)
        with one.disable_adapter():
            assert float((one(**inputs).logits - logits).abs().max()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_from_pretrained_quantises_saves_and_loads(config: Any, tmp_path: Path) -> None:
    before, quantised, _ = models(config, PARTS["all"])
    inputs = batch()
    before.save_pretrained(tmp_path / "plain")
    loaded = ErnieMForSequenceClassification.from_pretrained(
        tmp_path / "plain", quantization_config=TorchAoConfig(config())
    )
    loaded.save_pretrained(tmp_path / "quantised")
    again = ErnieMForSequenceClassification.from_pretrained(tmp_path / "quantised")
    assert not any(fusion.is_plain(module, nn.Linear) for module in again.modules())
    with torch.no_grad():
        wanted = quantised(**inputs).logits
        for model in (loaded, again):
            assert_close(model.eval()(**inputs).logits, wanted, 1e-6)


@pytest.mark.slow
def test_loading_leaves_a_tied_decoder_alone(tmp_path: Path) -> None:
    """A row of zeros, as the word table has for [PAD], has no scale in fp8."""
    _, model = make("ErnieMForMaskedLM", torch.float32, noise=0.0)
    model.save_pretrained(tmp_path)
    config = TorchAoConfig(Float8WeightOnlyConfig())
    loaded = type(model).from_pretrained(tmp_path, quantization_config=config).eval()
    assert loaded.lm_head.decoder.weight is loaded.ernie_m.embeddings.word_embeddings.weight
    assert not fusion.is_plain(loaded.ernie_m.encoder.layers[0].linear1, nn.Linear)
    with torch.no_grad():
        assert loaded(**batch()).logits.isfinite().all()


def test_the_dtype_comes_first() -> None:
    """bfloat16 weights, then quantised: close to the same in float32."""
    before, _, _ = models(Int8WeightOnlyConfig, PARTS["all"])
    inputs = batch()
    half = as_fast(before).bfloat16()
    quantize_(half, Int8WeightOnlyConfig())
    with torch.no_grad():
        logits = half(**inputs).logits
        wanted = before(**inputs).logits
    assert logits.dtype == torch.bfloat16
    assert float((logits.float() - wanted).norm() / wanted.norm()) < 0.1
