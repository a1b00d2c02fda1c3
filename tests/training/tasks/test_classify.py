"""Classification: what is read, learned and measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import task_files
from helpers.paths import GOLDEN_TOKENIZER
from transformers import EvalPrediction

from erniem_fast import ErnieMTokenizer
from erniem_fast.files.errors import InputError
from erniem_fast.files.rows import BadLines
from erniem_fast.files.source import open_source
from erniem_fast.training.tasks.base import Head, HeadMismatchError
from erniem_fast.training.tasks.classify import Classification


@pytest.fixture(scope="module")
def tokenizer() -> ErnieMTokenizer:
    return ErnieMTokenizer(GOLDEN_TOKENIZER / "sentencepiece.bpe.model", GOLDEN_TOKENIZER / "vocab.txt")


def read(task: Classification, folder: Path, rows: list[dict[str, Any]], bad: BadLines | None = None) -> list[Any]:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with open_source(str(path), accepted=task.kinds, what="TRAIN") as source:
        return task.read(source, bad or BadLines())


def test_rows_are_those_of_the_tokenizer_and_cut_ones_are_counted(tokenizer: Any, tmp_path: Path) -> None:
    task = Classification(tokenizer, 12, text_pair_column="pair")
    rows = [
        {"text": "Ja", "pair": "是", "label": "yes"},
        {"text": "word " * 30, "pair": "one two", "label": "no"},
        {"text": "", "pair": "今日は良い天気です。" * 4, "label": "yes"},
    ]
    examples = read(task, tmp_path, rows)
    task.fit(examples, [], None)
    features = task.features(examples, training=True)
    expected = tokenizer([row["text"] for row in rows], [row["pair"] for row in rows], truncation=True, max_length=12)
    assert [feature["input_ids"] for feature in features] == expected["input_ids"]
    assert [feature["labels"] for feature in features] == [1, 0, 1]
    assert task.notes == ["2 of 3 texts were cut to 12 tokens"]
    assert task.config_changes() == {
        "num_labels": 2, "id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1},
        "problem_type": "single_label_classification",
    }  # fmt: skip


def test_labels_of_a_head_keep_their_order(tokenizer: Any, tmp_path: Path) -> None:
    head = Head(("entailment", "neutral", "contradiction"), None)
    for labels, expected in (
        (["contradiction", "neutral"], [2, 1]),
        ([2, 0], [2, 0]),  # places in the head's list
        (["10", "2", "2"], None),
    ):
        task = Classification(tokenizer, 12)
        examples = read(task, tmp_path, [{"text": "a", "label": label} for label in labels])
        if expected is None:
            with pytest.raises(HeadMismatchError, match=r"the data has the labels '10', '2', the head 'entailment'"):
                task.fit(examples, [], head)
            task.fit(examples, [], None)
            assert task.labels.names == ("2", "10")
            continue
        task.fit(examples, [], head)
        assert [feature["labels"] for feature in task.features(examples, True)] == expected
        assert task.labels.names == head.labels
        taken = ["labels 0, 2 are taken for places: 'entailment', 'contradiction'"]
        assert task.notes == (taken if labels == [2, 0] else [])
    with pytest.raises(HeadMismatchError, match=r"for single_label_classification, the head, .*, for regression"):
        task.fit(examples, [], Head(("LABEL_0",), None))


def test_several_labels_and_numbers(tokenizer: Any, tmp_path: Path) -> None:
    task = Classification(tokenizer, 12)
    examples = read(task, tmp_path, [{"text": "a", "label": ["x", "z"]}, {"text": "b", "label": []}])
    task.fit(examples, read(task, tmp_path, [{"text": "c", "label": ["y"]}]), None)
    assert [feature["labels"] for feature in task.features(examples, True)] == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert task.best_metric == "micro_f1"
    assert task.notes == ["--dev has labels that TRAIN lacks: 'y'"]
    numbers = Classification(tokenizer, 12, problem="regression")
    examples = read(numbers, tmp_path, [{"text": "a", "label": 1.5}, {"text": "b", "label": "-2"}])
    numbers.fit(examples, [], None)
    assert [feature["labels"] for feature in numbers.features(examples, True)] == [1.5, -2.0]


@pytest.mark.parametrize(
    ("row", "problem", "message"),
    [
        ({"label": "x"}, None, "has no 'text': it has 'label'"),
        ({"text": "a", "label": None}, None, "has 'label' None, not a label"),
        ({"text": "a", "label": 0.5}, None, "has 'label' 0.5, not a label; numbers need --problem regression"),
        ({"text": "a", "label": "x"}, "multi", "has 'label' of type str, not a list of labels"),
        ({"text": "a", "label": "nan"}, "regression", "has 'label' 'nan', not a finite number"),
        ({"text": "a", "label": 10**400}, "regression", "has 'label' 10+, not a finite number"),
        ({"text": "a\0", "label": "x"}, None, "has 'text' with a NUL character"),
        ({"text": "a\ud800", "label": "x"}, None, "has 'text' with a lone surrogate"),
    ],
)
def test_malformed_rows(tokenizer: Any, tmp_path: Path, row: Any, problem: str | None, message: str) -> None:
    with pytest.raises(InputError, match=f"TRAIN .*line 2 {message}"):
        read(Classification(tokenizer, 12, problem=problem), tmp_path,
             [{"text": "b", "label": {"multi": ["x"], "regression": 1}.get(problem or "", "x")}, row])  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "good"),
    [(None, ["x", "y"]), (["a", None], "x"), ([1.5], "x"), (0.5, ["x"])],
)
def test_a_bad_first_line_does_not_decide_the_problem(tokenizer: Any, tmp_path: Path, bad: Any, good: Any) -> None:
    skipped = BadLines(skip=True)
    rows = [{"text": "a", "label": label} for label in (bad, good, good)]
    examples = read(Classification(tokenizer, 12), tmp_path, rows, skipped)
    assert [example.label for example in examples] == [tuple(good) if isinstance(good, list) else good] * 2
    assert skipped.count == 1


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_numbers_in_text_files_need_regression(tokenizer: Any, tmp_path: Path, ending: str) -> None:
    def read_labels(labels: list[str], **options: Any) -> list[Any]:
        comma = {"csv": ",", "tsv": "\t"}[ending]
        text = f"text{comma}label\n" + "".join(f"a{comma}{label}\n" for label in labels)
        found, _ = task_files.read(Classification(tokenizer, 12, **options), tmp_path / f"a.{ending}", text)
        return [example.label for example in found]

    numbers = ["2", "0.5", "-1.25", "3e-1"]
    with pytest.raises(InputError, match=r"line 3 has 'label' 0.5, not a label; numbers need --problem regression"):
        read_labels(numbers)
    with pytest.raises(InputError, match=r"line 3 has 'label' 0.5, not a label"):  # as pandas writes a missing number
        read_labels(["NaN", "0.5", "1.5"])
    assert read_labels(numbers, problem="regression") == [2.0, 0.5, -1.25, 0.3]
    assert read_labels(numbers, problem="single") == numbers
    for labels in (["0", "1", "10"], ["0.0", "1.0"], ["0.5", "half"], ["0.5", "nan", "half"]):
        assert read_labels(labels) == labels


@pytest.mark.parametrize("problem_type", [None, "regression"])
def test_a_head_of_several_labels_learns_no_number(tokenizer: Any, tmp_path: Path, problem_type: str | None) -> None:
    task = Classification(tokenizer, 12, problem="regression")
    examples = read(task, tmp_path, [{"text": "a", "label": 1.5}, {"text": "b", "label": 2}])
    with pytest.raises(HeadMismatchError, match=r"for regression, which needs one label, the head has 'a', 'b', 'c'"):
        task.fit(examples, [], Head(("a", "b", "c"), problem_type))
    task.fit(examples, [], Head(("score",), problem_type))
    assert task.labels.names == ("score",)


def test_one_label_teaches_nothing(tokenizer: Any, tmp_path: Path) -> None:
    task = Classification(tokenizer, 12)
    with pytest.raises(InputError, match="all samples have the label 'x'; expected at least 2"):
        task.fit(read(task, tmp_path, [{"text": "a", "label": "x"}] * 2), [], None)


def test_figures_by_hand(tokenizer: Any) -> None:
    def figures(problem: str, logits: list[Any], labels: list[Any]) -> dict[str, float]:
        task = Classification(tokenizer, 12, problem=problem)
        features = [{"input_ids": [0], "labels": label} for label in labels]
        return task.metrics(EvalPrediction(np.array(logits), None), [], features)

    # Class 0: both that are found as it, one is; class 1: one of two is found. F1 is 2/3 for either.
    found = figures("single", [[2, 1, 0], [2, 1, 0], [0, 3, 1]], [0, 1, 1])
    assert found == pytest.approx({"accuracy": 2 / 3, "macro_f1": 2 / 3})
    found = figures("multi", [[1.0, -1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 0.0]])
    assert found == pytest.approx({"accuracy": 0.0, "macro_f1": 0.5, "micro_f1": 2 / 3})
    found = figures("regression", [[1.0], [3.0], [2.0]], [1.0, 2.0, 3.0])
    assert found == pytest.approx({"pearson": 0.5, "spearman": 0.5, "mean_squared_error": 2 / 3})
    constant = figures("regression", [[1.0], [1.0]], [1.0, 2.0])
    assert (constant["pearson"], constant["spearman"]) == (0.0, 0.0)
