"""Fine-tuning for answers: labels and decoding agree with the text in every script, files are read or refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import family_folders, golden_tokenizer, pairs
from helpers.xquad import ROWS
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import EvalPrediction

from erniem_fast import padding_free, question_answering
from erniem_fast.files.errors import InputError
from erniem_fast.files.rows import BadLines
from erniem_fast.files.source import open_source
from erniem_fast.training.collators import PackedCollator
from erniem_fast.training.tasks.characters import token_span
from erniem_fast.training.tasks.question_answering import Example, QuestionAnswering

TOKENIZER = golden_tokenizer.build()
TEXTS = st.text(alphabet="ab1 9.東京ءبकि️é\u0301😀ﬁ\u200b", min_size=1, max_size=40)


def task_of(tokenizer: Any = TOKENIZER, max_length: int = 384, **options: Any) -> QuestionAnswering:
    return QuestionAnswering(tokenizer, max_length, **options)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(task: QuestionAnswering, path: Path, bad: BadLines | None = None) -> list[Example]:
    with open_source(str(path), accepted=task.kinds, what="TRAIN") as source:
        return task.read(source, bad or BadLines())


def squad(rows: list[Any]) -> dict[str, Any]:
    """Rows in the nested form of SQuAD's files."""
    data = []
    for row in rows:
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
        question = {"id": row["id"], "question": row["question"], "answers": answers, "is_impossible": not answers}
        data.append({"title": "", "paragraphs": [{"context": row["context"], "qas": [question]}]})
    return {"version": "1.1", "data": data}


