"""Feature preparation for question answering and tagging, with the tokenizer's calls of transformers' example scripts.

The scripts are `question-answering/run_qa.py` and `token-classification/run_ner.py` in `examples/pytorch` of
https://github.com/huggingface/transformers (Apache-2.0); the functions here are our own and give the same features.
Where the environment variable TRANSFORMERS_EXAMPLES names a copy of that folder, `of_script` takes the scripts' own
functions out of their `main`, and the tests run them word for word.
"""

import ast
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Recipe = Callable[[dict[str, list[Any]]], Any]
EXAMPLES = os.environ.get("TRANSFORMERS_EXAMPLES") or None
SCRIPTS = {
    "prepare_train_features": "question-answering/run_qa.py",
    "prepare_validation_features": "question-answering/run_qa.py",
    "tokenize_and_align_labels": "token-classification/run_ner.py",
}


def of_script(name: str, tokenizer: Any, **options: Any) -> Recipe:
    """A function of a script, word for word, with the variables of `main` that it reads."""
    assert EXAMPLES is not None
    file = Path(EXAMPLES) / SCRIPTS[name]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (function,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)
    labels = options.get("labels", [])
    variables: dict[str, Any] = {
        "tokenizer": tokenizer,
        "question_column_name": "question",
        "context_column_name": "context",
        "answer_column_name": "answers",
        "pad_on_right": True,
        "max_seq_length": options["max_length"],
        "text_column_name": "tokens",
        "label_column_name": "ner_tags",
        "padding": False,
        "label_to_id": {i: i for i in range(len(labels))},
        "b_to_i_label": [labels.index(label.replace("B-", "I-")) for label in labels],
        "data_args": SimpleNamespace(
            doc_stride=options.get("stride"),
            pad_to_max_length=options.get("pad", False),
            max_seq_length=options["max_length"],
            label_all_tokens=options.get("label_all_tokens", False),
        ),
    }
    exec(compile(ast.Module([function], []), str(file), "exec"), variables)
    return variables[name]


def _windows(tokenizer: Any, examples: dict[str, list[Any]], options: dict[str, Any]) -> Any:
    return tokenizer(
        [question.lstrip() for question in examples["question"]],
        examples["context"],
        truncation="only_second",
        max_length=options["max_length"],
        stride=options["stride"],
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="max_length" if options.get("pad") else False,
    )


def _prepare_train_features(tokenizer: Any, examples: dict[str, list[Any]], **options: Any) -> Any:
    features = _windows(tokenizer, examples, options)
    samples, mapping = features.pop("overflow_to_sample_mapping"), features.pop("offset_mapping")
    spans = []
    for row, (sample, offsets) in enumerate(zip(samples, mapping, strict=True)):
        answers = examples["answers"][sample]
        inside = [place for place, side in enumerate(features.sequence_ids(row)) if side == 1]
        span = (0, 0)  # [CLS]: no answer here
        if answers["answer_start"]:
            begin = answers["answer_start"][0]
            end = begin + len(answers["text"][0])
            if offsets[inside[0]][0] <= begin and end <= offsets[inside[-1]][1]:
                span = (
                    max(place for place in inside if offsets[place][0] <= begin),
                    min(place for place in inside if offsets[place][1] >= end),
                )
        spans.append(span)
    features["start_positions"], features["end_positions"] = ([span[side] for span in spans] for side in (0, 1))
    return features


def _prepare_validation_features(tokenizer: Any, examples: dict[str, list[Any]], **options: Any) -> Any:
    features = _windows(tokenizer, examples, options)
    samples = features.pop("overflow_to_sample_mapping")
    features["example_id"] = [examples["id"][sample] for sample in samples]
    features["offset_mapping"] = [
        [span if side == 1 else None for span, side in zip(offsets, features.sequence_ids(row), strict=True)]
        for row, offsets in enumerate(features["offset_mapping"])
    ]
    return features


def _tokenize_and_align_labels(tokenizer: Any, examples: dict[str, list[Any]], **options: Any) -> Any:
    features = tokenizer(
        examples["tokens"], padding=False, truncation=True, max_length=options["max_length"], is_split_into_words=True
    )
    names, rows = options["labels"], []
    for row, tags in enumerate(examples["ner_tags"]):
        words, labels = features.word_ids(batch_index=row), []
        for place, word in enumerate(words):
            if word is None:
                labels.append(-100)
            elif word != words[place - 1]:
                labels.append(tags[word])
            else:
                inner = names.index(names[tags[word]].replace("B-", "I-"))
                labels.append(inner if options.get("label_all_tokens") else -100)
        rows.append(labels)
    features["labels"] = rows
    return features


OURS: dict[str, Callable[..., Any]] = {
    "prepare_train_features": _prepare_train_features,
    "prepare_validation_features": _prepare_validation_features,
    "tokenize_and_align_labels": _tokenize_and_align_labels,
}


def ours(name: str, tokenizer: Any, **options: Any) -> Recipe:
    """Our own function of that name."""
    return lambda examples: OURS[name](tokenizer, examples, **options)
