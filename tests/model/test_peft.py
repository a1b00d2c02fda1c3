"""Adapters by peft: trained, merged, on any layer."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from helpers.pairs import (
    NO_DROPOUT,
    assert_agree,
    assert_close,
    assert_same_gradients,
    batch,
    gradients,
    labels_for,
    make,
)
from torch import nn

from erniem_fast import join_projections


def lora(model: Any, **changes: Any) -> Any:
    settings = {"r": 4, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]} | changes
    return peft.get_peft_model(model, peft.LoraConfig(**settings))


def randomise_adapter(model: Any) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)


def test_lora_is_the_reference_with_the_same_adapter() -> None:
    plain, fast = make("ErnieMForSequenceClassification", **NO_DROPOUT)
    inputs = batch()
    inputs |= labels_for("ErnieMForSequenceClassification", inputs)
    with torch.no_grad():
        before = fast(**inputs).logits  # leaves a fused weight behind
    plain, fast = lora(plain), lora(fast)
    randomise_adapter(plain)
    fast.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert_agree(fast.eval(), plain.eval(), inputs)
        assert (fast(**inputs).logits - before).abs().max() > 1e-3
        with fast.disable_adapter():
            assert_close(fast(**inputs).logits, before)
    for model in (plain.train(), fast.train()):
        model(**inputs).loss.backward()
    assert_same_gradients(fast, plain)
    assert gradients(fast)
    assert all("lora_" in name for name in gradients(fast))
    assert len(gradients(fast)) == 2 * 2 * 2


def test_lora_trains() -> None:
    _, fast = make("ErnieMForSequenceClassification")
    inputs = batch()
    inputs |= labels_for("ErnieMForSequenceClassification", inputs)
    model = lora(fast, lora_dropout=0.1, task_type="SEQ_CLS").train()
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(12):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < sum(losses[:3])
    assert all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items())
    assert any("classifier" in name for name in gradients(model))


@pytest.mark.parametrize("forward_between", [True, False])
@pytest.mark.parametrize("use_rslora", [True, False])
def test_merged_lora(forward_between: bool, use_rslora: bool) -> None:
    plain, fast = make("ErnieMForSequenceClassification")
    inputs = batch()
    with torch.no_grad():
        before = fast(**inputs).logits
        adapted, expected = lora(fast, use_rslora=use_rslora), lora(plain, use_rslora=use_rslora)
        randomise_adapter(adapted)
        expected.load_state_dict(adapted.state_dict())
        wanted = expected.eval()(**inputs).logits
        if forward_between:
            adapted.eval()
            assert_close(adapted(**inputs).logits, wanted)
            adapted.merge_adapter()
            assert_close(adapted(**inputs).logits, wanted)
            adapted.unmerge_adapter()
            assert_close(adapted(**inputs).logits, wanted)
        merged = adapted.merge_and_unload()
        assert type(merged.ernie_m.encoder.layers[0].self_attn.self_attn.q_proj) is nn.Linear
        assert_close(merged(**inputs).logits, wanted)
        assert (wanted - before).abs().max() > 1e-3


def test_merged_lora_from_a_folder(tmp_path: Path) -> None:
    """On a model that has run before."""
    plain, fast = make("ErnieMForSequenceClassification")
    adapted = lora(copy.deepcopy(fast))
    randomise_adapter(adapted)
    adapted.save_pretrained(tmp_path)
    inputs = batch()
    with torch.no_grad():
        before = fast(**inputs).logits
        wanted = peft.PeftModel.from_pretrained(plain, tmp_path)(**inputs).logits
        merged = peft.PeftModel.from_pretrained(fast, tmp_path).merge_and_unload()
        assert_close(merged(**inputs).logits, wanted)
        assert (wanted - before).abs().max() > 1e-3


TARGETS = ["all-linear", ["linear1", "linear2", "out_proj", "k_proj", "dense"], ["word_embeddings", "v_proj"]]


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_adapters_on_other_layers(targets: Any) -> None:
    plain, fast = make("ErnieMForSequenceClassification", **NO_DROPOUT)
    inputs = batch()
    inputs |= labels_for("ErnieMForSequenceClassification", inputs)
    plain, fast = lora(plain, target_modules=targets), lora(fast, target_modules=targets)
    randomise_adapter(plain)
    fast.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert_agree(fast.eval(), plain.eval(), inputs)
    for model in (plain.train(), fast.train()):
        model(**inputs).loss.backward()
    assert_same_gradients(fast, plain)


def test_adapters_on_joined_projections() -> None:
    """Attached, a projection with an adapter is read by itself; merged, the joined weights hold it."""
    plain, fast = make(**NO_DROPOUT)
    inputs = batch()
    join_projections(fast)
    plain, fast = lora(plain), lora(fast)
    randomise_adapter(plain)
    fast.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert_agree(fast.eval(), plain.eval(), inputs)
        for model in (plain, fast):
            model.merge_adapter()
        assert_agree(fast, plain, inputs)
        for model in (plain, fast):
            model.unmerge_adapter()
        assert_agree(fast, plain, inputs)
        fast, plain = fast.merge_and_unload(), plain.merge_and_unload()
        assert_agree(fast, plain, inputs)
        join_projections(fast)
        assert_agree(fast, plain, inputs)
