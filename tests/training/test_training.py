"""Training: Trainer, accumulation, flattened batches, gradient checkpointing, seeds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pairs import (
    CLASSES,
    LENGTHS,
    NO_DROPOUT,
    assert_agree,
    assert_close,
    assert_same_gradients,
    batch,
    gradients,
    labels_for,
    make,
    real,
)
from torch import Tensor, nn
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

import erniem_fast


def train(model: Any, folder: Path, data: list[dict[str, Any]], collator: Any = None, **options: Any) -> list[float]:
    """Losses logged in a training with plain gradient descent, one an optimiser step."""
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], save_strategy="no", logging_steps=1, max_grad_norm=0.0,
        disable_tqdm=True, dataloader_drop_last=False, seed=7, **options,
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=collator,
        optimizers=(sgd, torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 1.0)),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_with_gradient_accumulation(tmp_path: Path, checkpointing: bool) -> None:
    """Losses and weights equal those of a plain loop; each step takes all the data, in four parts."""
    plain, fast = make("ErnieMForSequenceClassification", num_labels=3, **NO_DROPOUT)
    inputs = batch((9, 3, 5, 2, 7, 7, 1, 6))
    inputs |= labels_for("ErnieMForSequenceClassification", inputs, 3)
    data = [{key: value[row] for key, value in inputs.items()} for row in range(8)]
    before = {name: value.clone() for name, value in fast.state_dict().items()}
    logged = train(
        fast, tmp_path, data, per_device_train_batch_size=2, gradient_accumulation_steps=4, num_train_epochs=3,
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    sgd = torch.optim.SGD(plain.train().parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        loss = plain(**inputs).loss
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    assert len(set(losses)) == 3  # random labels of random weights: a step need not lower the loss
    # Trainer rounds what it logs.
    assert_close(torch.tensor(logged), torch.tensor(losses), 2e-4)
    for name, value in plain.state_dict().items():
        assert_close(fast.state_dict()[name], value, 2e-5)
        # The key bias adds a constant to all scores of a softmax: its gradient is 0.
        assert not torch.equal(value, before[name]) or "k_proj.bias" in name
    fast.eval()
    plain.eval()
    with torch.no_grad():
        assert_agree(fast, plain, inputs, 1e-4)


def features(inputs: dict[str, Tensor]) -> list[dict[str, list[int]]]:
    rows = zip(inputs["input_ids"], inputs["labels"], inputs["attention_mask"].bool(), strict=True)
    return [{"input_ids": ids[mask].tolist(), "labels": labels[mask].tolist()} for ids, labels, mask in rows]


@pytest.mark.parametrize("name", ["ErnieMForTokenClassification", "ErnieMForMaskedLM"])
def test_flattened_batches_have_the_loss_of_padded_ones(name: str) -> None:
    plain, fast = make(name)
    inputs = batch()
    inputs |= labels_for(name, inputs)
    # The collator hides the first label of each sequence.
    inputs["labels"][:, 0] = -100
    flattened = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(features(inputs))
    assert flattened["input_ids"].shape == (1, sum(LENGTHS))
    found, padded, expected = fast(**flattened), fast(**inputs), plain(**inputs)
    assert_close(found.loss, expected.loss)
    assert_close(padded.loss, expected.loss)
    assert_close(found.logits[0], real(expected.logits, inputs))
    for one in (found, expected):
        one.loss.backward()
    assert_same_gradients(fast, plain)


def test_trainer_on_flattened_batches(tmp_path: Path) -> None:
    plain, fast = make("ErnieMForTokenClassification", **NO_DROPOUT)
    inputs = batch()
    inputs |= labels_for("ErnieMForTokenClassification", inputs)
    inputs["labels"][:, 0] = -100
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    # Trainer drops the columns that the signature of `forward` does not name.
    data = [feature | {"text": "not for the model"} for feature in features(inputs)]
    logged = train(fast, tmp_path, data, collator, per_device_train_batch_size=4, num_train_epochs=2)
    sgd = torch.optim.SGD(plain.train().parameters(), lr=0.05)
    for found in logged:
        loss = plain(**inputs).loss
        assert found == pytest.approx(loss.item(), abs=2e-4)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    assert len(logged) == 2


@pytest.mark.parametrize("models", ["fast", "reference"])
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing(models: str, use_reentrant: bool, dropout: float) -> None:
    plain, fast = make(
        "ErnieMForSequenceClassification", hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        act_dropout=dropout,
    )  # fmt: skip
    model = (fast if models == "fast" else plain).train()
    inputs = batch()
    inputs |= labels_for("ErnieMForSequenceClassification", inputs)
    results = []
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    for checkpointing in (False, True, False):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
            assert model.is_gradient_checkpointing
        else:
            model.gradient_checkpointing_disable()
        handle = model.ernie_m.encoder.layers[1].linear1.register_forward_pre_hook(count)
        model.zero_grad(set_to_none=True)
        calls = 0
        torch.manual_seed(3)
        loss = model(**inputs).loss
        loss.backward()
        handle.remove()
        assert calls == (2 if checkpointing else 1)
        results.append((loss.detach(), gradients(model)))
    for loss, grads in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert grads.keys() == results[0][1].keys()
        assert all(torch.equal(grads[name], results[0][1][name]) for name in grads)
    assert len(results[0][1]) == len(list(model.parameters()))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_of_dropouts_that_are_called(use_reentrant: bool) -> None:
    """A hooked dropout draws from torch's generator, and checkpointing restores it."""
    _, model = make("ErnieMForTokenClassification", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    inputs = batch()
    inputs |= labels_for("ErnieMForTokenClassification", inputs)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda *_: None)
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        model.train().zero_grad(set_to_none=True)
        torch.manual_seed(3)
        model(**inputs).loss.backward()
        results.append(gradients(model))
    assert all(torch.equal(results[1][name], grad) for name, grad in results[0].items())


