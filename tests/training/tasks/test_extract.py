"""Fine-tuning for extraction: labels and decoding agree with the text, both forms of files are read or refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import golden_tokenizer
from helpers.extraction import make_pair
from transformers import EvalPrediction

from erniem_fast import information_extraction
from erniem_fast.files.errors import InputError
from erniem_fast.files.rows import BadLines
from erniem_fast.files.source import open_source
from erniem_fast.training.collators import PackedCollator
from erniem_fast.training.tasks.extract import Example, Extraction

TOKENIZER = golden_tokenizer.build()
ZH = "2月8日上午谷爱凌以188.25分获得金牌！"
EN = "In 1997, Steve was excited to become the CEO of Apple."
AR = "وُلد الرئيس في القاهرة عام 1970."
HI = "मुझे दिल्ली में रहना पसंद है।"


def span(text: str, part: str) -> dict[str, Any]:
    start = text.index(part)
    return {"text": part, "start": start, "end": start + len(part)}


def row(text: str, prompt: str, *parts: str) -> dict[str, Any]:
    return {"content": text, "prompt": prompt, "result_list": [span(text, part) for part in parts]}


ROWS = [
    row(ZH, "时间", "2月8日上午"),
    row(ZH, "选手", "谷爱凌"),
    row(ZH, "谷爱凌的得分", "188.25分"),
    row(ZH, "地点"),
    row(EN, "Person", "Steve"),
    row(EN, "Company", "Apple"),
    row(AR, "مدينة", "القاهرة"),
    row(HI, "शहर", "दिल्ली"),
    row(EN * 8, "time", "1997", " Apple"),
]


def task_of(max_length: int = 512, **options: Any) -> Extraction:
    return Extraction(TOKENIZER, max_length, **options)


def read(task: Extraction, path: Path, rows: list[Any], bad: BadLines | None = None) -> list[Example]:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows), encoding="utf-8")
    with open_source(str(path), accepted=task.kinds, what="TRAIN") as source:
        return task.read(source, bad or BadLines())


def told(features: list[Any]) -> np.ndarray:
    """Scores of a model that has learned every label."""
    scores = np.full((2, len(features), max(len(one["input_ids"]) for one in features)), -100.0)
    for index, feature in enumerate(features):
        for side, name in enumerate(("start_positions", "end_positions")):
            labels = np.array(feature[name])
            scores[side, index, : len(labels)] = np.where(labels == 1, 20.0, -20.0)
    return scores


def answers_of(examples: list[Example]) -> list[list[set[Any]]]:
    return [[asked.answers for asked in example.asked] for example in examples]


@pytest.mark.parametrize(("max_length", "stride"), [(512, 128), (40, 12)])
def test_labels_are_decoded_to_the_spans_in_every_script(tmp_path: Path, max_length: int, stride: int) -> None:
    task = task_of(max_length, stride=stride)
    examples = read(task, tmp_path / "rows.jsonl", ROWS)
    features = task.features(examples, training=True)
    assert (len(features) > len(examples)) == (max_length == 40)
    scores = told(features)
    expected = [[{(one["start"], one["end"]) for one in given["result_list"]}] for given in ROWS]
    expected[-1] = [{(start + (start == EN.index(" Apple")), end) for start, end in expected[-1][0]}]
    assert answers_of(examples) == expected
    assert task.answers((scores[0], scores[1]), examples, features) == expected
    figures = task.metrics(EvalPrediction((scores[0], scores[1]), None), examples, features)
    assert figures == {"precision": 1.0, "recall": 1.0, "f1": 1.0}


def test_a_prompt_without_answers_is_a_sample_of_zeros(tmp_path: Path) -> None:
    task = task_of()
    examples = read(task, tmp_path / "rows.jsonl", [ROWS[3]])
    (feature,) = task.features(examples, training=True)
    assert feature["input_ids"] == TOKENIZER("地点", ZH)["input_ids"]
    assert feature["start_positions"] == feature["end_positions"] == [0.0] * len(feature["input_ids"])
    scores = told([feature])
    figures = task.metrics(EvalPrediction((scores[0], scores[1]), None), examples, [feature])
    assert figures == {"precision": 1.0, "recall": 1.0, "f1": 1.0}


def test_what_is_left_of_a_span_in_a_window_that_cuts_it_does_not_count(tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    task = task_of(16, stride=2)
    examples = read(task, tmp_path / "rows.jsonl", [row(long, "p", "three four five six seven eight nine ten")])
    features = task.features(examples, training=True)
    tokens = examples[0].tokens[long]
    start, end = next(iter(examples[0].asked[0].spans))
    inside = [start < other and one < end and one < other for one, other in tokens.offsets]
    assert len(features) > 1
    cut = 0
    for feature in features:
        window = feature["window"]
        begin = len(feature["input_ids"]) - 1 - (window.stop - window.start)
        whole = all(window.start <= place < window.stop for place, held in enumerate(inside) if held)
        for name in ("start_positions", "end_positions"):
            labels = feature[name]
            assert labels[:begin] == [0.0] * begin
            assert labels[-1] == 0.0
            held = inside[window.start : window.stop]
            if not whole:
                assert [one == -100.0 for one in labels[begin:-1]] == held
                cut += any(held)
    assert cut


def test_options_lie_in_the_prompt(tmp_path: Path) -> None:
    prompt, text = "情感倾向[正向，负向]", "这家酒店很好，我喜欢。"
    task = task_of()
    by_place = {"content": text, "prompt": prompt, "result_list": [{"text": "负向", "start": -4, "end": -2}]}
    by_name = {"text": text, "result": {prompt: [{"text": "负向"}]}}
    assert prompt[-4 + len(prompt) + 1 :][:2] == "负向"
    for given in (by_place, by_name):
        examples = read(task, tmp_path / "rows.jsonl", [given])
        features = task.features(examples, training=True)
        assert sum(features[0]["start_positions"]) == sum(features[0]["end_positions"]) == 1
        scores = told(features)
        assert task.answers((scores[0], scores[1]), examples, features) == [[{"负向"}]] == answers_of(examples)
        assert task.answers((-scores[0], -scores[1]), examples, features) != [[{"负向"}]]


def test_results_of_extraction_are_the_same_as_prompts(tmp_path: Path) -> None:
    schema = {"选手": ["得分", "教练"], "时间": None, "地点": None}
    result = {
        "选手": [span(ZH, "谷爱凌") | {"relations": {"得分": [span(ZH, "188.25分")]}}],
        "时间": [span(ZH, "2月8日上午") | {"probability": 0.9}],
    }
    prompts = {"选手": ["谷爱凌"], "谷爱凌的得分": ["188.25分"], "谷爱凌的教练": [], "时间": ["2月8日上午"], "地点": []}
    (example,) = read(task_of(schema=schema), tmp_path / "rows.jsonl", [{"text": ZH, "result": result}])
    expected = {prompt: {tuple(span(ZH, part).values())[1:] for part in parts} for prompt, parts in prompts.items()}
    assert {asked.prompt.text: asked.answers for asked in example.asked} == expected
    (example,) = read(task_of(), tmp_path / "rows.jsonl", [{"text": ZH, "result": result}])
    with_answers = {prompt: answers for prompt, answers in expected.items() if answers}
    assert {asked.prompt.text: asked.answers for asked in example.asked} == with_answers
    result = {"Person": [span(EN, "Steve") | {"relations": {"Company": [span(EN, "Apple")]}}]}
    (example,) = read(task_of(language="en"), tmp_path / "rows.jsonl", [{"text": EN, "result": result}])
    assert [asked.prompt.text for asked in example.asked] == ["Person", "Company of Steve"]


def test_decoding_is_that_of_inference(tmp_path: Path) -> None:
    _, model = make_pair(len(TOKENIZER))
    names = ["时间", "Person", "情感倾向[正向,负向]"]
    texts = [ZH * 4, EN, HI, AR * 5]
    task = task_of(64, schema=names, stride=10)
    examples = read(task, tmp_path / "rows.jsonl", [{"text": text, "result": {}} for text in texts])
    features = task.features(examples, training=False)
    with torch.no_grad():
        output = model(**PackedCollator.for_model(model)(features))
    assert torch.isfinite(output.loss)
    found = task.answers((output.start_logits, output.end_logits), examples, features)
    results = information_extraction(model, TOKENIZER)(texts, names, stride=10)
    expected = [
        [
            {one["text"] if "[" in name else (one["start"], one["end"]) for one in result.get(name, [])}
            for name in names
        ]
        for result in results
    ]  # fmt: skip
    assert found == expected
    assert sum(len(answers) for one in found for answers in one) > 10


def test_figures_by_hand(tmp_path: Path) -> None:
    task = task_of()
    examples = read(task, tmp_path / "rows.jsonl", [ROWS[4], ROWS[5]])
    features = task.features(examples, training=False)
    scores = told(features)
    # "1997" is found besides "Steve", and nothing in place of "Apple".
    ids = TOKENIZER("1997", add_special_tokens=False)["input_ids"]
    place = features[0]["input_ids"].index(ids[0])
    scores[0, 0, place] = scores[1, 0, place + len(ids) - 1] = 20.0
    scores[:, 1] = -20.0
    figures = task.metrics(EvalPrediction((scores[0], scores[1]), None), examples, features)
    assert figures == {"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"content": EN, "prompt": "p", "result_list": [{"text": "Steve", "start": 1, "end": 6}]},
         "the span 'Steve' at 1 to 6, where the text holds 'n 199'"),
        ({"content": EN, "prompt": "p", "result_list": [{"text": "x", "start": 5, "end": 5}]}, "a greater end"),
        ({"content": EN, "prompt": "p", "result_list": [{"text": "x", "start": -3, "end": -2}]},
         "the option 'x' at -3"),
        ({"content": EN, "prompt": "p", "result_list": {}}, "'result_list' of type dict"),
        ({"content": EN, "prompt": "p"}, "has no 'result_list'"),
        ({"content": EN, "prompt": " ", "result_list": []}, "has the name ' '"),
        ({"content": "\u200b", "prompt": "p", "result_list": []}, "has no tokens"),
        ({"content": EN, "prompt": "p" * 900, "result_list": []}, "tokens, not of 1 to"),
        ({"content": 3, "prompt": "p", "result_list": []}, "'content' of type int"),
        ({"text": EN, "result": []}, "'result' or 'relations' of type list"),
        ({"text": EN, "result": {"Person": "Steve"}}, "'Person', whose answers are no list"),
        ({"text": EN, "result": {"City": []}}, "has the name 'City', which the schema does not have there"),
        ({"text": EN}, "has no 'result'"),
        ({}, "has no 'text'"),
    ],
)  # fmt: skip
def test_bad_lines_are_named_or_counted(tmp_path: Path, given: Any, message: str) -> None:
    path, good = tmp_path / "rows.jsonl", ROWS[4]
    task = task_of(schema=["Person"])
    with pytest.raises(InputError) as raised:
        read(task, path, [good, given])
    assert f"TRAIN '{path}': " in str(raised.value)
    assert message in str(raised.value)
    skipped = BadLines(skip=True)
    assert len(read(task, path, [good, given], skipped)) == skipped.count == 1


def test_a_file_that_asks_about_nothing_is_refused(tmp_path: Path) -> None:
    path, rows = tmp_path / "rows.jsonl", [{"text": EN, "result": {}}, {"text": ZH, "result": {}}]
    with pytest.raises(InputError) as raised:
        read(task_of(), path, rows)
    assert f"TRAIN '{path}': asks about nothing: there are no answers, and no --schema" in str(raised.value)
    assert len(read(task_of(schema=["Person"]), path, rows)) == 2
    assert len(read(task_of(), path, [*rows, ROWS[0]])) == 3


def test_options_that_can_not_be_right_are_refused() -> None:
    for options in ({"language": "de"}, {"stride": -1}, {"schema": []}):
        with pytest.raises(ValueError, match=next(iter(options))):
            task_of(**options)
