"""Extractive question answering: the question with each window of its context, and the answer's first and last token.

Sources: Devlin et al., arXiv 1810.04805, section 4.2 and 4.3; Rajpurkar et al., arXiv 1606.05250 (EM, F1) and
1806.03822 (no answer).
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import EvalPrediction

from ...files.rows import ROWS, BadLines, read_rows
from ...files.source import Source
from ...inference.arguments import check_whole
from ...inference.question_answering import MAX_ANSWER_LEN, MAX_SEQ_LEN, Found, Read
from ...inference.tokens import PairTemplate, Tokens
from .base import Feature, text_of, value_of
from .characters import has_characters, token_span
from .tokenized import TokenizedTask

ACCEPTED = {
    "json": "expected JSON in the form of SQuAD 1.1 or 2.0: data, paragraphs, context, qas, id, question, answers",
    "jsonl": ROWS["jsonl"],
    "parquet": ROWS["parquet"],
}
"""What each format must be, by its name."""


class Example(NamedTuple):
    """A question, its context, and what may be answered.

    Attributes:
        name: of the question, for messages: "question '57268'".
        question, context: texts.
        answers: characters [start, end) of the context, each of them right; none: the context does not say.
        read: tokens of both, and the windows; None until the file is read.
    """

    name: str
    question: str
    context: str
    answers: tuple[tuple[int, int], ...]
    read: Read | None = None

    @property
    def texts(self) -> list[str]:
        """The answers; "" is no answer."""
        return [self.context[start:end] for start, end in self.answers] or [""]


class QuestionAnswering(TokenizedTask[Example]):
    """Task: answers as spans of contexts of any length, or none.

    A context is read in windows, as `Encoder.answer` reads it; a window that does not hold the whole answer is to point
    to its first token, [CLS]. Of several answers the first is learned, and all count in the evaluation.

    Args:
        tokenizer: of the model, one that gives offsets.
        max_length: most tokens of a window, its question and special tokens included.
        stride: tokens that two windows in a row share; None: 128, or half of those that the question leaves.
        max_answer_len: most tokens of an answer, in the evaluation.
    """

    name = "qa"
    head = "ForQuestionAnswering"
    kinds = ACCEPTED
    label_names = ("start_positions", "end_positions")
    unit = "questions"
    usual_length = MAX_SEQ_LEN
    best_metric = "f1"

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        stride: int | None = None,
        max_answer_len: int = MAX_ANSWER_LEN,
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.check_offsets()
        if stride is not None:
            check_whole("stride", stride, 0)
        check_whole("max_answer_len", max_answer_len, 1)
        self.stride, self.max_answer_len = stride, max_answer_len
        self.handle_impossible_answer = False
        self._frame = PairTemplate.of(tokenizer).pair
        self.check_max_length(self._frame)

    def records(self, source: Source, bad: BadLines) -> Iterator[tuple[int | None, Any]]:
        if source.kind != "json":
            yield from read_rows(source, bad)
            return
        with source.reading():
            source.rewind()
            content = source.file.read()
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise source.error(f"is not JSON ({error})") from error
        try:
            for record in flatten(document):
                yield None, record
        except ValueError as error:
            raise source.error(str(error)) from error

    def example(self, record: Any) -> Example:
        """A question of one record: id, question, context, answers and, in SQuAD 2.0, is_impossible.

        Answers are a dict of the lists text and answer_start, as in Hugging Face's datasets, or a list of dicts, as in
        SQuAD's files.
        """
        name = f"question {str(record['id'])[:80]!r}" if record.get("id") is not None else "the question"
        try:
            question, context = text_of(record, "question"), text_of(record, "context")
            answers = tuple(_span(context, *one) for one in _answers(value_of(record, "answers")))
            if answers and record.get("is_impossible"):
                raise ValueError("has both is_impossible and answers")
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return Example(name, question, context, answers)

    def texts(self, example: Example) -> list[str]:
        return [example.question, example.context]

    def tokenized(self, example: Example, tokens: Mapping[str, Tokens]) -> Example:
        question, context = tokens[example.question], tokens[example.context]
        for column, held in (("question", question), ("context", context)):
            if not has_characters(held.offsets):
                raise ValueError(f"{example.name}: has {column!r} without text, {held.text[:50]!r}")
        for start, end in example.answers:
            if token_span(context.offsets, start, end) is None:
                raise ValueError(f"{example.name}: has the answer {example.context[start:end]!r}, which is no token")
        read = Read.of(
            example.name, question, context, self._frame, self.max_length, self.stride, ("--max-length", "--stride")
        )
        return example._replace(read=read)

    def fit(self, train: Sequence[Example], dev: Sequence[Example], head: Any) -> None:
        self.handle_impossible_answer = not all(example.answers for example in (*train, *dev))

    def config_changes(self) -> dict[str, Any]:
        return {"num_labels": 2}

    def features(self, examples: Sequence[Example], training: bool) -> list[Feature]:
        found = []
        for index, example in enumerate(examples):
            read = _read(example)
            for start, row in zip(read.starts, read.rows(self._frame), strict=True):
                first, last = self._positions(example, start, len(row.ids))
                feature: Feature = {
                    "input_ids": row.ids.tolist(), "start_positions": first, "end_positions": last,
                    "example": index, "window": start,
                }  # fmt: skip
                if row.types is not None:
                    feature["token_type_ids"] = row.types.tolist()
                found.append(feature)
        return found

    def _positions(self, example: Example, start: int, length: int) -> tuple[int, int]:
        """Places of the answer's first and last token in the row of the window from token `start` on; 0 without one."""
        read = _read(example)
        if not example.answers:
            return 0, 0
        span = token_span(read.context.offsets, *example.answers[0])
        held = len(read.offsets(start))
        if span is None or not start <= span[0] <= span[1] < start + held:
            return 0, 0
        shift = length - len(self._frame.specials[2]) - held - start
        return span[0] + shift, span[1] + shift

    def answers(
        self, predictions: Any, examples: Sequence[Example], features: Sequence[Feature]
    ) -> list[tuple[int, int]]:
        """Characters [start, end) of the best answer to each question, as `Encoder.answer` gives it; 0, 0 is none.

        Args:
            predictions: scores of starts and of ends, (num_windows, seq_len or more) each.
            examples, features: see `metrics`.
        """
        starts, ends = (np.asarray(one, np.float64) for one in predictions)
        found = [Found(_read(example), 1, self.max_answer_len) for example in examples]
        for feature, start, end in zip(features, starts, ends, strict=True):
            length = len(feature["input_ids"])
            found[feature["example"]].take(feature["window"], np.stack((start[:length], end[:length])), self._frame)
        best = [one.answers(self.handle_impossible_answer)[0] for one in found]
        return [(answer["start"], answer["end"]) for answer in best]

    def metrics(
        self, predictions: EvalPrediction, examples: Sequence[Example], features: Sequence[Feature]
    ) -> dict[str, float]:
        """SQuAD's exact match and F1, and the share of questions whose answer has exactly the right characters.

        SQuAD's figures are for English: they pass over case, ASCII's punctuation and a, an, the, and F1 counts words
        between spaces; in a script without spaces it is the exact match. `exact_span` compares characters' places in
        the context, in any script.
        """
        from torchmetrics.functional.text import squad

        spans = self.answers(predictions.predictions, examples, features)
        pairs = list(zip(examples, spans, strict=True))
        given = [
            {"id": str(index), "prediction_text": one.context[start:end]}
            for index, (one, (start, end)) in enumerate(pairs)
        ]
        right = [{"id": str(index), "answers": {"text": one.texts}} for index, one in enumerate(examples)]
        figures = {name: float(value) / 100 for name, value in squad(given, right).items()}
        exact = [span in (example.answers or ((0, 0),)) for example, span in pairs]
        return figures | {"exact_span": sum(exact) / len(exact)}


