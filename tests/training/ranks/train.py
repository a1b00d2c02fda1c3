"""Train heads in transformers' Trainer on packed batches, and compare with one process on the joined batch."""

import copy
import sys
from pathlib import Path
from typing import Any

import torch
from helpers import families
from helpers.pairs import CLASSES, NO_DROPOUT, batch, labels_for, make
from helpers.samples import samples_of
from helpers.trained import arguments_of, assert_same_weights, descent, plain_steps
from transformers import Trainer

from erniem_fast.training import PackedCollator, compute_loss_func

FAMILY_HEADS = [
    ("bert", "ForTokenClassification", compute_loss_func()), ("roberta", "ForMaskedLM", None),
    ("xlm-roberta", "ForSequenceClassification", compute_loss_func()),
    ("xlm", "ForTokenClassification", compute_loss_func()),
    # Right without a function, too, where every batch has as many labels.
    ("distilbert", "ForQuestionAnswering", None), ("camembert", "ForSequenceClassification", None),
]  # fmt: skip


def uneven(labels: torch.Tensor) -> None:
    """Leave the first sample one label of a token, so that a mean of means is wrong."""
    if labels.dim() == 2:
        labels[0, 1:] = -100


def train(model: Any, samples: list[dict[str, Any]], folder: Path, loss_func: Any = None) -> None:
    """Three steps, each on all the samples: one a process, accumulated twice."""
    collate = PackedCollator.for_model(model)
    alone = copy.deepcopy(model)

    def loss_of(model: Any) -> torch.Tensor:
        inputs = collate(samples)
        return model(**inputs).loss if loss_func is None else loss_func(model(**inputs), inputs["labels"])

    before = copy.deepcopy(model.state_dict())
    plain_steps(alone, loss_of, 3)
    trainer = Trainer(
        model,
        arguments_of(folder, per_device_train_batch_size=1, gradient_accumulation_steps=2, max_steps=3),
        train_dataset=samples,
        data_collator=collate,
        optimizers=descent(model),
        compute_loss_func=loss_func,
    )
    assert trainer.args.world_size == 2
    trainer.train()
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert_same_weights(model, alone)


def main(folder: Path, *names: str) -> None:
    torch.manual_seed(3)
    for name in names or CLASSES[1:]:
        _, model = make(name, **NO_DROPOUT)
        if name == "ErnieMForMultipleChoice":
            inputs = {key: value.unflatten(0, (4, 2)) for key, value in batch((9, 3, 5, 2, 7, 7, 1, 6)).items()}
            inputs["labels"] = torch.tensor([1, 0, -100, 1])
        else:
            inputs = batch((9, 3, 5, 2))
            inputs |= labels_for(name, inputs)
        uneven(inputs.get("labels", torch.empty(0)))
        train(model, samples_of(inputs), folder)
        print(name, flush=True)
    for family, head, loss_func in () if names else FAMILY_HEADS:
        _, model = families.make(family, head, **families.NO_DROPOUT)
        inputs = families.batch(family)
        labels = families.labels_for(family, head, inputs)
        if "labels" in labels:
            uneven(labels["labels"])
        else:
            labels = {key: value % inputs["attention_mask"].sum(1) for key, value in labels.items()}
        train(model, samples_of(inputs | labels), folder, loss_func)
        print(family, head, flush=True)
    print("all heads trained", flush=True)


main(Path(sys.argv[1]), *sys.argv[2:])
