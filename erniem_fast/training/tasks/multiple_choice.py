"""Multiple choice: which of several texts goes with a context or answers a question."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import DataCollatorForMultipleChoice, EvalPrediction

from ...files.rows import Row
from ...inference.tokens import PairTemplate, ids_of
from ...modeling import ErnieMModel
from .base import Feature, FineTuningTask, text_of, value_of

NUMBERED = re.compile(r"(choice|ending)(\d+)")
"""Column of one choice."""
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

    A record has the choices as a list, or in columns `choice0`, `choice1`, ... or `ending0`, ...; a context
    (`context`, `sent1`), a question (`question`, `text`, `sent2`), or both, of which the question then begins every
    choice; and the right choice's number, from 0, or text. All have equally many choices.

    Pairs of more than `max_length` tokens are cut, the longer text first; `notes` says how many.

    Args:
        tokenizer, max_length: see `FineTuningTask`.
        context_column: column of the context; None: the first of the names above that a record has.
        question_column: likewise, of the question.
        choices_column: column with lists of choices.
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
        choices_column: str = "choices",
        label_column: str = "label",
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.context_columns = CONTEXTS if context_column is None else (context_column,)
        self.question_columns = QUESTIONS if question_column is None else (question_column,)
        self.choices_column, self.label_column = choices_column, label_column
        self.num_choices: int | None = None  # of the first example

    def example(self, record: Row) -> Example:
        choices = self._choices(record)
        count = len(choices) if self.num_choices is None else self.num_choices
        if len(choices) != count:
            raise ValueError(f"has {len(choices)} choices, the first of the data {count}")
        given = [
            text_of(record, next(column for column in columns if column in record))
            for columns in (self.context_columns, self.question_columns)
            if any(column in record for column in columns)
        ]
        if not given:
            value_of(record, self.question_columns[0])
        start = given[1] + " " if len(given) == 2 else ""
        label = _label(self.label_column, value_of(record, self.label_column), choices)
        self.num_choices = count
        return Example(given[0], tuple(start + choice for choice in choices), label)

    def _choices(self, record: Row) -> list[str]:
        if self.choices_column in record:
            choices = record[self.choices_column]
            if not isinstance(choices, list):
                raise ValueError(f"has {self.choices_column!r} of type {type(choices).__name__}, not a list of strings")
            choices = [text_of({self.choices_column: choice}, self.choices_column) for choice in choices]
        else:
            numbered = {int(match[2]): column for column in record if (match := NUMBERED.fullmatch(column))}
            if not numbered:
                value_of(record, self.choices_column)
            choices = [text_of(record, numbered[number]) for number in sorted(numbered)]
        if len(choices) < 2:
            raise ValueError(f"has {len(choices)} choice{'s' * (not choices)}; expected at least 2")
        return choices

    def features(self, examples: Sequence[Example], training: bool) -> list[Feature]:
        template = PairTemplate.of(self.tokenizer)
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
