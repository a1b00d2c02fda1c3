"""Batches of the objectives under what training does to a model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.objectives import TinyTokenizer, models, rng
from helpers.pairs import assert_close, assert_same_gradients
from transformers import Trainer, TrainingArguments

from erniem_fast.training.objectives import BTMLM, CAMLM, ErnieMForPreTraining

PAIRS = [([4, 6, 8, 11], [20, 23]), ([30, 32], [34, 37, 40]), ([50], [52, 54])]
BATCHES = {
    "CAMLM": CAMLM(TinyTokenizer(), mask_probability=0.5)(PAIRS, rng()),
    "BTMLM": BTMLM(TinyTokenizer(), mask_probability=0.5)([first for first, _ in PAIRS], rng(1)),
}
each_batch = pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)


def fresh() -> Any:
    """A copy in training mode, whose dropout is 0."""
    return copy.deepcopy(models()[1]).train()


def run(model: Any, batch: dict[str, Any]) -> Any:
    loss = model(**batch).loss
    loss.backward()
    return loss


@pytest.mark.slow
@each_batch
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(batch: dict[str, Any], reentrant: bool) -> None:
    plain, model = fresh(), fresh()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_close(run(model, batch), run(plain, batch), 1e-12)
    assert_same_gradients(model, plain, 1e-12)


@pytest.mark.slow
@each_batch
def test_autocast(batch: dict[str, Any]) -> None:
    """In bfloat16 about the same loss, and gradients of the parameters' dtype."""
    plain, model = fresh(), fresh().float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    assert_close(loss, run(plain, batch), 5e-2)
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.slow
@each_batch
def test_compiled(batch: dict[str, Any]) -> None:
    plain, model = fresh(), fresh()
    for of in (plain, model):  # each layer takes seconds to compile
        of.ernie_m.encoder.layers, of.config.num_hidden_layers = of.ernie_m.encoder.layers[:1], 1
    compiled = torch.compile(model, backend="aot_eager")
    assert_close(run(compiled, batch), run(plain, batch), 1e-12)
    assert_same_gradients(model, plain, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [CAMLM, BTMLM])
def test_trainer(cls: Any, tmp_path: Path) -> None:
    """transformers' own takes the batches, nested inputs of the generation included, and learns from them."""
    model = ErnieMForPreTraining(copy.deepcopy(models()[1].config))
    objective = cls(TinyTokenizer(), mask_probability=0.5)
    samples = [pair if cls.reads == "pairs" else pair[0] for pair in PAIRS] * 8
    generator = rng()
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=6, gradient_accumulation_steps=2, num_train_epochs=10,
        learning_rate=1e-2, report_to=[], use_cpu=True, logging_steps=1, save_strategy="no", disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=samples, data_collator=lambda given: objective(given, generator))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(0 < loss < 20 for loss in losses)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
