"""The Triton kernels under a padding-free model, interpreted where there is no GPU."""

from typing import Any

import pytest
import torch
from helpers.families import NO_DROPOUT, assert_close, batch, gradients, labels_for, make

SIZES: dict[str, dict[str, Any]] = {
    "bert": {},
    # ERNIE 3.0 nano's heads are 26 wide, Tiny's activation is ReLU.
    "ernie with tasks": {"hidden_size": 52, "num_attention_heads": 2, "hidden_act": "relu"},
    "causal xlm": {},
}


@pytest.mark.parametrize("family", [
    pytest.param("bert", marks=pytest.mark.slow), "ernie with tasks", pytest.param("causal xlm", marks=pytest.mark.slow)
])  # fmt: skip
@pytest.mark.parametrize("dropped", [pytest.param(True, marks=pytest.mark.slow), False])
def test_forward_and_backward(family: str, dropped: bool, device: torch.device) -> None:
    """As torch's operations, which draw the same masks."""
    changes = SIZES[family] | ({} if dropped else NO_DROPOUT)
    head = "ForTokenClassification"
    _, fast = make(family, head, torch.float32, num_hidden_layers=1, **changes)
    fast.to(device).train()
    inputs = batch(family)
    inputs |= labels_for(family, head, inputs)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    results = []
    for backend in ("torch", "triton"):
        fast.base_model.backend = backend
        torch.manual_seed(5)
        output = fast(**inputs)
        output.loss.backward()
        results.append((output, gradients(fast)))
    (expected, wanted), (found, grads) = results
    assert_close(found.logits, expected.logits, 1e-5)
    assert_close(found.loss, expected.loss, 1e-5)
    assert not torch.equal(found.logits, expected.logits)  # other code has run
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    assert grads.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert_close(grads[name], grad, 1e-5, name, largest)


@pytest.mark.parametrize("family", ["xlm-roberta"])
def test_first_tokens_only(family: str, device: torch.device) -> None:
    """The last layer leaves out rows that a head does not read."""
    _, fast = make(family, "ForSequenceClassification", torch.float32, num_hidden_layers=1)
    fast.to(device)
    inputs = {name: value.to(device) for name, value in batch(family, "left").items()}
    logits = []
    with torch.no_grad():
        for backend in ("torch", "triton"):
            fast.base_model.backend = backend
            logits.append(fast(**inputs).logits)
    assert_close(logits[1], logits[0], 1e-5)
