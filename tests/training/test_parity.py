"""Parity of training: loss curves of the padding-free model on packed batches and of the reference on padded ones.

    pytest -m slow -s tests/training/test_parity.py

prints the largest relative difference of the losses. Both train by transformers' Trainer: AdamW, clipped gradients, the
same order of the same real text, fp32.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.documents import DEMO_DATA
from helpers.golden_tokenizer import build
from torch import Tensor
from transformers import Trainer, TrainingArguments

import erniem_fast
from erniem_fast import ErnieMConfig, reference
from erniem_fast.training import PackedCollator

pytestmark = pytest.mark.slow
HEADS = {"classification": "ErnieMForSequenceClassification", "masked LM": "ErnieMForMaskedLM"}
LONGEST, BATCH = 32, 8
CLS, PAD, SEP, FIRST = 0, 1, 2, 4
STEPS = 200
SEEDS, FEWER_STEPS = 5, 100
"""With dropout."""
Feature = dict[str, Any]


class Data:
    """Pieces of the demo's documents, with ids of the tokens that occur in them only: a small vocabulary is fast.

    Attributes:
        features: of each task, by its name.
        sizes: fields of the model's configuration.
    """

    def __init__(self) -> None:
        tokenizer = build()
        documents = [json.loads(line) for line in DEMO_DATA.read_text("utf-8").splitlines()]
        languages = sorted({document["lang"] for document in documents})
        pieces, labels = [], []
        for document in documents:
            ids = tokenizer(document["text"], add_special_tokens=False)["input_ids"]
            for start in range(0, len(ids), LONGEST - 2):
                pieces.append(ids[start : start + LONGEST - 2])
                labels.append(languages.index(document["lang"]))
        numbers = {token: FIRST + rank for rank, token in enumerate(sorted({token for ids in pieces for token in ids}))}
        rows = [[CLS, *(numbers[token] for token in ids), SEP] for ids in pieces]
        mask = FIRST + len(numbers)
        drawn = torch.Generator().manual_seed(3)
        self.features: dict[str, list[Feature]] = {
            "classification": [
                {"input_ids": row, "labels": label} for row, label in zip(rows, labels, strict=True)
            ],
            "masked LM": [_masked(torch.tensor(row), mask, drawn) for row in rows],
        }  # fmt: skip
        self.sizes: dict[str, Any] = {
            "vocab_size": mask + 1, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 128, "max_position_embeddings": LONGEST + 2, "initializer_range": 0.05,
            "num_labels": len(languages),
        }  # fmt: skip


def _masked(ids: Tensor, mask: int, drawn: torch.Generator) -> Feature:
    """A sample of which 15 % of the tokens are to be predicted, one at least."""
    chosen = torch.rand(len(ids), generator=drawn) < 0.15
    chosen[1], chosen[0], chosen[-1] = True, False, False
    return {"input_ids": torch.where(chosen, mask, ids).tolist(), "labels": torch.where(chosen, ids, -100).tolist()}


def pad(features: list[Feature]) -> dict[str, Tensor]:
    """A padded batch."""
    width = max(len(feature["input_ids"]) for feature in features)

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])

    ids, labels = [one["input_ids"] for one in features], [one["labels"] for one in features]
    return {
        "input_ids": padded(ids, PAD), "attention_mask": padded([[1] * len(row) for row in ids], 0),
        "labels": torch.tensor(labels) if isinstance(labels[0], int) else padded(labels, -100),
    }  # fmt: skip


class Recording(Trainer):
    """Trainer that keeps each step's loss, which it logs rounded only."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.losses: list[float] = []

    def compute_loss(self, *args: Any, **options: Any) -> Any:
        loss = super().compute_loss(*args, **options)
        self.losses.append(loss.item())
        return loss


@pytest.fixture(scope="module")
def data() -> Data:
    return Data()


def losses(data: Data, task: str, models: Any, folder: Path, dropout: float, seed: int, steps: int) -> Tensor:
    """(steps,) losses of a training from the same parameters; the seed governs dropout alone.

    Args:
        data, task: what is learned.
        models: the module `reference`, trained on padded batches, or `erniem_fast`, on packed ones.
        folder: where Trainer may write.
        dropout: of hidden states and of attention.
        seed: of dropout.
        steps: of the optimizer.
    """
    config = ErnieMConfig(**data.sizes, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    torch.manual_seed(1)
    start = getattr(reference, HEADS[task])(config)
    model = getattr(models, HEADS[task])(config)
    model.load_state_dict(start.state_dict())
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=1e-3, warmup_steps=20, seed=seed,
        data_seed=5, use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    collator = PackedCollator.for_model(model) if models is erniem_fast else pad
    trainer = Recording(model, arguments, train_dataset=data.features[task], data_collator=collator)
    trainer.train()
    assert len(trainer.losses) == steps
    return torch.tensor(trainer.losses, dtype=torch.float64)


@pytest.mark.parametrize("task", HEADS)
def test_losses_agree_at_every_step(data: Data, tmp_path: Path, task: str) -> None:
    expected, found = (losses(data, task, models, tmp_path, 0.0, 0, STEPS) for models in (reference, erniem_fast))
    assert expected[-20:].mean() < 0.8 * expected[:5].mean()  # something is learned
    difference = (found - expected).abs() / expected
    print(f"\n{task}: losses differ by at most {difference.max():.1e} relative, at step {difference.argmax() + 1}")
    assert difference.max() < 1e-4


@pytest.mark.parametrize("task", HEADS)
def test_curves_with_dropout_agree_within_the_spread_of_seeds(data: Data, tmp_path: Path, task: str) -> None:
    """Of 5 seeds each, in each tenth of the steps; a curve without dropout lies far off."""

    def tenths(models: Any, dropout: float, seeds: range) -> Tensor:
        curves = [losses(data, task, models, tmp_path, dropout, seed, FEWER_STEPS) for seed in seeds]
        return torch.stack(curves).unflatten(1, (10, -1)).mean(2)

    expected = tenths(reference, 0.1, range(SEEDS))
    found = tenths(erniem_fast, 0.1, range(10, 10 + SEEDS))
    without = tenths(erniem_fast, 0.0, range(1))
    error = ((expected.var(0) + found.var(0)) / SEEDS).sqrt()
    far, farther = ((curves.mean(0) - expected.mean(0)).abs().div(error).max() for curves in (found, without))
    print(f"\n{task}: mean curves lie at most {far:.1f} standard errors apart; without dropout {farther:.1f}")
    assert far < 5  # Student's t of 8 degrees of freedom exceeds 5 once in 1,000
    assert farther > 10
