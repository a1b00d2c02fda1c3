"""PackedCollator: the batch of a padded collator without its padding, one row a sample in the output."""

from typing import Any

import pytest
import torch
from helpers import families
from helpers.pairs import CLASSES, NO_DROPOUT, assert_same_gradients, batch, gradients, labels_for, make
from helpers.samples import same_rows, samples_of
from torch import Tensor

from erniem_fast.training import PackedCollator

HEADS = CLASSES[1:]


def padded(name: str) -> dict[str, Tensor]:
    """Padded batch with labels; of multiple choice two samples of two choices."""
    inputs = batch((6, 3, 9, 1))
    if name != "ErnieMForMultipleChoice":
        inputs |= labels_for(name, inputs, 3)
    else:
        inputs = {key: value.unflatten(0, (2, 2)) for key, value in inputs.items()} | {"labels": torch.tensor([1, 0])}
    return inputs


def num_labels(name: str) -> dict[str, int]:
    return {} if "Question" in name or "Extraction" in name else {"num_labels": 3}


@pytest.mark.parametrize("name", HEADS)
def test_a_packed_batch_is_the_padded_one(name: str) -> None:
    """Outputs have the padded batch's shape, loss and gradients are equal, and no padding is computed."""
    _, model = make(name, **num_labels(name), **NO_DROPOUT)
    inputs = padded(name)
    batch = PackedCollator.for_model(model)(samples_of(inputs))
    assert batch["input_ids"].shape == (1, 19)
    expected, found = model(**inputs), model(**batch)
    mask = inputs["attention_mask"]
    for key, value in expected.items():
        same_rows(found[key], value, mask)
    found.loss.backward()
    grads = gradients(model)
    model.zero_grad()
    expected.loss.backward()
    for key, grad in gradients(model).items():
        torch.testing.assert_close(grads[key], grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", HEADS)
def test_parts_of_a_batch_add_up(name: str) -> None:
    """Losses of parts with uneven numbers of labels, over the items of all of them, are the loss of the whole."""
    plain, model = make(name, **num_labels(name), **NO_DROPOUT)
    inputs = padded(name)
    if "labels" in inputs and inputs["labels"].dim() == 2:
        inputs["labels"][0, 1:] = -100
    items = {"ErnieMForQuestionAnswering": 4, "ErnieMForInformationExtraction": 4}.get(name)
    items = items or int((inputs["labels"] != -100).sum())
    samples = samples_of(inputs)
    collate = PackedCollator.for_model(model)
    model(**collate(samples)).loss.backward()
    whole = {key: grad.clone() for key, grad in gradients(model).items()}
    for num_items in (items, torch.tensor(items)):
        model.zero_grad()
        for part in (samples[:1], samples[1:]):
            model(**collate(part), num_items_in_batch=num_items).loss.backward()
        for key, grad in gradients(model).items():
            torch.testing.assert_close(grad, whole[key], rtol=1e-9, atol=1e-9)
    rows = [{key: value[index : index + 1] for key, value in inputs.items()} for index in range(len(samples))]
    for row in rows:  # of the reference, whose padded rows are run alone
        longest = int(row["attention_mask"].sum(-1).max())
        plain(**{key: value[..., :longest] if value.dim() > 1 else value for key, value in row.items()},
              num_items_in_batch=items).loss.backward()  # fmt: skip
    assert_same_gradients(plain, model, 1e-9)


@pytest.mark.parametrize(
    ("labels", "shape"), [(torch.rand(4), (4,)), (torch.rand(4, 3), (4, 3)), (torch.rand(4, 3) < 0.5, (4, 3))]
)
def test_numbers_and_several_labels_add_up(labels: Tensor, shape: tuple[int, ...]) -> None:
    _, model = make("ErnieMForSequenceClassification", num_labels=shape[-1] if len(shape) > 1 else 1, **NO_DROPOUT)
    inputs = batch((3, 5, 2, 3)) | {"labels": labels}
    samples = samples_of(inputs)
    collate = PackedCollator()
    assert collate(samples)["labels"].shape == shape
    whole = model(**inputs).loss
    torch.testing.assert_close(model(**collate(samples)).loss, whole)
    parts = [model(**collate(part), num_items_in_batch=labels.numel()).loss for part in (samples[:3], samples[3:])]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("name", HEADS)
def test_a_batch_without_a_label_that_counts_has_no_loss(name: str) -> None:
    _, model = make(name, **num_labels(name))
    inputs = padded(name)
    for key in inputs.keys() - {"input_ids", "attention_mask"}:
        inputs[key] = torch.full_like(inputs[key], -100)
    for items in (None, 0, torch.tensor(0)):
        model.zero_grad()
        loss = model(**PackedCollator()(samples_of(inputs)), num_items_in_batch=items).loss
        assert loss == 0
        loss.backward()
        assert not any(grad.any() for grad in gradients(model).values())


CASES = [
    ("xlm-roberta", "ForTokenClassification"), ("ernie with tasks", "ForQuestionAnswering"),
    ("distilbert", "ForMaskedLM"), ("xlm", "ForQuestionAnsweringSimple"), ("roberta", "ForSequenceClassification"),
]  # fmt: skip
FAMILY_HEADS = [
    "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForQuestionAnsweringSimple",
    "ForMaskedLM", "WithLMHeadModel",
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "head"),
    [
        pytest.param(family, head, marks=() if (family, head) in CASES else pytest.mark.slow)
        for family in families.FAMILIES
        for head in FAMILY_HEADS
        if families.FAMILIES[family].find(head) is not None and (family[-3:], head) != ("xlm", "ForQuestionAnswering")
    ],
)
def test_packed_batches_of_other_families(family: str, head: str) -> None:
    """Outputs and loss of the padded batch; the loss of answers is that of the rows alone."""
    plain, fast = families.make(family, head, **families.NO_DROPOUT)
    inputs = families.batch(family)
    labels = families.labels_for(family, head, inputs)
    if head.startswith("ForQuestion"):
        labels = {key: value % inputs["attention_mask"].sum(1) for key, value in labels.items()}
    found = fast(**PackedCollator.for_model(fast)(samples_of(inputs | labels)))
    expected = fast(**inputs)
    for key, value in expected.items():
        same_rows(found[key], value, inputs["attention_mask"])
    lengths = inputs["attention_mask"].sum(1)
    if head.startswith("ForQuestion"):
        with families.exact_softmax():
            alone = [
                plain(**{key: value[index : index + 1, : lengths[index]] for key, value in inputs.items()},
                      **{key: value[index : index + 1] for key, value in labels.items()}).loss
                for index in range(len(lengths))
            ]  # fmt: skip
        torch.testing.assert_close(found.loss, torch.stack(alone).mean(), rtol=1e-10, atol=1e-10)
    else:
        torch.testing.assert_close(found.loss, fast(**inputs, **labels).loss, rtol=1e-10, atol=1e-10)
    found.loss.backward()