@pytest.mark.parametrize("models", ["fast", "reference"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_above_frozen_embeddings(models: str, use_reentrant: bool) -> None:
    """Reentrant checkpointing needs an input that requires gradients."""
    plain, fast = make("ErnieMForTokenClassification", hidden_dropout_prob=0.3)
    model = (fast if models == "fast" else plain).train()
    model.ernie_m.embeddings.requires_grad_(False)
    inputs = batch()
    inputs |= labels_for("ErnieMForTokenClassification", inputs)
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            for _ in range(2):
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        model.zero_grad(set_to_none=True)
        torch.manual_seed(3)
        model(**inputs).loss.backward()
        results.append(gradients(model))
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[1][name], grad) for name, grad in results[0].items())
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states[0]
    assert not hidden.requires_grad
    model.disable_input_require_grads()
    assert not any(module._forward_hooks for module in model.modules())


def test_every_encoder_of_a_model_is_checkpointed_above_frozen_embeddings() -> None:
    class Two(erniem_fast.ErnieMPreTrainedModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.left, self.right = (erniem_fast.ErnieMModel(config, add_pooling_layer=False) for _ in range(2))

    _, single = make(**NO_DROPOUT)
    model = Two(single.config).double().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    for encoder in (model.left, model.right):
        encoder.embeddings.requires_grad_(False)
        encoder(**batch()).last_hidden_state.square().sum().backward()
        assert encoder.encoder.layers[0].linear1.weight.grad.abs().max() > 0
    model.disable_input_require_grads()
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", CLASSES[1:])
def test_training_is_governed_by_manual_seed(name: str) -> None:
    """Equal seeds give bitwise equal gradients, other seeds other losses; eval mode has no dropout."""
    _, model = make(name, act_dropout=0.1)
    inputs = batch()
    inputs |= labels_for(name, inputs)
    if name == "ErnieMForMultipleChoice":
        inputs = {key: value[None] for key, value in inputs.items()} | {"labels": torch.tensor([2])}

    def step(seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad(set_to_none=True)
        torch.manual_seed(seed)
        loss = model(**inputs).loss
        loss.backward()
        return loss.detach(), gradients(model)

    model.train()
    (loss, grads), (again, same), (other, _) = step(5), step(5), step(6)
    assert torch.equal(loss, again)
    assert all(torch.equal(same[key], grad) for key, grad in grads.items())
    assert not torch.equal(loss, other)
    first, second = model(**inputs).loss, model(**inputs).loss
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(step(5)[0], step(6)[0])
