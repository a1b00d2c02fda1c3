"""Word tables of another size, and the table that the masked LM ties to its decoder."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_folders import (
    FORMS,
    IDS,
    assert_agree,
    assert_holds,
    assert_nothing_to_report,
    config,
    load,
    make,
    outputs,
    weights,
    write,
)
from safetensors import safe_open

import erniem_fast
from erniem_fast import ErnieMForMaskedLM, ErnieMForSequenceClassification, reference


@pytest.mark.parametrize("models", [erniem_fast, reference], ids=["fast", "reference"])
@pytest.mark.parametrize("size", [113, 71])
def test_resize_token_embeddings(tmp_path: Path, models: Any, size: int) -> None:
    model = models.ErnieMModel(config()).eval()
    before = weights(model)["embeddings.word_embeddings.weight"]
    expected = outputs(model)
    model.resize_token_embeddings(size)
    assert model.config.vocab_size == size
    table = model.get_input_embeddings().weight
    assert table.shape == (size, 32)
    assert torch.equal(table[: min(size, 100)], before[:size])
    for one, other in zip(outputs(model), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert model(torch.tensor([[0, size - 1, 2]])).last_hidden_state.isfinite().all()
    with pytest.raises(ValueError, match=f"input_ids.*{size}"):
        model(torch.tensor([[0, size, 2]]))
    model.save_pretrained(tmp_path)
    assert_agree(load(tmp_path, models=models)[0], model)


def assert_tied(model: Any) -> None:
    words = model.ernie_m.embeddings.word_embeddings.weight
    head = model.lm_head
    assert head.decoder.weight is words
    assert head.decoder.bias is head.bias
    assert head.bias.shape == (words.shape[0],) == (model.config.vocab_size,)
    assert head.decoder.out_features == words.shape[0]


@pytest.mark.parametrize("models", [erniem_fast, reference], ids=["fast", "reference"])
@pytest.mark.parametrize("size", [113, 71])
def test_resize_token_embeddings_of_a_masked_lm(tmp_path: Path, models: Any, size: int) -> None:
    model = models.ErnieMForMaskedLM(config()).eval()
    assert_tied(model)
    with torch.no_grad():
        model.lm_head.bias.normal_()
        before, logits = weights(model), model(IDS).logits
    model.resize_token_embeddings(size)
    assert_tied(model)
    common = min(size, 100)
    found = model(IDS)
    assert found.logits.shape == (2, 5, size)
    torch.testing.assert_close(found.logits[..., :common], logits[..., :common], rtol=1e-5, atol=1e-5)
    assert torch.equal(model.lm_head.bias[:common], before["lm_head.bias"][:common])
    assert model.lm_head.bias.isfinite().all()
    # The table gets gradients as input and as output embedding.
    model(IDS, labels=torch.where(IDS == 1, -100, IDS)).loss.backward()
    assert model.get_input_embeddings().weight.grad.shape == (size, 32)
    assert model.lm_head.bias.grad.any()
    model.save_pretrained(tmp_path)
    again, info = load(tmp_path, "ErnieMForMaskedLM", models)
    assert_nothing_to_report(info)
    assert_tied(again)
    assert_holds(again, weights(model))


@pytest.mark.parametrize("models", [erniem_fast, reference], ids=["fast", "reference"])
@pytest.mark.parametrize("change", ["another decoder", "resized"])
def test_changed_decoder_of_an_untied_masked_lm(tmp_path: Path, models: Any, change: str) -> None:
    model = models.ErnieMForMaskedLM(config(tie_word_embeddings=False)).eval()
    if change == "resized":
        model.resize_token_embeddings(113)
    else:
        model.set_output_embeddings(torch.nn.Linear(32, 100))
    decoder = model.get_output_embeddings()
    with torch.no_grad():
        decoder.bias.normal_()
    assert decoder is model.lm_head.decoder
    assert decoder.weight is not model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    for others in (erniem_fast, reference):
        loaded, info = load(tmp_path, "ErnieMForMaskedLM", others)
        assert_nothing_to_report(info)
        assert_agree(loaded, model)


@pytest.mark.parametrize("models", [erniem_fast, reference], ids=["fast", "reference"])
def test_masked_lm_is_tied_after_loading_and_saved_once(tmp_path: Path, models: Any) -> None:
    model = make("ErnieMForMaskedLM")
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        keys = set(file.keys())
        assert sum(file.get_tensor(key).numel() for key in keys) == model.num_parameters()
    assert "ernie_m.embeddings.word_embeddings.weight" in keys
    assert "lm_head.decoder.weight" not in keys
    assert len({"lm_head.bias", "lm_head.decoder.bias"} & keys) == 1
    loaded, info = load(tmp_path, "ErnieMForMaskedLM", models)
    assert_nothing_to_report(info)
    assert_tied(loaded)
    assert_agree(loaded, model)
    with torch.no_grad():
        loaded.get_input_embeddings().weight[7] += 1
        loaded.lm_head.bias[3] += 1
    assert torch.equal(loaded.lm_head.decoder.weight[7], model.lm_head.decoder.weight[7] + 1)
    assert torch.equal(loaded.lm_head.decoder.bias[3], model.lm_head.bias[3] + 1)
    assert_tied(copy.deepcopy(loaded))


@pytest.mark.parametrize("form", FORMS)
def test_base_into_masked_lm(tmp_path: Path, form: str) -> None:
    model = make()
    loaded, info = load(write(tmp_path, FORMS[form](weights(model))), "ErnieMForMaskedLM")
    assert_tied(loaded)
    assert torch.equal(loaded.lm_head.decoder.weight, model.embeddings.word_embeddings.weight)
    assert set(info["unexpected_keys"]) == {"pooler.dense.weight", "pooler.dense.bias"}
    head = {"dense.weight", "dense.bias", "layer_norm.weight", "layer_norm.bias", "bias"}
    # transformers also reports parameters tied to a missing one.
    assert set(info["missing_keys"]) - {"lm_head.decoder.bias"} == {f"lm_head.{key}" for key in head}
    assert not loaded.lm_head.bias.any()
    assert (loaded.lm_head.layer_norm.weight == 1).all()


def test_xlm_r_keys_of_the_head_load(tmp_path: Path) -> None:
    """Checkpoints that store the tied decoder too, as old ones of XLM-R, load."""
    model = make("ErnieMForMaskedLM")
    loaded, info = load(write(tmp_path, weights(model)), "ErnieMForMaskedLM")
    assert_nothing_to_report(info)
    assert_tied(loaded)
    assert_agree(loaded, model)


def test_untied_masked_lm(tmp_path: Path) -> None:
    model = ErnieMForMaskedLM(config(tie_word_embeddings=False)).eval()
    assert model.lm_head.decoder.weight is not model.get_input_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path)
    for models in (erniem_fast, reference):
        loaded, info = load(tmp_path, "ErnieMForMaskedLM", models)
        assert_nothing_to_report(info)
        assert_holds(loaded, weights(model))
        assert_agree(loaded, model)


def test_a_state_dict_may_be_given(tmp_path: Path) -> None:
    model = make("ErnieMForSequenceClassification")
    for form in FORMS.values():
        loaded = ErnieMForSequenceClassification.from_pretrained(
            None, config=model.config, state_dict=form(weights(model))
        )
        assert_holds(loaded, weights(model))
        assert_agree(loaded, model)
