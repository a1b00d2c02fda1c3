"""Multiple choice: which of several texts goes with a context or answers a question."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import DataCollatorForMultipleChoice, EvalPrediction

from ...files.records import listing
from ...files.rows import Row
from ...inference.tokens import PairTemplate, ids_of
from ...modeling import ErnieMModel
from .base import Feature, FineTuningTask, text_of, value_of

PREFIXES = ("choice", "ending")
NUMBERED = re.compile(rf"({'|'.join(PREFIXES)})\d+")
"""Column of one choice."""
CHOICES = "choices"
CONTEXTS, QUESTIONS = ("context", "sent1"), ("question", "text", "sent2")
"""Columns of what comes first and is the same for all choices, and of what begins each of them: SWAG's among them."""


class Example(NamedTuple):
    """A question.

    Attributes:
        context: the first text of each choice's pair.
        choices: the second ones.
        label: number of the right one.
    """

    context: str
    choices: tuple[str, ...]
    label: int


class MultipleChoice(FineTuningTask[Example]):
    """Task: the right one of several choices.

    A record has the choices as a list (`choices`), or in columns `choice0`, `choice1`, ... or `ending0`, ..., without
    a gap; a context (`context`, `sent1`), a question (`question`, `text`, `sent2`), or both, of which the question then
    begins every choice; and the right choice's number, from 0, or text. All have equally many choices.

    A column that is named by an argument must be in every record.

    Pairs of more than `max_length` tokens are cut, the longer text first; `notes` says how many.

    Args:
        tokenizer, max_length: see `FineTuningTask`.
        context_column: column of the context; None: the first of the names above that a record has.
        question_column: likewise, of the question.
        choices_column: column with lists of choices; None: as above.
        label_column: column with the right one.
    """

    name = "multiple-choice"
    head = "ForMultipleChoice"
    unit = "questions"
    best_metric = "accuracy"

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        context_column: str | None = None,
        question_column: str | None = None,
        choices_column: str | None = None,
        label_column: str = "label",
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.context_column, self.question_column = context_column, question_column
        self.choices_column, self.label_column = choices_column, label_column
        self.num_choices: int | None = None  # of the first example
        self._template = PairTemplate.of(tokenizer)
        self.check_max_length(self._template.pair)

    def example(self, record: Row) -> Example:
        choices = self._choices(record)
        count = len(choices) if self.num_choices is None else self.num_choices
        if len(choices) != count:
            raise ValueError(f"has {len(choices)} choices, the first of the data {count}")
        texts = (
            _text(record, self.context_column, "--context-column", CONTEXTS),
            _text(record, self.question_column, "--question-column", QUESTIONS),
        )
        given = [text for text in texts if text is not None]
        if not given:
            value_of(record, QUESTIONS[0])
        start = given[1] + " " if len(given) == 2 else ""
        label = _label(self.label_column, value_of(record, self.label_column), choices)
        self.num_choices = count
        return Example(given[0], tuple(start + choice for choice in choices), label)

    def _choices(self, record: Row) -> list[str]:
        numbered = [column for column in record if NUMBERED.fullmatch(column)]
        if numbered and self.choices_column is None and CHOICES not in record:
            choices = [text_of(record, column) for column in _in_order(numbered)]
        else:
            column = self.choices_column or CHOICES
            choices = value_of(record, column, self.choices_column and "--choices-column")
            if not isinstance(choices, list):
                raise ValueError(f"has {column!r} of type {type(choices).__name__}, not a list of strings")
            choices = [text_of({column: choice}, column) for choice in choices]
        if len(choices) < 2:
            raise ValueError(f"has {len(choices)} choice{'s' * (not choices)}; expected at least 2")
        return choices

    def features(self, examples: Sequence[Example], training: bool) -> list[Feature]:
        template = self._template
        found, cut = [], 0
        for block in self.tracked(examples, "Tokenizing"):
            ids = ids_of((text for one in block for text in (one.context, *one.choices)), self.tokenizer)
            for example in block:
                pairs = [(ids[example.context], ids[choice]) for choice in example.choices]
                cut += not all(template.fits(pair, self.max_length) for pair in pairs)
                rows = [template.row(pair, self.max_length) for pair in pairs]
                feature: Feature = {"input_ids": [row.ids.tolist() for row in rows], "labels": example.label}
                if template.pair.special_types is not None:
                    feature["token_type_ids"] = [row.types.tolist() for row in rows if row.types is not None]
                found.append(feature)
        if cut:
            self.notes.append(f"{cut} of {len(examples)} {self.unit} have texts cut to {self.max_length} tokens")
        return found

    def collator(self, model: Any) -> Callable[[list[Feature]], dict[str, Any]]:
        """Packed for ErnieM, padded for other families, whose heads of transformers take no packed choices."""
        if any(isinstance(module, ErnieMModel) for module in model.modules()):
            return super().collator(model)
        padded = DataCollatorForMultipleChoice(self.tokenizer)
        # Of transformers 5.17 it takes the labels out of what it is given.
        return lambda features: padded([dict(one) for one in features])  # type: ignore[no-any-return]

    def metrics(
        self, predictions: EvalPrediction, examples: Sequence[Example], features: Sequence[Feature]
    ) -> dict[str, float]:
        found = np.asarray(predictions.predictions).argmax(1)
        return {"accuracy": float(np.mean(found == [feature["labels"] for feature in features]))}


def _text(record: Row, column: str | None, option: str, usual: Sequence[str]) -> str | None:
    """Text of a column that was asked for, else of the first of the usual ones, None where there is none of them."""
    if column is not None:
        return text_of(record, column, option)
    return next((text_of(record, name) for name in usual if name in record), None)


def _in_order(numbered: Sequence[str]) -> list[str]:
    """Columns of choices by their numbers, which are places for the label."""
    for prefix in PREFIXES:
        expected = [f"{prefix}{number}" for number in range(len(numbered))]
        if set(expected) == set(numbered):
            return expected
    raise ValueError(
        f"has the choices {listing(list(numbered))}; expected choice0, choice1, ..., or ending0, ending1, ..., without "
        f"a gap: labels count from 0, too"
    )


def _label(column: str, value: Any, choices: Sequence[str]) -> int:
    """Number of the right choice, from its number or its text; a string may be either."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"has {column!r} {value!r:.80}; expected the number of a choice, from 0, or its text")
    named = {number for number, choice in enumerate(choices) if choice == value}
    is_number = isinstance(value, int) or (value.isascii() and value.isdigit())
    found = named | ({int(value)} & set(range(len(choices))) if is_number else set())
    if len(found) != 1:
        amount = f"is that of {len(found)} choices" if found else f"is none of the {len(choices)} choices"
        raise ValueError(f"has {column!r} {value!r:.80}, which {amount}; expected a number from 0, or a text")
    return found.pop()
