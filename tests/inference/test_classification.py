"""Labels equal transformers' text-classification pipeline, and scores of documents those of a cross-encoder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import family_folders
from helpers.task_models import FAMILIES, MAX_TOKENS, MIXED, SHORT, labels, make
from transformers import pipeline

from erniem_fast.inference.classification import Classification, Reranking
from erniem_fast.inference.runner import Runner

NAMES = labels("good", "bad", "neither")
QUICK = ("ErnieM", "Bert")
EACH = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES]
PAIRS = [(SHORT[0], SHORT[1]), (MIXED[1], SHORT[2]), (SHORT[2], MIXED[1]), (MIXED[1], MIXED[4]), ("a", MIXED[4] * 3)]


def made(family: str, head: str = "ForSequenceClassification", **changes: Any) -> tuple[Any, Any, Any]:
    if family == "XLM":
        pytest.importorskip("sacremoses")
    return make(family, head, **(NAMES | changes))


def task_of(fast: Any, tokenizer: Any, **options: Any) -> Classification:
    return Classification(fast, tokenizer, Runner(fast, 150), **options)


def run(task: Any, items: list[Any]) -> list[Any]:
    return list(task.compute(task.tokenize(items)))


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert {row["label"] for row in one} == {row["label"] for row in other}
        np.testing.assert_allclose([row["score"] for row in one], [row["score"] for row in other], rtol=0, atol=1e-5)
        scores = {row["label"]: row["score"] for row in other}
        np.testing.assert_allclose([row["score"] for row in one], [scores[row["label"]] for row in one], atol=2e-5)


@pytest.mark.parametrize("family", EACH)
def test_texts_and_pairs_equal_the_pipeline(family: str) -> None:
    plain, fast, tokenizer = made(family)
    pipe = pipeline("text-classification", plain, tokenizer=tokenizer, device="cpu")
    options = {"truncation": True, "max_length": MAX_TOKENS, "top_k": None}
    task = task_of(fast, tokenizer, top_k=None)
    assert_same(run(task, MIXED), pipe(MIXED, **options))
    assert task.truncated == sum(len(ids) > MAX_TOKENS for ids in tokenizer(MIXED, verbose=False)["input_ids"]) > 0
    expected = [pipe({"text": one, "text_pair": other}, **options) for one, other in PAIRS]
    found = run(task, PAIRS)
    assert_same(found, expected)
    mixed = run(task, [MIXED[0], PAIRS[1], list(PAIRS[2])])
    assert_same(mixed, [pipe(MIXED[0], **options), *expected[1:3]])
    assert len({round(row[0]["score"], 3) for row in found}) > 3  # pairs are told apart


def test_results_by_top_k() -> None:
    _, fast, tokenizer = made("Bert")
    every = run(task_of(fast, tokenizer, top_k=None), SHORT)
    assert run(task_of(fast, tokenizer), SHORT) == [rows[0] for rows in every]
    assert run(task_of(fast, tokenizer, top_k=2), SHORT) == [rows[:2] for rows in every]
    assert run(task_of(fast, tokenizer, top_k=9), SHORT) == every
    assert [sum(row["score"] for row in rows) for rows in every] == pytest.approx([1] * len(every))
    assert run(task_of(fast, tokenizer), []) == []


@pytest.mark.parametrize(
    "changes",
    [{"problem_type": "multi_label_classification"}, {"problem_type": "regression"}, labels("one"),
     {**labels("one"), "problem_type": "regression"}],
)  # fmt: skip
def test_activations_by_the_configuration(changes: dict[str, Any]) -> None:
    plain, fast, tokenizer = made("Bert", **changes)
    expected = pipeline("text-classification", plain, tokenizer=tokenizer, device="cpu")(SHORT, top_k=None)
    assert_same(run(task_of(fast, tokenizer, top_k=None), SHORT), expected)


def test_activations_by_name() -> None:
    plain, fast, tokenizer = made("Bert")
    pipe = pipeline("text-classification", plain, tokenizer=tokenizer, device="cpu")
    for name in ("softmax", "sigmoid", "none"):
        found = run(task_of(fast, tokenizer, top_k=None, activation=name), SHORT)
        assert_same(found, pipe(SHORT, top_k=None, function_to_apply=name))
    found = run(task_of(fast, tokenizer, top_k=None, activation=torch.nn.Tanh()), SHORT)
    raw = run(task_of(fast, tokenizer, top_k=None, activation="none"), SHORT)
    assert_same(found, [[row | {"score": float(np.tanh(row["score"]))} for row in rows] for rows in raw])


def test_half_precision_gives_floats() -> None:
    _, fast, tokenizer = made("Bert")
    expected = run(task_of(fast, tokenizer), SHORT)
    found = run(task_of(fast.bfloat16(), tokenizer), SHORT)
    assert all(type(row["score"]) is float for row in found)
    np.testing.assert_allclose([row["score"] for row in found], [row["score"] for row in expected], atol=0.1)


def test_results_depend_on_no_other_item() -> None:
    _, fast, tokenizer = made("XLMRoberta")
    task = task_of(fast, tokenizer, top_k=None)
    items = [*MIXED, *PAIRS]
    alone = [run(task, [item])[0] for item in items]
    assert_same(run(task, items), alone)
    assert_same(run(task, items[::-1]), alone[::-1])
    assert [task.size(one) for one in task.tokenize(items)] == [len(one.row.ids) for one in task.tokenize(items)]


@pytest.mark.parametrize("family", ["Bert", "XLMRoberta"])
def test_scores_of_documents(family: str) -> None:
    plain, fast, tokenizer = made(family, **labels("fit"))
    encoded = [tokenizer(*pair, truncation=True, max_length=MAX_TOKENS, return_tensors="pt") for pair in PAIRS]
    with torch.inference_mode():
        logits = torch.cat([plain(**one).logits[0] for one in encoded])
    for activation, expected in ((None, logits.sigmoid()), (torch.nn.Identity(), logits), ("none", logits)):
        found = run(Reranking(fast, tokenizer, Runner(fast, 150), activation=activation), PAIRS)
        assert found == pytest.approx(expected.tolist(), abs=1e-5)
        assert all(type(score) is float for score in found)


@pytest.mark.slow
def test_scores_are_a_cross_encoder_s(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = str(family_folders.save_family(tmp_path, "XLMRoberta", "ForSequenceClassification", 64, num_labels=1))
    other = sentence_transformers.CrossEncoder(folder, max_length=64, local_files_only=True, device="cpu")
    from erniem_fast import Encoder

    encoder = Encoder.from_pretrained(folder, dtype="float32", device="cpu")
    documents = [document for _, document in PAIRS]
    expected = other.rank(SHORT[0], documents)
    found = encoder.rerank(SHORT[0], documents)
    assert [row["score"] for row in found] == pytest.approx([float(row["score"]) for row in expected], abs=1e-5)
    assert [row["index"] for row in found] == [row["corpus_id"] for row in expected]


def test_bad_items_are_named() -> None:
    _, fast, tokenizer = made("Bert", **labels("fit"))
    classify, rerank = task_of(fast, tokenizer), Reranking(fast, tokenizer, Runner(fast))
    for task, items, message in (
        (classify, ["a", None], r"texts\[1\] must be a str or a pair of two, got NoneType"),
        (classify, ["a", ("a",)], r"texts\[1\] must be a str or a pair of two, got 1 texts"),
        (classify, [("a", 3)], r"texts\[0\]\[1\] must be a str, got int"),
        (classify, [{"text": "a"}], r"texts\[0\] must be a str or a pair of two, got dict"),
        (rerank, [("a", "b"), "ab"], r"pairs\[1\] must be a pair of a query and a document, got str"),
    ):
        with pytest.raises(TypeError, match=message):
            task.tokenize(items)
    with pytest.raises(ValueError, match=r"texts\[13\]\[0\] holds a lone surrogate"):
        classify.tokenize(["a", ("\ud800", "b")], 12)


def test_bad_models_and_options() -> None:
    plain, fast, tokenizer = made("Bert")
    with pytest.raises(ValueError, match="one label to rank documents by, got 3; classify pairs"):
        Reranking(fast, tokenizer, Runner(fast))
    for options, message in (
        ({"top_k": 0}, "top_k must be a whole number of at least 1, got 0"),
        ({"activation": "relu"}, "activation must be one of softmax, sigmoid, none, or a function, got 'relu'"),
        ({"max_tokens": 3}, "max_tokens must be a whole number of at least 4, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            task_of(fast, tokenizer, **options)
    with pytest.raises(TypeError, match=r"model must be an erniem_fast\.ErnieMForSequenceClassification, got .*Bert"):
        Classification(plain, tokenizer, Runner(fast))
    with pytest.raises(TypeError, match=r"got .*BertModel; heads of other families"):
        Classification(fast.bert, tokenizer, Runner(fast))
    with pytest.raises(TypeError, match=r"tokenizer must be a transformers\.PreTrainedTokenizerBase, got builtins"):
        Classification(fast, "tokenizer", Runner(fast))
    task = task_of(fast, tokenizer)
    with torch.no_grad():
        fast.classifier.bias[1] = float("nan")
    with pytest.raises(ValueError, match=r"finite scores, got NaN or infinity for texts\[7\]"):
        task.compute(task.tokenize(["a"], 7))
    with pytest.raises(ValueError, match="eval mode"):
        task_of(fast.train(), tokenizer)
    fast.classifier = torch.nn.Sequential(fast.classifier)
    assert task_of(fast.eval(), tokenizer).size(task.tokenize(["a"])[0]) == 3


def test_a_replaced_reader_is_refused() -> None:
    _, fast, tokenizer = made("XLMRoberta")
    fast.classifier = torch.nn.Linear(32, 3)
    with pytest.raises(ValueError, match=r"must take packed batches, got a XLMRobertaFor.*: classifier was replaced"):
        task_of(fast, tokenizer)


@pytest.mark.slow
def test_adapters_take_part() -> None:
    peft = pytest.importorskip("peft")
    _, fast, tokenizer = made("Bert")
    adapters = peft.LoraConfig(target_modules=["query"], init_lora_weights=False, task_type="SEQ_CLS")
    adapted = peft.get_peft_model(fast, adapters).eval()
    found = run(task_of(adapted, tokenizer, top_k=None), PAIRS)
    assert_same(found, run(task_of(adapted.merge_and_unload(), tokenizer, top_k=None), PAIRS))
