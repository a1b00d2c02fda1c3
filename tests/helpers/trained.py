"""Trainer on small models and plain gradient descent."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from erniem_fast.training import PackedCollator, TokenBudgetBatchSampler, prepare_loader
from helpers.pairs import batch, make
from helpers.samples import samples_of

LEARNING_RATE = 0.05


def arguments_of(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "use_cpu": True, "report_to": [], "save_strategy": "no", "logging_steps": 1, "max_grad_norm": 0.0,
        "disable_tqdm": True, "seed": 7,
    }  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **settings | changes)


def descent(model: Any) -> tuple[torch.optim.Optimizer, Any]:
    """Plain gradient descent at a constant rate, for Trainer's `optimizers`."""
    sgd = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    return sgd, torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 1.0)


def losses_of(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def plain_steps(model: Any, loss_of: Callable[[Any], torch.Tensor], steps: int) -> None:
    """Steps of a loop without Trainer, on the same batch each."""
    sgd, _ = descent(model.train())
    for _ in range(steps):
        sgd.zero_grad()
        loss_of(model).backward()
        sgd.step()


def assert_same_weights(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    one, other = found.state_dict(), expected.state_dict()
    assert one.keys() == other.keys()
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=tolerance, atol=tolerance)


class TokenBudgetTrainer(Trainer):
    """Trainer on batches of about the same number of tokens."""

    def get_train_dataloader(self) -> Any:
        dataset: Any = self.train_dataset
        sampler = TokenBudgetBatchSampler(
            [len(sample["input_ids"]) for sample in dataset], 24, seed=self.args.seed, num_replicas=self.args.world_size
        )
        return prepare_loader(self.accelerator, dataset, sampler, self.data_collator)


def check_resumed(trainer_class: type[Trainer], folder: Path) -> None:
    """Train with dropout, once more from a checkpoint in the middle of the second epoch, and compare every bit."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    runs = []
    samples = samples_of(batch(tuple(random.Random(2).choices(range(2, 12), k=20 * ranks))))
    for index, sample in enumerate(samples):
        sample["labels"] = [-100] + [(token + index) % 3 for token in sample["input_ids"][1:]]
    for checkpoint in (None, "checkpoint-8"):
        torch.manual_seed(5)
        _, model = make("ErnieMForTokenClassification", torch.float32, num_labels=3)
        trainer = trainer_class(
            model,
            arguments_of(
                folder, num_train_epochs=2, per_device_train_batch_size=4, save_strategy="steps", save_steps=8,
                learning_rate=1e-2, max_grad_norm=1.0,
            ),
            train_dataset=samples,
            data_collator=PackedCollator.for_model(model),
        )  # fmt: skip
        torch.manual_seed(trainer.args.process_index + 9)  # must not matter to the run that is resumed
        trainer.train(resume_from_checkpoint=checkpoint and str(folder / checkpoint))
        per_epoch = len(trainer.get_train_dataloader())
        assert per_epoch < 8 < 2 * per_epoch
        assert trainer.state.global_step == 2 * per_epoch
        runs.append((losses_of(trainer), model.state_dict()))
    (losses, weights), (losses_again, weights_again) = runs
    assert len(set(losses)) > 8
    assert losses == losses_again
    for name, value in weights.items():
        assert torch.equal(value, weights_again[name]), name
