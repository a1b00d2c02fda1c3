"""Multiple choice: records of several forms, packed and padded batches, accuracy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import family_folders, golden_tokenizer
from helpers.task_files import read
from helpers.task_models import make
from transformers import EvalPrediction

from erniem_fast.files.errors import InputError
from erniem_fast.training.tasks.multiple_choice import Example, MultipleChoice

CHOICES = ("ein Hund", "ein Wal", "ein Rabe")
ANIMAL = Example("Was kann fliegen?", CHOICES, 2)
SWAG = """,sent1,sent2,ending0,ending1,label
0,"She opens the hood, slowly.",She,looks inside.,sings to "it".,0
1,王小明住在北京。,他,喜欢北京。,不喜欢,1
"""
FILES = {
    "SWAG": (
        "a.csv", SWAG, {},
        [Example("She opens the hood, slowly.", ("She looks inside.", 'She sings to "it".'), 0),
         Example("王小明住在北京。", ("他 喜欢北京。", "他 不喜欢"), 1)],
    ),
    "a list and a number": (
        "a.jsonl", json.dumps({"question": "Was kann fliegen?", "choices": CHOICES, "label": 2}), {}, [ANIMAL],
    ),
    "a text": (
        "a.jsonl", json.dumps({"text": "Was kann fliegen?", "choices": CHOICES, "label": "ein Rabe"}), {}, [ANIMAL],
    ),
    "columns in any order, a number that is a text": (
        "a.tsv", "context\tchoice1\tchoice0\tlabel\n1 + 1\t3\t2\t2\n1 + 2\t3\t2\t3\n1 + 3\ty\tx\t1\n", {},
        [Example("1 + 1", ("2", "3"), 0), Example("1 + 2", ("2", "3"), 1), Example("1 + 3", ("x", "y"), 1)],
    ),
    "other columns": (
        "a.jsonl", json.dumps({"premise": "p", "ask": "q", "options": ["a", "b"], "answer": 0}),
        {"context_column": "premise", "question_column": "ask", "choices_column": "options", "label_column": "answer"},
        [Example("p", ("q a", "q b"), 0)],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return golden_tokenizer.build()


@pytest.mark.parametrize("case", FILES)
def test_files_are_read(tokenizer: Any, tmp_path: Path, case: str) -> None:
    name, text, options, expected = FILES[case]
    found, _ = read(MultipleChoice(tokenizer, 64, **options), tmp_path / name, text)
    assert found == expected


GOOD = {"question": "q", "choices": ["a", "b"], "label": 1}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another number of choices": ({"choices": ["a", "b", "c"]}, "has 3 choices, the first of the data 2"),
    "one choice": ({"choices": ["a"]}, "has 1 choice; expected at least 2"),
    "no list": ({"choices": "ab"}, "has 'choices' of type str, not a list of strings"),
    "a choice that is none": ({"choices": ["a", None]}, "has 'choices' of type NoneType, not a string"),
    "a number out of range": ({"label": 2}, "has 'label' 2, which is none of the 2 choices"),
    "a negative number": ({"label": -1}, "has 'label' -1, which is none of the 2 choices"),
    "a text that is no choice": ({"label": "c"}, "has 'label' 'c', which is none of the 2 choices"),
    "two equal choices": ({"choices": ["a", "a"], "label": "a"}, "has 'label' 'a', which is that of 2 choices"),
    "a number and a text": ({"choices": ["1", "0"], "label": "0"}, "has 'label' '0', which is that of 2 choices"),
    "no label": ({"label": None}, "has 'label' None; expected the number of a choice"),
    "true": ({"label": True}, "has 'label' True; expected the number of a choice"),
    "no text": ({"question": 3}, "has 'question' of type int, not a string"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lines_are_named_or_counted(tokenizer: Any, tmp_path: Path, case: str) -> None:
    change, message = BAD[case]
    text = "\n".join(map(json.dumps, (GOOD, GOOD | change, GOOD)))
    with pytest.raises(InputError) as caught:
        read(MultipleChoice(tokenizer, 64), tmp_path / "a.jsonl", text)
    assert f"line 2 {message}" in str(caught.value)
    found, bad = read(MultipleChoice(tokenizer, 64), tmp_path / "a.jsonl", text, skip=True)
    assert (len(found), bad.count) == (2, 1)


@pytest.mark.parametrize(
    ("column", "message"), [("question", "has no 'question': it has"), ("choices", "has no 'choices'")]
)
def test_missing_columns_are_named(tokenizer: Any, tmp_path: Path, column: str, message: str) -> None:
    text = json.dumps({key: value for key, value in GOOD.items() if key != column})
    with pytest.raises(InputError, match=f"line 1 {message}"):
        read(MultipleChoice(tokenizer, 64), tmp_path / "a.jsonl", text)


@pytest.mark.parametrize("name", ["context", "question", "choices"])
def test_columns_that_are_asked_for_must_be_there(tokenizer: Any, tmp_path: Path, name: str) -> None:
    """Even where a column of the usual name is there."""
    text = "context,question,choice0,choice1,label\nc,q,a,b,1\n"
    task = MultipleChoice(tokenizer, 64, **{f"{name}_column": "other"})
    with pytest.raises(InputError) as caught:
        read(task, tmp_path / "a.csv", text)
    asked = f"has no 'other' (--{name}-column): it has 'context', 'question', 'choice0', 'choice1', 'label'"
    assert f"TRAIN '{tmp_path / 'a.csv'}': line 2 {asked}" in str(caught.value)


@pytest.mark.parametrize(
    "columns",
    [
        ("choice1", "choice2", "choice3"),
        ("choice0", "ending0", "choice1"),
        ("ending0", "ending2"),
        ("choice0", "choice00"),
        ("choice0", "choice1", "ending0", "ending1"),
    ],
)
def test_columns_of_choices_count_from_0_without_a_gap(
    tokenizer: Any, tmp_path: Path, columns: tuple[str, ...]
) -> None:
    row = {"question": "q", **{column: f"text of {column}" for column in columns}, "label": 1}
    with pytest.raises(InputError) as caught:
        read(MultipleChoice(tokenizer, 64), tmp_path / "a.jsonl", json.dumps(row))
    found = ", ".join(map(repr, columns))
    assert f"line 1 has the choices {found}; expected choice0, choice1, ..., or ending0" in str(caught.value)


def test_texts_that_are_too_long_are_cut_and_counted(tokenizer: Any) -> None:
    task = MultipleChoice(tokenizer, 16)
    examples = [ANIMAL, ANIMAL._replace(context="fliegen " * 30)]
    features = task.features(examples, True)
    assert task.notes == ["1 of 2 questions have texts cut to 16 tokens"]
    for example, feature in zip(examples, features, strict=True):
        for ids, choice in zip(feature["input_ids"], example.choices, strict=True):
            assert ids == tokenizer(example.context, choice, truncation=True, max_length=16)["input_ids"]


@pytest.mark.parametrize(
    "family",
    [
        "ErnieM",
        *(pytest.param(one, marks=() if one == "Bert" else pytest.mark.slow) for one in family_folders.FAMILIES),
    ],
)
def test_batches_score_every_choice(family: str) -> None:
    """As transformers' own model, or the reference, scores each pair alone; packed for ErnieM."""
    plain, fast, tokenizer = make(family, "ForMultipleChoice", torch.float64)
    task = MultipleChoice(tokenizer, 64)
    examples = [ANIMAL, Example("王小明住在北京。", ("喜欢", "他 不喜欢北京", "x"), 0)]
    features = task.features(examples, True)
    batch = task.collator(fast)(features)
    assert ("cu_seq_lens_q" in batch) == (family == "ErnieM")
    found = fast(**batch)
    for example, row in zip(examples, found.logits, strict=True):
        pairs = [tokenizer(example.context, choice, return_tensors="pt") for choice in example.choices]
        alone = [plain(**{key: value[None] for key, value in pair.items()}).logits[0, 0] for pair in pairs]
        torch.testing.assert_close(row, torch.stack(alone), rtol=1e-6, atol=1e-6)
    found.loss.backward()
    predictions = EvalPrediction(predictions=found.logits.detach().numpy(), label_ids=batch["labels"].numpy())
    right = [row.argmax().item() == example.label for row, example in zip(found.logits, examples, strict=True)]
    assert task.metrics(predictions, examples, features) == {"accuracy": np.mean(right)}


def test_accuracy(tokenizer: Any) -> None:
    task = MultipleChoice(tokenizer, 64)
    examples = [ANIMAL, ANIMAL._replace(label=0), ANIMAL, ANIMAL]
    logits = np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [-3.0, -1.0, -2.0], [0.0, 0.0, 0.1]])
    found = EvalPrediction(predictions=logits, label_ids=np.zeros(4))
    assert task.metrics(found, examples, task.features(examples, False)) == {"accuracy": 0.5}