def told(features: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a model that has learned every label; the windows with the answer are the surest."""
    scores = np.full((2, len(features), max(len(one["input_ids"]) for one in features)), -100.0)
    for index, feature in enumerate(features):
        for side, name in enumerate(("start_positions", "end_positions")):
            scores[side, index, : len(feature["input_ids"])] = 0.0
            scores[side, index, feature[name]] = 30.0 if feature[name] else 20.0
    return scores[0], scores[1]


@pytest.mark.parametrize(
    ("size", "rows"), [(80, ROWS[::4]), *(pytest.param(size, ROWS, marks=pytest.mark.slow) for size in (80, 384))]
)
def test_labels_are_decoded_to_the_answers_characters_in_every_script(tmp_path: Path, size: int, rows: Any) -> None:
    task = task_of(max_length=size, stride=32, max_answer_len=80)
    examples = read(task, write(tmp_path / "rows.jsonl", rows))
    features = task.features(examples, training=True)
    assert task.answers(told(features), examples, features) == [example.answers[0] for example in examples]
    figures = task.metrics(EvalPrediction(told(features), None), examples, features)
    assert figures == {"exact_match": 1.0, "f1": 1.0, "exact_span": 1.0}
    labelled = {feature["example"] for feature in features if feature["start_positions"]}
    assert labelled == set(range(len(rows)))
    assert {row["lang"] for row in rows} >= {"en", "zh", "ar", "hi"}


def test_windows_hold_the_question_and_those_without_the_whole_answer_point_to_cls(tmp_path: Path) -> None:
    task = task_of(max_length=64, stride=8)
    examples = read(task, write(tmp_path / "rows.jsonl", ROWS[::4]))
    features = task.features(examples, training=True)
    cut = 0
    for feature in features:
        example, ids = examples[feature["example"]], feature["input_ids"]
        asked = TOKENIZER(example.question, add_special_tokens=False)["input_ids"]
        whole = TOKENIZER(example.context, add_special_tokens=False, return_offsets_mapping=True)
        first, begin = feature["window"], len(asked) + 3
        held = whole["input_ids"][first : first + 64 - 4 - len(asked)]
        assert ids == [0, *asked, 2, 2, *held, 2]
        start, end = example.answers[0]
        places = [
            begin + place for place, (one, other) in enumerate(whole["offset_mapping"][first : first + len(held)])
            if one < end and other > start and one < other
        ]  # fmt: skip
        spans = [pair for pair in whole["offset_mapping"] if pair[0] < end and pair[1] > start and pair[0] < pair[1]]
        inside = len(places) == len(spans)
        cut += bool(places) and not inside
        expected = (places[0], places[-1]) if inside else (0, 0)
        assert (feature["start_positions"], feature["end_positions"]) == expected
    assert cut, "no window cuts an answer"


@settings(max_examples=50)
@given(TEXTS, st.data())
def test_a_span_of_tokens_holds_the_characters_and_none_narrower_does(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    offsets = np.array(TOKENIZER(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"])
    offsets = offsets.reshape(-1, 2)
    wanted = {place for one, other in offsets for place in range(one, other)} & set(range(start, end))
    span = token_span(offsets, start, end)
    assert (span is None) == (not wanted)
    if span is not None:
        held = [{*range(one, other)} for one, other in offsets[span[0] : span[1] + 1]]
        assert wanted <= set().union(*held)
        assert held[0] & wanted
        assert held[-1] & wanted


def test_an_answer_inside_a_token_is_that_token(tmp_path: Path) -> None:
    context = "Unbelievably, it works."
    offsets = TOKENIZER(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    start, end = next(pair for pair in offsets if pair[1] - pair[0] > 2)
    row = {"id": "a", "question": "What?", "context": context}
    row["answers"] = [{"text": context[start + 1 : end], "answer_start": start + 1}]
    task = task_of()
    examples = read(task, write(tmp_path / "rows.jsonl", [row]))
    features = task.features(examples, training=True)
    assert task.answers(told(features), examples, features) == [(start, end)]
    assert task.metrics(EvalPrediction(told(features), None), examples, features)["exact_span"] == 0.0


def test_decoding_is_that_of_inference(tmp_path: Path) -> None:
    _, model = pairs.make(
        "ErnieMForQuestionAnswering", torch.float32, vocab_size=len(TOKENIZER), noise=0.5, max_position_embeddings=130
    )
    rows = ROWS[::5]
    for impossible in (False, True):
        given_rows = [{**rows[0], "answers": []}, *rows[1:]] if impossible else rows
        task = task_of(max_length=100, stride=20)
        examples = read(task, write(tmp_path / "rows.jsonl", given_rows))
        task.fit(examples, examples, None)
        features = task.features(examples, training=False)
        batch = PackedCollator.for_model(model)(features)
        with torch.no_grad():
            output = model(**batch)
        found = task.answers((output.start_logits, output.end_logits), examples, features)
        answers = question_answering(model, TOKENIZER)(
            given_rows, max_seq_len=100, doc_stride=20, handle_impossible_answer=impossible
        )
        assert found == [(answer["start"], answer["end"]) for answer in answers]
        assert torch.isfinite(output.loss)


def test_every_form_holds_the_same(tmp_path: Path) -> None:
    rows = [{key: row[key] for key in ("id", "question", "context", "answers")} for row in ROWS[:6]]
    rows.append({**rows[0], "id": "none", "answers": {"text": [], "answer_start": []}})
    nested = tmp_path / "squad.json"
    nested.write_text(json.dumps(squad(rows)), encoding="utf-8")
    listed = [question | {"context": paragraph["context"]} for article in squad(rows)["data"]
              for paragraph in article["paragraphs"] for question in paragraph["qas"]]  # fmt: skip
    paths = [nested, write(tmp_path / "flat.jsonl", rows), write(tmp_path / "listed.jsonl", listed)]
    task = task_of()
    found = [[example[:4] for example in read(task, path)] for path in paths]
    assert found[0] == found[1] == found[2]
    assert [answers for *_, answers in found[0]][-1] == ()
    texts = [question["answers"]["text"][0].strip() for question in rows[:-1]]
    assert [context[slice(*answers[0])] for _, _, context, answers in found[0][:-1]] == texts


def test_figures_by_hand(tmp_path: Path) -> None:
    context = "The old river flows through the town of Ulm, and Ulm is in Germany."
    asked = [["Ulm"], ["river flows"], ["Germany"], []]
    rows = [
        {"id": "same", "question": "What?", "context": context,
         "answers": [{"text": text, "answer_start": context.index(text)} for text in texts]}
        for texts in asked
    ]  # fmt: skip
    task = task_of()
    examples = read(task, write(tmp_path / "rows.jsonl", rows))
    task.fit(examples, [], None)
    features = task.features(examples, training=False)
    offsets, begin = examples[0].read.context.offsets, len(features[0]["input_ids"]) - 1  # type: ignore[union-attr]
    # The second Ulm; "The old river"; nothing; "town".
    answered = [(49, 52), (0, 13), (0, 0), (32, 36)]
    scores = np.zeros((2, len(features), begin + 1))
    for index, (start, end) in enumerate(answered):
        first, last = token_span(offsets, start, end) if end else (-1, -1)
        shift = begin - len(offsets)
        scores[0, index, first + shift if end else 0] = scores[1, index, last + shift if end else 0] = 30.0
    assert task.answers(scores, examples, features) == answered
    figures = task.metrics(EvalPrediction((scores[0], scores[1]), None), examples, features)
    # "old river" of "river flows": half of each word list. An article does not count.
    assert figures == pytest.approx({"exact_match": 1 / 4, "f1": (1 + 1 / 2) / 4, "exact_span": 0.0})


def bad(**changes: Any) -> dict[str, Any]:
    return {"id": "q7", "question": "What?", "context": "It is Ulm.", "answers": []} | changes


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (bad(answers=[{"text": "Bonn", "answer_start": 6}]), "the answer 'Bonn' at 6, where 'context' holds 'Ulm.'"),
        (bad(answers=[{"text": "Ulm", "answer_start": -4}]), "the answer 'Ulm' at -4"),
        (bad(answers=[{"text": "Ulm", "answer_start": "6"}]), "answer_start '6'"),
        (bad(answers=[{"text": " ", "answer_start": 2}]), "the answer ' ' at 2"),
        (bad(answers="Ulm"), "has 'answers' 'Ulm'"),
        (bad(answers={"text": ["Ulm"], "answer_start": []}), "has 'answers'"),
        (bad(answers=[{"text": "Ulm", "answer_start": 6}], is_impossible=True), "both is_impossible and answers"),
        (bad(context="\u200b"), "'context' without text"),
        (bad(question=3), "'question' of type int"),
        (bad(question="What " * 400), "must leave room for the context, in --max-length=384"),
        ({"id": "q7", "question": "What?", "context": "It."}, "has no 'answers'"),
    ],
)
def test_bad_questions_are_named_or_counted(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "rows.jsonl", [ROWS[0], row])
    with pytest.raises(InputError) as raised:
        read(task_of(), path)
    assert f"TRAIN '{path}': " in str(raised.value)
    assert "q7" in str(raised.value)
    assert message in str(raised.value)
    skipped = BadLines(skip=True)
    assert [example.question for example in read(task_of(), path, skipped)] == [ROWS[0]["question"]]
    assert skipped.count == 1
    with pytest.raises(InputError, match=r"no questions are left without bad lines; the first: .*q7"):
        read(task_of(), write(path, [row]), BadLines(skip=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no list data"),
        ('{"data": [{"paragraphs": 1}]}', "has no list data[0].paragraphs"),
        ('{"data": [{"paragraphs": [{"qas": ["a"]}]}]}', "data[0].paragraphs[0].qas[0] of type str"),
        ('{"data": []}', "holds no questions"),
        (json.dumps(squad([ROWS[0] | {"context": "Nothing."}])), f"question {ROWS[0]['id']!r}: has the answer"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "squad.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as raised:
        read(task_of(), path)
    assert f"TRAIN '{path}': {message}" in str(raised.value) or f"TRAIN '{path}': has {message}" in str(raised.value)


def test_options_that_can_not_be_right_are_refused() -> None:
    for options in ({"stride": -1}, {"max_answer_len": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            task_of(**options)


def test_options_that_leave_a_context_no_room_are_named(tmp_path: Path) -> None:
    row = {"question": "Wo?", "context": "Hier. " * 50, "answers": {"text": ["Hier"], "answer_start": [0]}}
    path = write(tmp_path / "rows.jsonl", [row])
    least = 40 - len(TOKENIZER("Wo?", "")["input_ids"])
    message = f"--stride must be less than the {least} tokens that --max-length=40 leaves to the context"
    with pytest.raises(InputError, match=f"line 1 {message} beside the question, got 39"):
        read(task_of(max_length=40, stride=39), path)
    with pytest.raises(InputError, match=message):
        read(task_of(max_length=40, stride=least), path)
    (example,) = read(task_of(max_length=40, stride=least - 1), path)
    assert len(task_of(max_length=40, stride=least - 1).features([example], training=False)) > 10


def test_a_tokenizer_without_offsets_is_refused() -> None:
    pytest.importorskip("sacremoses")
    with pytest.raises(InputError, match=r"--model: tokenizer must give the characters of its tokens.*XLMTokenizer"):
        task_of(family_folders.tokenizer("XLM"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Bert", "Roberta", "XLMRoberta", "DistilBert"])
def test_other_families(tmp_path: Path, family: str) -> None:
    model, tokenizer = family_folders.build(family, "ForQuestionAnswering", 256)
    model = padding_free(model).eval()
    task = task_of(tokenizer, 256, stride=60, max_answer_len=100)
    examples = read(task, write(tmp_path / "rows.jsonl", [row for row in ROWS if row["lang"] in ("en", "de")]))
    features = task.features(examples, training=True)
    found = task.answers(told(features), examples, features)
    for span, example in zip(found, examples, strict=True):
        assert span == example.answers[0]
    with torch.no_grad():
        output = model(**PackedCollator.for_model(model)(features[:8]))
    kept = {feature["example"] for feature in features[:8]}
    assert kept
    assert output.start_logits.shape[0] == 8
    assert torch.isfinite(output.loss)
