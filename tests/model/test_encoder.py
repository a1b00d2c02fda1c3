"""A post-norm layer of another family on packed rows."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.bert import parts_of
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from erniem_fast import PackedBatch, ops
from erniem_fast.encoder import PackedContext, run_layer
from erniem_fast.layer_parts import LayerParts

LENGTHS = (7, 0, 3, 19, 1)
DOUBLE = torch.float64


def bert(**changes: Any) -> Any:
    config = BertConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=32, initializer_range=0.3, **changes,
    )  # fmt: skip
    model = BertModel(config).to(DOUBLE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def context_of(batch: PackedBatch, seed: Tensor | None = None, dense: bool = False) -> PackedContext:
    plan = None
    if not dense:
        plan = ops.attention_plan(
            batch.cu_seqlens, batch.max_seqlen, batch.total_tokens, num_heads=3, head_dim=8, dtype=DOUBLE
        )
    return PackedContext(batch, seed, None, plan, "torch")


def packed() -> PackedBatch:
    return PackedBatch.from_sequences([torch.randint(60, (length,)) for length in LENGTHS])


def run_packed(model: Any, batch: PackedBatch, context: PackedContext) -> Tensor:
    x = model.embeddings(batch.input_ids[None], position_ids=batch.position_ids[None])[0]
    for index, layer in enumerate(model.encoder.layer):
        x, _ = run_layer(parts_of(layer, index), x, context)
    return x


def run_alone(model: Any, batch: PackedBatch) -> Tensor:
    assert batch.input_ids is not None
    rows = [ids for ids in batch.input_ids.split(list(LENGTHS)) if len(ids)]
    return torch.cat([model(ids[None]).last_hidden_state[0] for ids in rows])


@pytest.mark.parametrize("act", ["gelu", "relu", "silu"])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_bert_s_layers_on_packed_rows(act: str, dense: bool, causal: bool) -> None:
    model, batch = bert(hidden_act=act, is_decoder=causal), packed()
    found, expected = run_packed(model, batch, context_of(batch, dense=dense)), run_alone(model, batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(found)
    parameters = list(model.encoder.parameters())
    grads = [torch.autograd.grad((out * weight).sum(), parameters) for out in (found, expected)]
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("act", "fused"), [("gelu", True), ("relu", True), ("gelu_new", False), ("silu", False)])
def test_other_activations_are_called_and_said_so(act: str, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("erniem_fast.fusion.warn_once", said.append)
    model, batch = bert(hidden_act=act), packed()
    run_packed(model, batch, context_of(batch))
    assert bool(said) != fused


def test_a_causal_layer_with_prefixes_densely_and_fused() -> None:
    model, batch = bert(is_decoder=True), packed()
    prefix_lens = torch.tensor([3, 0, 0, 12, 1], dtype=torch.int32)
    prefixed = replace(batch, prefix_lens=prefix_lens)
    fused, dense = (run_packed(model, prefixed, context_of(prefixed, dense=densely)) for densely in (False, True))
    causal = run_packed(model, batch, context_of(batch))
    torch.testing.assert_close(fused, dense, rtol=0, atol=1e-12)
    rows = torch.arange(batch.total_tokens)
    same = (fused - causal).abs().amax(1) < 1e-12
    # Without a prefix, or with one of a single token, nothing changes; in a prefix every token sees more, and after it
    # what those have become.
    assert torch.equal(same, (rows >= 7) & (rows < 10) | (rows >= 29))


@pytest.mark.parametrize(
    "path", ["attention.self.query", "attention.output.dropout", "intermediate.dense", "output.LayerNorm"]
)
def test_hooks_on_parts_are_run(path: str) -> None:
    model, batch = bert(), packed()
    before = run_packed(model, batch, context_of(batch))
    calls = []
    model.encoder.layer[1].get_submodule(path).register_forward_hook(lambda *args: calls.append(1) or args[-1] * 1.25)
    found = run_packed(model, batch, context_of(batch))
    assert len(calls) == 1
    torch.testing.assert_close(found, run_alone(model, batch), rtol=0, atol=1e-12)
    assert (found - before).abs().max() > 1e-2


@pytest.mark.parametrize("hooked", [None, "output.dense"])
@pytest.mark.parametrize("dense", [False, True])
def test_rows_to_keep_are_those_of_the_whole_layer(hooked: str | None, dense: bool) -> None:
    model, batch = bert(), packed()
    layer, calls = model.encoder.layer[0], []
    if hooked:
        layer.get_submodule(hooked).register_forward_hook(lambda _, __, output: calls.append(output.shape[0]))
    x = torch.randn(batch.total_tokens, 24, dtype=DOUBLE)
    context = context_of(batch, dense=dense)
    expected, probabilities = run_layer(parts_of(layer, 0), x, context)
    keep = torch.tensor([29, 0, 7, 7, 3])
    found, same = run_layer(parts_of(layer, 0), x, replace(context, rows_to_keep=keep))
    torch.testing.assert_close(found, expected[keep], rtol=0, atol=1e-12)
    assert (probabilities is None and same is None) or torch.equal(probabilities, same)
    # The hook of a part sees the rows that are computed.
    assert calls == {None: [], "output.dense": [30, 5]}[hooked]


def test_a_dropout_may_be_a_module_a_number_or_none() -> None:
    """Of the same probability, a module and a number draw the same mask; in eval mode neither drops."""
    model, batch = bert(hidden_dropout_prob=0.4, attention_probs_dropout_prob=0.2), packed()
    x = torch.randn(batch.total_tokens, 24, dtype=DOUBLE)
    modules = parts_of(model.encoder.layer[0], 0)

    def with_dropouts(p: float | None) -> LayerParts:
        attention = modules.attention._replace(dropout=None if p is None else 0.2)  # type: ignore[union-attr]
        return modules._replace(attention=attention, dropout1=p, dropout2=p)

    def run(parts: LayerParts, seed: Tensor | None) -> Tensor:
        return run_layer(parts, x, context_of(batch, seed))[0]

    seed = ops.draw_seed(torch.device("cpu"))
    plain = run(modules, None)
    assert torch.equal(run(with_dropouts(0.4), None), plain)
    assert torch.equal(run(with_dropouts(0), seed), run(with_dropouts(0.0), seed))
    assert torch.equal(run(with_dropouts(None), seed), plain)
    model.train()
    dropped = run(modules, seed)
    assert torch.equal(run(with_dropouts(0.4), seed), dropped)
    assert (dropped - plain).abs().max() > 1e-2
    # Around a part that is called, a number drops, too.
    unfused = with_dropouts(0.4)._replace(norm1=nn.Identity(), norm2=nn.Identity())
    torch.manual_seed(3)
    one = run(unfused, seed)
    torch.manual_seed(4)
    assert not torch.equal(run(unfused, seed), one)
