"""What `explain` says of a model, line by line."""

import pytest
import torch
from helpers.families import batch, make
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from erniem_fast import explain, validation


@pytest.fixture(autouse=True)
def _said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_warned", set())


def test_layers_and_what_is_called_in_them() -> None:
    _, fast = make("bert")
    first, second = fast.encoder.layer
    first.attention.self.query = nn.Sequential(first.attention.self.query)
    first.output.dense.register_forward_hook(lambda *_: None)
    second.attention.register_forward_hook(lambda *_: None)
    assert explain(nn.ModuleDict({"inner": fast})).splitlines() == [
        "inner (BertModel): on packed rows, backend auto",
        "  layer 0: on packed rows; called as it is: attention.self.query (torch's Sequential); "
        "called as it is: output.dense (torch's Linear with hooks)",
        "  layer 1: transformers' own, on padded tokens: attention has hooks",
    ]


def test_heads_and_encoders_as_a_whole() -> None:
    _, fast = make("roberta", "ForMaskedLM")
    fast.loss_only = True
    fast.roberta.encoder.register_forward_hook(lambda *_: None)
    assert explain(fast).splitlines() == [
        "model (RobertaForMaskedLM): projects labelled tokens only",
        "roberta (RobertaModel): transformers' own, padding included: encoder has hooks",
    ]


def test_plain_models() -> None:
    plain, _ = make("bert")
    assert explain(plain) == "model (BertModel): transformers' own, padding included"
    assert explain(nn.Linear(1, 1)) == "Linear: holds no encoder of transformers"


def test_quantised_weights_are_named() -> None:
    """A Linear that is called although its class is torch's own."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    _, fast = make("bert")
    quantize_(fast.float().encoder.layer[0], Int8WeightOnlyConfig())
    found = explain(fast).splitlines()
    assert found[1].endswith("output.dense (torch's Linear whose weight is of Int8Tensor)")
    assert found[2] == "  layer 1: on packed rows, all fused"


def test_hooks_on_every_module() -> None:
    """A FLOP counter's are said to be what they are."""
    _, fast = make("bert")
    with FlopCounterMode(display=False), torch.no_grad():
        said = explain(fast)
        fast(**batch("bert"))
    assert said == "model (BertModel): transformers' own, padding included: every module has hooks, as a FLOP counter's"
    assert explain(fast).endswith("all fused")
