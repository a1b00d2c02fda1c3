"""Sequence classification of texts or pairs of texts: one label, several labels, or a number."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import EvalPrediction

from ...files.errors import InputError
from ...files.records import listing
from ...files.rows import BadLines, Row
from ...files.source import Source
from ...inference.tokens import PairTemplate, ids_of
from ...losses import IGNORED
from .base import Feature, FineTuningTask, Head, HeadMismatchError, text_of, value_of
from .labels import Labels, places, settle_labels, unlearned

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEMS = {"single": SINGLE, "multi": MULTI, "regression": REGRESSION}
"""transformers' names of what `problem` may be."""
BEST = {SINGLE: "accuracy", MULTI: "micro_f1", REGRESSION: "pearson"}
"""The metric that chooses the best checkpoint."""


class Example(NamedTuple):
    """Texts, and what is to be said of them.

    Attributes:
        texts: one or two.
        label: a name, a tuple of names, or a number; None: not known.
        parts_of_speech: of the words of each text, between its spaces; None: not known.
    """

    texts: tuple[str, ...]
    label: str | tuple[str, ...] | float | None
    parts_of_speech: tuple[tuple[str, ...], ...] | None = None


class Classification(FineTuningTask[Example]):
    """Task: labels of texts, or of pairs of texts.

    Texts of more than `max_length` tokens are cut, of a pair the longer one first; `notes` says how many.

    Args:
        tokenizer, max_length: see `FineTuningTask`.
        text_column: column with the texts, or the first texts of pairs.
        text_pair_column: column with the second texts.
        label_column: column with the labels: strings or whole numbers, lists of them, or any numbers.
        problem: "single", "multi" or "regression"; None: "multi" where labels are lists, else "single", but not where
            all labels of a text file are numbers, and not all of them whole.
        pos_column: column with the parts of speech of a text's words, between its spaces: a list, or a string with
            spaces; of a pair a list of two. Samples need not have it.
    """

    name = "classify"
    head = "ForSequenceClassification"

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        text_column: str = "text",
        text_pair_column: str | None = None,
        label_column: str = "label",
        problem: str | None = None,
        pos_column: str | None = None,
    ) -> None:
        super().__init__(tokenizer, max_length)
        if problem is not None and problem not in PROBLEMS:
            raise ValueError(f"problem must be one of {', '.join(PROBLEMS)}, got {problem!r}")
        self.columns = (text_column,) if text_pair_column is None else (text_column, text_pair_column)
        self.label_column, self.pos_column = label_column, pos_column
        self.problem = None if problem is None else PROBLEMS[problem]
        self.is_asked = problem is not None
        self.labels = Labels((), {})
        self._template = PairTemplate.of(tokenizer)
        self.check_max_length(self._template.single if text_pair_column is None else self._template.pair)

    @property
    def best_metric(self) -> str:  # type: ignore[override]
        return BEST[self.problem or SINGLE]

    def read(self, source: Source, bad: BadLines) -> list[Example]:
        examples = super().read(source, bad)
        if source.kind in ("csv", "tsv") and not self.is_asked:  # there numbers are strings
            numbers = [_number_in(example.label) for example in examples]
            broken = [at for at, number in enumerate(numbers) if number is not None and not number.is_integer()]
            others = {example.label for example, number in zip(examples, numbers, strict=True) if number is None}
            if broken and all(str(label).strip().lower() == "nan" for label in others):  # pandas' missing number
                raise source.error(
                    f"has {self.label_column!r} {examples[broken[0]].label}, not a label; numbers need --problem "
                    f"regression, names that look like them --problem single",
                    self.lines[broken[0]],
                )
        return examples

    def example(self, record: Row) -> Example:
        texts = tuple(text_of(record, column) for column in self.columns)
        value = value_of(record, self.label_column)
        problem = self.problem or (MULTI if isinstance(value, list) else SINGLE)
        example = Example(texts, self._label(problem, value), self._parts_of_speech(record, texts))
        self.problem = problem  # a line that is bad does not decide
        return example

    def _label(self, problem: str, value: Any) -> str | tuple[str, ...] | float:
        if problem == REGRESSION:
            return self._number(value)
        if problem == SINGLE:
            return self._name(value)
        if not isinstance(value, list):
            raise ValueError(f"has {self.label_column!r} of type {type(value).__name__}, not a list of labels")
        return tuple(self._name(one) for one in value)

    def _parts_of_speech(self, record: Row, texts: tuple[str, ...]) -> tuple[tuple[str, ...], ...] | None:
        value = None if self.pos_column is None else record.get(self.pos_column)
        if value is None:
            return None
        columns = value if isinstance(value, list) and len(texts) == 2 else [value]
        lists = [one.split() if isinstance(one, str) else one for one in columns]
        tags = tuple(tuple(one) if isinstance(one, list) else () for one in lists)
        whole = all(isinstance(tag, str) for one in tags for tag in one)
        if not whole or [len(one) for one in tags] != [len(text.split()) for text in texts]:
            raise ValueError(
                f"has {self.pos_column!r} {value!r:.80}; expected one part of speech for each word between spaces"
            )
        return tags

    def _name(self, value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int) or (isinstance(value, str) and value):
            return str(value)
        if isinstance(value, float):
            raise ValueError(f"has {self.label_column!r} {value}, not a label; numbers need --problem regression")
        raise ValueError(f"has {self.label_column!r} {value!r:.80}, not a label")

    def _number(self, value: Any) -> float:
        number = _number_in(value)
        if number is None:
            raise ValueError(f"has {self.label_column!r} {value!r:.80}, not a finite number")
        return number

    def fit(self, train: Sequence[Example], dev: Sequence[Example], head: Head | None) -> None:
        if head is not None:
            self._check_problem(head)
        if self.problem == REGRESSION:
            self.labels = Labels(("LABEL_0",) if head is None else head.labels, {})
            return
        learned, evaluated = _names(train), _names(dev)
        self.notes += unlearned(learned, evaluated)
        found = learned | evaluated
        if not found:
            raise InputError("TRAIN: no sample has any label; expected some")
        least = 2 if self.problem == SINGLE else 1
        self.labels = settle_labels(found, None if head is None else head.labels, least)
        self.notes += places(self.labels)

    def _check_problem(self, head: Head) -> None:
        """Refuse a head of another problem."""
        of_head = head.problem_type or (REGRESSION if len(head.labels) == 1 else None)
        if of_head is not None and of_head != self.problem:
            raise HeadMismatchError(
                f"the data is for {self.problem}, the head, with the labels {listing(list(head.labels))}, for {of_head}"
            )
        if self.problem == REGRESSION and len(head.labels) != 1:
            raise HeadMismatchError(
                f"the data is for {self.problem}, which needs one label, the head has {listing(list(head.labels))}"
            )

    def config_changes(self) -> dict[str, Any]:
        return self.labels.config_changes() | {"problem_type": self.problem}

    def features(self, examples: Sequence[Example], training: bool) -> list[Feature]:
        template = self._template
        cut, found = 0, []
        for block in self.tracked(examples, "Tokenizing"):
            ids = ids_of((text for example in block for text in example.texts), self.tokenizer)
            for example in block:
                tokens = [ids[text] for text in example.texts]
                cut += not template.fits(tokens, self.max_length)
                row = template.row(tokens, self.max_length)
                feature: Feature = {"input_ids": row.ids.tolist(), "labels": self._target(example)}
                if row.types is not None:
                    feature["token_type_ids"] = row.types.tolist()
                found.append(feature)
        if cut:
            self.notes.append(f"{cut} of {len(examples)} texts were cut to {self.max_length} tokens")
        return found

    def _target(self, example: Example) -> int | float | list[float]:
        label = example.label
        if label is None:
            ignored = [float(IGNORED)] * len(self.labels.names)
            return {SINGLE: IGNORED, REGRESSION: float(IGNORED)}.get(self.problem or SINGLE, ignored)
        if isinstance(label, float):
            return label
        if isinstance(label, str):
            return self.labels.numbers[label]
        target = [0.0] * len(self.labels.names)
        for name in label:
            target[self.labels.numbers[name]] = 1.0
        return target

    def metrics(
        self, predictions: EvalPrediction, examples: Sequence[Example], features: Sequence[Feature]
    ) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score

        logits = np.asarray(predictions.predictions, np.float64)
        targets = np.asarray([feature["labels"] for feature in features])
        if self.problem == REGRESSION:
            return _agreement(logits.reshape(-1), targets.reshape(-1))
        found = logits.argmax(1) if self.problem == SINGLE else (logits > 0).astype(np.int64)
        targets = targets.astype(np.int64)
        figures = {
            "accuracy": accuracy_score(targets, found),
            "macro_f1": f1_score(targets, found, average="macro", zero_division=0),
        }
        if self.problem == MULTI:
            figures["micro_f1"] = f1_score(targets, found, average="micro", zero_division=0)
        return {name: float(value) for name, value in figures.items()}


def _number_in(value: Any) -> float | None:
    """The number that a value is or reads as, if it is a finite one."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _names(examples: Sequence[Example]) -> set[str]:
    """All labels of examples, but unknown ones."""
    labels = (example.label for example in examples)
    return {name for label in labels for name in ([label] if isinstance(label, str) else label)}  # type: ignore


def _agreement(found: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Correlations, 0 where one side is constant, and the mean squared error."""
    from scipy.stats import pearsonr, spearmanr

    constant = len(found) < 2 or np.ptp(found) == 0 or np.ptp(targets) == 0
    return {
        "pearson": 0.0 if constant else float(pearsonr(found, targets).statistic),
        "spearman": 0.0 if constant else float(spearmanr(found, targets).statistic),
        "mean_squared_error": float(np.mean((found - targets) ** 2)),
    }