ROW = {"input_ids": [0, 5, 2]}
WRONG: list[tuple[list[dict[str, Any]], str]] = [
    ([], "features must hold at least one sample, got none"),
    ([ROW | {"labels": 1}, ROW], r"features\[1\] must have 'labels', as features\[0\] has; got \['input_ids'\]"),
    ([ROW | {"labels": [1, 2]}], r"features\[0\]\['labels'\] must hold 3 integers, one a token, got shape \(2,\)"),
    ([{"input_ids": [[0, 2], [0, 2]]}, {"input_ids": [[0, 2]]}], r"features\[1\]\['input_ids'\] must hold 2 choices"),
    ([{"input_ids": [[0, 2], [0, 2]], "labels": [1, 0]}], "labels must be one integer a sample of several choices"),
]


@pytest.mark.parametrize(("features", "message"), WRONG)
def test_what_is_no_batch_is_refused(features: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackedCollator()(features)


@pytest.mark.parametrize("items", [-1, True, 1.5, torch.tensor([1, 2]), torch.tensor(True)])
def test_a_number_of_items_that_is_none_is_refused(items: Any) -> None:
    _, model = make("ErnieMForSequenceClassification")
    with pytest.raises(ValueError, match="num_items_in_batch must be a whole number of at least 0"):
        model(**PackedCollator()([ROW | {"labels": 1}]), num_items_in_batch=items)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"padded_shape": (3, 9)}, r"padded_shape must be \(2 \(num_sequences\), seq_len\), got \(3, 9\)"),
        ({"padded_shape": (2, 2)}, r"padded_shape must be \(num_sequences, 3 or more\), got \(2, 2\)"),
        ({"padded_shape": 6}, r"padded_shape must be \(2 \(num_sequences\), seq_len\), got 6"),
        ({"cu_seq_lens_q": None, "cu_seq_lens_k": None, "max_length_q": None},
         "padded_shape must be None without cu_seq_lens_q"),
    ],
)  # fmt: skip
def test_a_shape_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    _, model = make("ErnieMForTokenClassification")
    batch = PackedCollator()([ROW, {"input_ids": [0, 2]}])
    with pytest.raises(ValueError, match=message):
        model(**batch | change)
