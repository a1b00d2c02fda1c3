"""CrossEncoder on packed rows: its scores and gradients are those of the padded computation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.embedders import assert_same_gradients, gradients
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, CrossEntropyLoss

from erniem_fast.sentence_transformers import Transformer

LONG = "Ein sehr langer Text, der niemals endet. " * 100


def assert_close(found: Any, expected: Any, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.fixture
def some_pairs(pairs: dict[str, list[str]]) -> list[list[str]]:
    """Pairs of sentences, and of empty ones."""
    some = [list(pair) for pair in zip(pairs["anchor"][::9], pairs["positive"][::9], strict=True)]
    return [*some, ["", ""], ["a", ""]]


def test_scores(both_classifiers: Any, some_pairs: list[list[str]]) -> None:
    packed, padded = (model.double() for model in both_classifiers)  # 1e-6 is about float32's rounding
    features = packed.preprocess(some_pairs)
    assert "attention_mask" not in features
    assert features["input_ids"].shape == (1, int(features["cu_seq_lens_q"][-1]))
    scores = padded.predict(some_pairs)
    assert np.ptp(scores[:, 0]) > 1e-3
    assert_close(packed.predict(some_pairs, batch_size=7), scores)


@pytest.mark.slow
def test_a_folder_and_long_pairs(both_classifiers: Any, classifier: str, some_pairs: list[list[str]]) -> None:
    """By sentence-transformers' own module around the padding-free model, too."""
    packed, padded = (model.double() for model in both_classifiers)
    some = [*some_pairs, [LONG, LONG], [LONG, "a"]]
    scores = padded.predict(some, apply_softmax=True)
    assert_close(packed.predict(some, apply_softmax=True), scores)
    assert_close(CrossEncoder(classifier, device="cpu").double().predict(some, apply_softmax=True), scores)


def test_gradients_are_those_of_the_padded_computation(both_classifiers: Any, some_pairs: list[list[str]]) -> None:
    columns = [list(column) for column in zip(*some_pairs, strict=True)]
    labels = torch.randint(3, (len(some_pairs),))
    (value, found), (wanted, expected) = (
        gradients(model, CrossEntropyLoss(model), columns, labels) for model in both_classifiers
    )
    assert value == pytest.approx(wanted, rel=1e-9)
    assert_same_gradients(found, expected)


@pytest.mark.slow
def test_an_epoch_and_a_ranking(save: Any, pairs: dict[str, list[str]], tmp_path: Path) -> None:
    """Of true and wrong translations; saved and loaded."""
    folder = save("ErnieMForSequenceClassification", id2label={0: "score"})
    model = CrossEncoder(modules=[Transformer(folder, transformer_task="sequence-classification")], device="cpu")
    count = len(pairs["anchor"])
    data = Dataset.from_dict(
        {
            "sentence": pairs["anchor"] * 2,
            "translation": [*pairs["positive"], *("?" * (1 + i % 7) for i in range(count))],
            "label": [1.0] * count + [0.0] * count,
        }
    )
    arguments = CrossEncoderTrainingArguments(
        tmp_path / "run", num_train_epochs=1, per_device_train_batch_size=16, learning_rate=3e-3, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    loss = BinaryCrossEntropyLoss(model)
    trainer = CrossEncoderTrainer(model, arguments, train_dataset=data, eval_dataset=data, loss=loss)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * before
    model.save(str(tmp_path / "saved"))
    again = CrossEncoder(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    ranks, wanted = (one.rank("Wo?", pairs["positive"][:20]) for one in (again, model))
    assert [rank["corpus_id"] for rank in ranks] == [rank["corpus_id"] for rank in wanted]
    assert_close([rank["score"] for rank in ranks], [rank["score"] for rank in wanted], 0)
