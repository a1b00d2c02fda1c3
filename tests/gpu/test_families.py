"""Padding-free encoders of transformers on a GPU: right at real sizes, without waiting for the device."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    ErnieConfig,
    ErnieModel,
    RobertaConfig,
    XLMConfig,
    XLMModel,
    XLMRobertaForMaskedLM,
    XLMRobertaModel,
)

from erniem_fast import PackedBatch, padding_free, restore

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")
BASE = {"vocab_size": 1000, "num_hidden_layers": 3}
NANO = {"hidden_size": 312, "num_attention_heads": 12, "intermediate_size": 1248, "use_task_id": True}


def make(name: str) -> Any:
    torch.manual_seed(0)
    if name.startswith("XLM causal"):
        return XLMModel(XLMConfig(vocab_size=1000, emb_dim=1280, n_layers=3, n_heads=16, causal=True, n_langs=3))
    models = {
        "BERT": (BertModel, BertConfig(**BASE)),
        "ERNIE nano": (ErnieModel, ErnieConfig(**BASE, **NANO)),
        "XLM-R": (XLMRobertaModel, RobertaConfig(**BASE, max_position_embeddings=514, pad_token_id=1)),
    }
    cls, config = models[name]
    return cls(config)


def padded(first: int = 3) -> dict[str, Tensor]:
    lengths = torch.tensor([1, 512, 60, 200, 17, 129, 33, 400], device=CUDA)
    mask = torch.arange(512, device=CUDA) < lengths[:, None]
    return {"input_ids": torch.randint(first, 1000, mask.shape, device=CUDA), "attention_mask": mask.long()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["BERT", "ERNIE nano", "XLM-R", "XLM causal"])
def test_families_at_real_sizes(name: str, dtype: torch.dtype) -> None:
    """At most twice as wrong as transformers in the same dtype, forward and backward, at real positions."""
    model, inputs = make(name).to(CUDA).eval(), padded()
    real = inputs["attention_mask"].bool()
    found: dict[Any, list[Tensor]] = {}
    for weights, ours in ((torch.float64, False), (dtype, False), (dtype, True)):
        model.to(weights)
        (padding_free if ours else restore)(model)
        model.zero_grad(set_to_none=True)
        rows = model(**inputs).last_hidden_state[real]
        (rows.float().tanh().square().sum() / 100).backward()
        grads = [p.grad.double() for p in model.parameters() if p.grad is not None]
        found[weights, ours] = [rows.detach().double(), *grads]
    exact = found[torch.float64, False]
    plain, kernels = (
        [(one - two).norm() for one, two in zip(found[dtype, ours], exact, strict=True)] for ours in (False, True)
    )
    assert kernels[0] <= 2 * plain[0]
    assert sum(kernels) <= 2 * sum(plain)


@pytest.mark.parametrize("name", ["BERT", "ERNIE nano", "XLM-R", "XLM causal"])
def test_packed_input_never_waits(name: str) -> None:
    model = padding_free(make(name).to(CUDA, torch.bfloat16)).train()
    rows = [torch.randint(3, 1000, (length,)) for length in (300, 12, 77, 512, 1) * 12]
    batch = PackedBatch.from_sequences(rows, CUDA, model.limits.first_position)
    model(batch).last_hidden_state.sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(batch).last_hidden_state.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["BERT", "ERNIE nano", "XLM-R"])
def test_padded_input_waits_once(name: str) -> None:
    model, inputs = padding_free(make(name).to(CUDA, torch.bfloat16)).eval(), padded()
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(**inputs)
        caught.clear()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            model(**inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in caught if "synchroniz" in str(w.message)]) <= 1


def test_loss_only_gives_the_loss_of_all_logits() -> None:
    config = RobertaConfig(**BASE, max_position_embeddings=514, pad_token_id=1, hidden_dropout_prob=0.0)
    config.attention_probs_dropout_prob = 0.0
    model, inputs = padding_free(XLMRobertaForMaskedLM(config).to(CUDA)).train(), padded()
    drawn = torch.rand(inputs["input_ids"].shape, device=CUDA) < 0.15
    labels = torch.where(drawn & inputs["attention_mask"].bool(), inputs["input_ids"], -100)
    losses = []
    for loss_only in (False, True):
        model.loss_only = loss_only
        losses.append(model(**inputs, labels=labels).loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