def flatten(document: Any) -> Iterator[dict[str, Any]]:
    """Questions of a document in SQuAD's form, each with its context.

    Raises:
        ValueError: it has another form.
    """
    for place, article in _listed(document, "data", ""):
        for inner, paragraph in _listed(article, "paragraphs", place):
            for last, question in _listed(paragraph, "qas", inner):
                if not isinstance(question, dict):
                    raise ValueError(f"has {last} of type {type(question).__name__}, not an object")
                yield {"context": paragraph.get("context"), **question}


def _listed(holder: Any, key: str, place: str) -> Iterable[tuple[str, Any]]:
    """Items of a list, with their places."""
    items = holder.get(key) if isinstance(holder, dict) else None
    path = f"{place}.{key}".lstrip(".")
    if not isinstance(items, list):
        raise ValueError(f"has no list {path}")
    return ((f"{path}[{index}]", item) for index, item in enumerate(items))


def _answers(value: Any) -> list[tuple[Any, Any]]:
    """Text and first character of each answer, in either form."""
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            return list(zip(texts, starts, strict=True))
    elif isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return [(one.get("text"), one.get("answer_start")) for one in value]
    raise ValueError(f"has 'answers' {value!r:.80}; expected dicts with text and answer_start, or a dict of two lists")


def _span(context: str, text: Any, start: Any) -> tuple[int, int]:
    """Characters of an answer, without the white space around it."""
    if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
        raise ValueError(
            f"has an answer with text {text!r:.80} and answer_start {start!r:.80}, not a string and a place"
        )
    held = context[start : start + len(text)] if start >= 0 else ""
    if held != text or not text.strip():
        raise ValueError(f"has the answer {text[:80]!r} at {start}, where 'context' holds {held[:80]!r}")
    return start + len(text) - len(text.lstrip()), start + len(text.rstrip())


def _read(example: Example) -> Read:
    assert example.read is not None, "examples are made by `read`"
    return example.read
