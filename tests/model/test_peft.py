"""Adapters by peft: trained, merged, on any layer."""

import copy
import os
import subprocess
import sys
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
from helpers.paths import ROOT
from torch import nn

from erniem_fast import ErnieMConfig, ErnieMModel, join_projections


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


DEFAULTS = {"lora": peft.LoraConfig, "adalora": lambda: peft.AdaLoraConfig(total_step=9), "loha": peft.LoHaConfig}


@pytest.mark.parametrize("config", DEFAULTS.values(), ids=DEFAULTS)
def test_default_target_modules(config: Any) -> None:
    """Query and value, as peft has them for BERT; by get_peft_model and by transformers' add_adapter."""
    _, fast = make()
    again = copy.deepcopy(fast)
    adapted = peft.get_peft_model(fast, config())
    assert adapted.peft_config["default"].target_modules == {"q_proj", "v_proj"}
    again.add_adapter(config())
    for model in (adapted, again):
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert trained
        assert all("q_proj" in name or "v_proj" in name for name in trained)


def test_default_target_modules_of_ia3() -> None:
    """IA3 rescales keys, values and what the feed-forward block reads, and merged it gives the same."""
    _, fast = make("ErnieMForSequenceClassification", **NO_DROPOUT)
    adapted = peft.get_peft_model(fast, peft.IA3Config(task_type="SEQ_CLS")).eval()
    config = adapted.peft_config["default"]
    assert config.target_modules == {"k_proj", "v_proj", "out_proj", "linear2"}
    assert config.feedforward_modules == {"out_proj", "linear2"}
    inputs = batch()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "ia3_l" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        expected = adapted(**inputs).logits
        merged = adapted.merge_and_unload()(**inputs).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


HEADS = {
    "ErnieMForSequenceClassification": ({"task_type": "SEQ_CLS"}, ("classifier",)),
    "ErnieMForTokenClassification": ({"task_type": "TOKEN_CLS"}, ("classifier",)),
    "ErnieMForQuestionAnswering": ({"task_type": "QUESTION_ANS"}, ("qa_outputs",)),
    "ErnieMForMultipleChoice": ({"modules_to_save": ["classifier"]}, ("classifier",)),
    "ErnieMForInformationExtraction": ({"modules_to_save": ["linear_start", "linear_end"]},
                                       ("linear_start", "linear_end")),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_trained_saved_and_merged_with_the_adapter(name: str, tmp_path: Path) -> None:
    _, fast = make(name, **NO_DROPOUT)
    untouched = copy.deepcopy(fast)
    inputs = batch()
    if name == "ErnieMForMultipleChoice":
        inputs = {key: value.unflatten(0, (2, 2)) for key, value in inputs.items()}
        labels: dict[str, Any] = {"labels": torch.tensor([0, 1])}
    else:
        labels = labels_for(name, inputs)
    options, heads = HEADS[name]
    model = peft.get_peft_model(fast, peft.LoraConfig(lora_dropout=0.0, **options)).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):  # LoRA's first factor gets no gradient before the second one is no longer zero
        optimizer.zero_grad()
        model(**inputs, **labels).loss.backward()
        optimizer.step()
    for part in (*heads, "lora_A", "lora_B"):
        assert any(part in key and float(grad.abs().max()) > 0 for key, grad in gradients(model).items()), part
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        before, wanted = untouched(**inputs).to_tuple(), model.eval()(**inputs).to_tuple()
        again = peft.PeftModel.from_pretrained(untouched, tmp_path).eval()
        for one, other, old in zip(again(**inputs).to_tuple(), wanted, before, strict=True):
            assert_close(one, other)
            assert float((one - old).abs().max()) > 1e-3
        for one, other in zip(again.merge_and_unload()(**inputs).to_tuple(), wanted, strict=True):
            assert_close(one, other)


FRESH = """
import sys
import torch
import erniem_fast
model = erniem_fast.ErnieMModel.from_pretrained(sys.argv[1])
assert "peft" not in sys.modules
import peft
assert peft.get_peft_model(model, peft.LoraConfig()).peft_config["default"].target_modules == {"q_proj", "v_proj"}
model = peft.AutoPeftModelForFeatureExtraction.from_pretrained(sys.argv[2]).eval()
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[3])).last_hidden_state, sys.argv[3])
"""


@pytest.mark.slow
def test_a_fresh_process_finds_the_defaults_and_loads_an_adapter(tmp_path: Path) -> None:
    """The package itself does not import peft."""
    base, folder, file = tmp_path / "base", tmp_path / "adapter", tmp_path / "tensor"
    _, fast = make(dtype=torch.float32)
    fast.save_pretrained(base)
    adapted = peft.get_peft_model(ErnieMModel.from_pretrained(base), peft.LoraConfig(task_type="FEATURE_EXTRACTION"))
    randomise_adapter(adapted)
    adapted.save_pretrained(folder)
    ids = batch()["input_ids"]
    torch.save(ids, file)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", FRESH, str(base), str(folder), str(file)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    with torch.no_grad():
        assert_close(torch.load(file), adapted.eval()(ids).last_hidden_state, 1e-6)
        assert float((torch.load(file) - fast(ids).last_hidden_state).abs().max()) > 1e-3


def test_the_tables_of_other_models_stay() -> None:
    ErnieMConfig().to_dict()
    table = peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    assert table["ernie_m"] == ["q_proj", "v_proj"]
    assert table["bert"] == ["query", "value"]


def test_a_user_s_own_defaults_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    table = peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    monkeypatch.setitem(table, "ernie_m", ["linear1"])
    ErnieMConfig().to_dict()
    assert table["ernie_m"] == ["linear1"]
