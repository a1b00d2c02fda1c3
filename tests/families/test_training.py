"""Trainer around a padding-free model: losses and weights are those of transformers' own."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers.families import NO_DROPOUT, assert_close, batch, labels_for, make
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

from erniem_fast import encoder

ROWS = 16
LENGTHS = tuple(1 + index * 5 % 13 for index in range(ROWS))


def train(model: Any, data: Any, folder: Path, collator: Any = None, **options: Any) -> list[float]:
    """Losses of 20 steps."""
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True,
        max_steps=20, learning_rate=3e-3, per_device_train_batch_size=4, seed=7, **options,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collator)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_twenty_steps(checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows of other lengths each; Trainer drops the columns that forward's signature does not name."""
    plain, fast = make("bert", "ForSequenceClassification", **NO_DROPOUT)
    seen: list[int] = []
    run = encoder.run_layer
    monkeypatch.setattr(encoder, "run_layer", lambda parts, x, *a: seen.append(len(x)) or run(parts, x, *a))
    inputs = batch("bert", lengths=LENGTHS)
    inputs |= labels_for("bert", "ForSequenceClassification", inputs)
    columns: dict[str, Any] = {name: value.tolist() for name, value in inputs.items()}
    data = Dataset.from_dict(columns | {"text": ["some"] * ROWS, "seq_idx": list(range(ROWS))})
    before = copy.deepcopy(fast.state_dict())
    options = {"gradient_checkpointing": checkpointing}
    found, expected = (train(model, data, tmp_path, **options) for model in (fast, plain))
    assert len(found) == 20
    assert_close(torch.tensor(found), torch.tensor(expected), 1e-6)
    assert sum(found[-4:]) < 0.9 * sum(found[:4])
    for name, value in plain.state_dict().items():
        assert_close(fast.state_dict()[name], value, 1e-6, name)
    assert any(not torch.equal(before[name], value) for name, value in fast.state_dict().items())
    assert sum(seen) == 5 * sum(LENGTHS) * 2 * (2 if checkpointing else 1)  # 4 batches an epoch, 2 layers


@pytest.mark.slow
def test_flattened_masked_lm(tmp_path: Path) -> None:
    """By DataCollatorWithFlattening, on labelled rows only, against padded batches of transformers."""
    plain, fast = make("xlm-roberta", "ForMaskedLM", **NO_DROPOUT)
    fast.loss_only = True
    inputs = batch("xlm-roberta", lengths=LENGTHS)
    inputs["labels"] = labels_for("xlm-roberta", "ForMaskedLM", inputs)["labels"]
    inputs["labels"][:, 0] = -100  # the collator ignores each sequence's first label
    inputs["labels"][:, 1:3] = torch.where(inputs["attention_mask"][:, 1:3] == 1, 7, -100)
    padded = [{name: value[row] for name, value in inputs.items() if name != "token_type_ids"} for row in range(ROWS)]
    rows = [
        {name: item[name][item["attention_mask"] == 1].tolist() for name in ("input_ids", "labels")} for item in padded
    ]
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, position_ids_start=2)
    found = train(fast, rows, tmp_path, collate, remove_unused_columns=False)
    expected = train(plain, padded, tmp_path)
    assert_close(torch.tensor(found), torch.tensor(expected), 1e-6)
