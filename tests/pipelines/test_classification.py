"""Text and zero-shot classification, against the reference on ids put together by hand."""

import pytest
import torch
from helpers.documents import TEXTS

CLS, SEP, MOST = 0, 2, 512
LABELS = ("entailment", "neutral", "contradiction")


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def logits_of(plain, ids):
    with torch.inference_mode():
        return plain(torch.tensor([ids])).logits[0]


def assert_labels(found, labels, probabilities):
    assert [row["label"] for row in found] == [labels[i] for i in probabilities.argsort(descending=True).tolist()]
    assert [row["score"] for row in found] == pytest.approx(
        probabilities.sort(descending=True).values.tolist(), rel=1e-5
    )


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_text_classification(make_pipeline, tokenizer, long_text, batch_size):
    classify, plain = make_pipeline("text-classification", "ErnieMForSequenceClassification", LABELS)
    texts = [*TEXTS[:4], long_text]
    found = classify(texts, truncation=True, batch_size=batch_size, top_k=None)
    for text, rows in zip(texts, found, strict=True):
        logits = logits_of(plain, [CLS, *ids_of(tokenizer, text)[: MOST - 2], SEP])
        assert_labels(rows, LABELS, logits.softmax(-1))
    assert classify(long_text, truncation=True, top_k=None) == found[-1]
    short = classify(long_text, truncation=True, max_length=40, top_k=None)
    assert_labels(short, LABELS, logits_of(plain, [CLS, *ids_of(tokenizer, long_text)[:38], SEP]).softmax(-1))


def test_text_classification_of_pairs(make_pipeline, tokenizer, long_text):
    classify, plain = make_pipeline("text-classification", "ErnieMForSequenceClassification", LABELS)
    pairs = [{"text": TEXTS[0], "text_pair": TEXTS[1]}, {"text": long_text, "text_pair": TEXTS[2]}]
    found = classify(pairs, truncation="only_first", top_k=None, batch_size=2)
    for pair, rows in zip(pairs, found, strict=True):
        second = ids_of(tokenizer, pair["text_pair"])
        first = ids_of(tokenizer, pair["text"])[: MOST - 4 - len(second)]
        logits = logits_of(plain, [CLS, *first, SEP, SEP, *second, SEP])
        assert_labels(rows, LABELS, logits.softmax(-1))


def test_a_text_that_is_too_long_says_so(make_pipeline, long_text):
    classify, _ = make_pipeline("text-classification", "ErnieMForSequenceClassification")
    with pytest.raises(ValueError, match=r"512 tokens.*got 40\d\d"):
        classify(long_text)


@pytest.mark.parametrize("multi_label", [False, True])
def test_zero_shot_classification(make_pipeline, tokenizer, long_text, multi_label):
    classify, plain = make_pipeline("zero-shot-classification", "ErnieMForSequenceClassification", LABELS)
    labels = ["politics", "الاقتصاد", "体育"]
    texts = [*TEXTS[:2], long_text]
    template = "This is about {}."
    found = classify(
        texts, candidate_labels=labels, hypothesis_template=template, multi_label=multi_label, batch_size=4
    )
    for text, result in zip(texts, found, strict=True):
        rows = []
        for label in labels:
            second = ids_of(tokenizer, template.format(label))
            first = ids_of(tokenizer, text)[: MOST - 4 - len(second)]
            rows.append(logits_of(plain, [CLS, *first, SEP, SEP, *second, SEP]))
        logits = torch.stack(rows)
        scores = logits[:, [0, 2]].softmax(-1)[:, 0] if multi_label else logits[:, 0].softmax(-1)
        assert result["sequence"] == text
        assert result["labels"] == [labels[i] for i in scores.argsort(descending=True).tolist()]
        assert result["scores"] == pytest.approx(scores.sort(descending=True).values.tolist(), rel=1e-5)
