"""Evaluate and predict on packed batches: one row a sample, those of every sample alone."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import families
from helpers.pairs import CLASSES, batch, labels_for, make
from helpers.samples import Sample, samples_of
from helpers.trained import arguments_of
from transformers import EvalPrediction, Trainer

from erniem_fast.training import PackedCollator

LENGTHS = (9, 3, 5, 2, 12, 7, 4)
FAMILY_HEADS = [
    ("bert", "ForTokenClassification"), ("roberta", "ForMaskedLM"), ("xlm-roberta", "ForSequenceClassification"),
    ("distilbert", "ForQuestionAnswering"), ("xlm", "ForTokenClassification"), ("xlm", "ForQuestionAnsweringSimple"),
]  # fmt: skip
ANSWERS = ["start_positions", "end_positions"]


def arrays(values: Any) -> list[np.ndarray]:
    return list(values) if isinstance(values, tuple) else [values]


def right(prediction: EvalPrediction) -> dict[str, float]:
    """Sum and number of the labels that count, and how many of them the greatest score has; padding has no say."""
    labels, scores = arrays(prediction.label_ids), arrays(prediction.predictions)
    counted = [one != -100 for one in labels]
    best = [one.argmax(-1) if one.ndim > 1 else one for one in scores]
    pairs = zip(best, labels, counted, strict=True)
    hits = [(one == other)[mask] for one, other, mask in pairs if one.shape == other.shape]
    return {
        "sum": float(sum(one[mask].sum() for one, mask in zip(labels, counted, strict=True))),
        "number": float(sum(mask.sum() for mask in counted)),
        "right": float(sum(one.sum() for one in hits)),
    }


def check(model: Any, samples: list[Sample], folder: Path) -> None:
    """Compare with the model on one sample after the other."""
    collate = PackedCollator.for_model(model)
    names = [name for name in ("labels", *ANSWERS) if name in samples[0]]
    with torch.no_grad():
        outputs = [model(**collate([sample])) for sample in samples]
    keys = [key for key in outputs[0] if "logits" in key]
    alone = [[output[key][0].numpy() for output in outputs] for key in keys]
    trainer = Trainer(
        model,
        arguments_of(folder, per_device_eval_batch_size=2, label_names=names),
        eval_dataset=samples,
        data_collator=collate,
        compute_metrics=right,
    )
    predicted = trainer.predict(samples)
    for rows, found in zip(alone, arrays(predicted.predictions), strict=True):
        assert len(found) == len(samples)
        for row, expected in zip(found, rows, strict=True):
            np.testing.assert_allclose(row[: len(expected)], expected, rtol=1e-10, atol=1e-10)
            assert row.ndim > 1 or row.argmax() < len(expected)
    for name, found in zip(names, arrays(predicted.label_ids), strict=True):
        assert len(found) == len(samples)
        for row, sample in zip(found, samples, strict=True):
            expected = np.asarray(sample[name])
            if expected.ndim:
                assert (row[len(expected) :] == -100).all()
                row = row[: len(expected)]
            assert (row == expected).all()
    expected_metrics = right_alone(alone, [[np.asarray(sample[name]) for sample in samples] for name in names])
    metrics = trainer.evaluate()
    assert {key: metrics[f"eval_{key}"] for key in expected_metrics} == expected_metrics
    assert np.isfinite(metrics["eval_loss"])
    unlabelled = [{key: value for key, value in sample.items() if key not in names} for sample in samples]
    for found, other in zip(
        arrays(trainer.predict(unlabelled).predictions), arrays(predicted.predictions), strict=True
    ):
        np.testing.assert_array_equal(found, other)


def right_alone(scores: list[list[np.ndarray]], labels: list[list[np.ndarray]]) -> dict[str, float]:
    """`right`, of samples one by one."""
    total = {"sum": 0.0, "number": 0.0, "right": 0.0}
    for rows, targets in zip(scores, labels, strict=True):
        for row, target in zip(rows, targets, strict=True):
            mask = target != -100
            total["sum"] += target[mask].sum()
            total["number"] += mask.sum()
            best = row.argmax(-1)
            if best.shape == target.shape:
                total["right"] += (best == target)[mask].sum()
    return total


def main(folder: Path) -> None:
    torch.manual_seed(3)
    for name in CLASSES[1:]:
        _, model = make(name)
        if name == "ErnieMForMultipleChoice":
            flat = batch(tuple(length for length in LENGTHS for _ in range(3)))
            inputs = {key: value.unflatten(0, (7, 3)) for key, value in flat.items()}
            inputs["labels"] = torch.tensor([1, 0, 2, 2, 0, 1, 2])
        else:
            inputs = batch(LENGTHS)
            inputs |= labels_for(name, inputs)
        check(model, samples_of(inputs), folder)
        print(name, flush=True)
    for family, head in FAMILY_HEADS:
        _, model = families.make(family, head)
        inputs = families.batch(family, lengths=LENGTHS)
        labels = families.labels_for(family, head, inputs)
        if head.startswith("ForQuestion"):
            labels = {key: value % inputs["attention_mask"].sum(1) for key, value in labels.items() if key in ANSWERS}
        check(model, samples_of(inputs | labels), folder)
        print(family, head, flush=True)
    print("every row", flush=True)


main(Path(sys.argv[1]))
