"""FineTuningTask: what one kind of fine-tuning reads, learns and is measured by. The driver does everything else.

A task is made of a tokenizer and options. The driver calls, in this order:

    train = task.read(source, bad)              # from a file to examples
    task.fit(train, dev, head)                  # the labels that there are
    config |= task.config_changes()             # the head's size and names
    rows = task.features(train, training=True)  # what the collator takes
    task.metrics(predictions, dev, dev_rows)    # after every evaluation
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
from transformers import EvalPrediction

from ...files.errors import InputError
from ...files.records import listing
from ...files.rows import ROWS, BadLines, Row, read_rows
from ...files.source import Source
from ...inference.arguments import check_offsets
from ...inference.progress import progress_bar
from ...inference.tokens import Frame
from ..objective import Objective

Example = TypeVar("Example")
Feature = dict[str, Any]
"""`input_ids`, labels and perhaps `token_type_ids` of a sequence; other keys are the task's own, and not collated."""
BLOCK = 1000
"""Examples of which `tracked` gives as many at once."""


class HeadMismatchError(ValueError):
    """Data that the head of a checkpoint can't learn. The message names the data's labels and the head's."""


class Head(NamedTuple):
    """The head that a checkpoint has already.

    Attributes:
        labels: their names, by their numbers.
        problem_type: as in the configuration.
    """

    labels: tuple[str, ...]
    problem_type: str | None


class FineTuningTask(ABC, Generic[Example]):
    """What one kind of fine-tuning reads, learns and is measured by.

    Args:
        tokenizer: of the model.
        max_length: most tokens of a sequence, special tokens included.
        options: keyword arguments of a subclass, values of JSON.

    Attributes:
        name: of the command.
        head: end of the name of the model's class, without the family: "ForTokenClassification", "Model".
        kinds: what each accepted format of a file must be, by its name, which is its ending, too.
        label_names: the labels among the keys of a batch.
        unit: what examples are called: "texts".
        usual_length: most tokens of a sequence where nothing else is asked for; None: what the model takes.
        best_metric: key of `metrics` by which the best checkpoint is chosen; greater is better.
        notes: lines that the driver shows once features are made, such as the number of texts that were cut.
        lines: numbers of the lines of the examples that were read last; None where they have none.
        shows_progress: True where `tracked` shows a bar.
    """

    name: ClassVar[str]
    head: ClassVar[str]
    kinds: ClassVar[Mapping[str, str]] = ROWS
    label_names: ClassVar[tuple[str, ...]] = ("labels",)
    unit: ClassVar[str] = "texts"
    usual_length: ClassVar[int | None] = None
    best_metric: str

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.notes: list[str] = []
        self.lines: list[int | None] = []
        self.shows_progress = False

    def read(self, source: Source, bad: BadLines) -> list[Example]:
        """The examples of a file.

        Raises:
            InputError: the file can't be read, holds no example, or a bad line, which it names.
        """
        examples: list[Example] = []
        self.lines = []
        for number, record in self.records(source, bad):
            with bad.caught():
                try:
                    examples.append(self.example(record))
                    self.lines.append(number)
                except ValueError as error:
                    raise source.error(str(error), number) from error
        source.check_unchanged()
        if not examples:
            raise self.none_left(bad) if bad.count else source.error(f"holds no {self.unit}")
        return examples

    def none_left(self, bad: BadLines) -> InputError:
        """The error of a file whose lines are all bad."""
        return InputError(f"no {self.unit} are left without bad lines; the first: {bad.first}")

    def records(self, source: Source, bad: BadLines) -> Iterator[tuple[int | None, Any]]:
        """What `example` takes, with the number of its line, None where it has none; a row, unless overridden.

        Raises:
            InputError: as `read`.
        """
        return read_rows(source, bad)

    @abstractmethod
    def example(self, record: Any) -> Example:
        """Check and convert one record.

        Raises:
            ValueError: it is malformed. The message follows the line's number: "has no 'label': ...".
        """

    def fit(self, train: Sequence[Example], dev: Sequence[Example], head: Head | None) -> None:
        """Settle what the data says, such as the labels.

        Args:
            train, dev: the examples.
            head: that of the checkpoint; None: a new one is made.

        Raises:
            HeadMismatchError: the head has other labels.
            InputError: nothing can be learned.
        """

    def config_changes(self) -> dict[str, Any]:
        """Fields of the model's configuration: num_labels, id2label, label2id, problem_type."""
        return {}

    @abstractmethod
    def features(self, examples: Sequence[Example], training: bool) -> list[Feature]:
        """What the collator takes: one feature an example, or one a window.

        Args:
            examples: of one file.
            training: False: for evaluation, where every example must be in some feature.

        Returns:
            Features. Where they are not one an example, "example" is the place of theirs.
        """

    def collator(self, model: Any) -> Callable[[list[Feature]], dict[str, Any]]:
        """What makes a batch of features.

        Args:
            model: with its head.
        """
        from ..collators import PackedCollator

        return PackedCollator.for_model(model)

    def check_batches(self, batch_sizes: np.ndarray, examples: Sequence[Example]) -> None:
        """Refuse batches of which nothing can be learned, or note how many there are.

        Args:
            batch_sizes: samples of each step's batch, in no order.
            examples: that the batches are made of.

        Raises:
            InputError: nothing can be learned of any.
        """

    def objective(self, model: Any) -> Objective | None:
        """The loss; None: the head's own.

        Args:
            model: with its head.
        """
        return None

    @abstractmethod
    def metrics(
        self, predictions: EvalPrediction, examples: Sequence[Example], features: Sequence[Feature]
    ) -> dict[str, float]:
        """Figures of an evaluation, best_metric among them; none is NaN.

        Args:
            predictions: `predictions` is the model's output without its loss, an array, or a tuple of several, with
                one row a feature, -100 behind the end of rows of tokens; `label_ids` those of `label_names`.
            examples: of the evaluation's file.
            features: what `features` made of them, in order.
        """

    def save_files(self, folder: Path, model: Any) -> None:
        """Write what the model's folder needs besides the model and the tokenizer."""

    def check_max_length(self, frame: Frame, least: int | None = None) -> None:
        """Refuse a length that holds special tokens alone.

        Args:
            frame: what is put around the texts.
            least: that is accepted; None: with a token of each text.

        Raises:
            InputError: `max_length` is less.
        """
        least = frame.size + len(frame.text_types) if least is None else least
        if self.max_length < least:
            raise InputError(
                f"--max-length {self.max_length}: expected at least {least}, more than the {frame.size} special tokens"
            )

    def check_offsets(self) -> None:
        """Refuse a tokenizer that can't tell the characters of its tokens.

        Raises:
            InputError: it is a slow one.
        """
        try:
            check_offsets(self.tokenizer)
        except ValueError as error:
            raise InputError(f"--model: {error}") from error

    def tracked(self, examples: Sequence[Example], description: str) -> Iterator[Sequence[Example]]:
        """Examples in blocks, with a bar on stderr of those that are done."""
        with progress_bar(len(examples), description, f" {self.unit}", self.shows_progress) as bar:
            for start in range(0, len(examples), BLOCK):
                block = examples[start : start + BLOCK]
                yield block
                bar.update(len(block))


@dataclass(frozen=True)
class Asked:
    """A task, before there is a tokenizer.

    Attributes:
        task: its class.
        options: keyword arguments, values of JSON by name; None where nothing was asked for.
    """

    task: type[FineTuningTask[Any]]
    options: Mapping[str, Any] = field(default_factory=dict)


def text_of(record: Row, column: str, option: str | None = None) -> str:
    """A column's text.

    Args:
        record: the row.
        column: its name.
        option: that names the column, for the error.

    Raises:
        ValueError: there is none, or no text that can be tokenized.
    """
    value = value_of(record, column, option)
    if not isinstance(value, str):
        raise ValueError(f"has {column!r} of type {type(value).__name__}, not a string")
    if "\0" in value:
        raise ValueError(f"has {column!r} with a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has {column!r} with a lone surrogate, {value[error.start]!r}") from error
    return value


def value_of(record: Row, column: str, option: str | None = None) -> Any:
    """A column's value.

    Args:
        record, column, option: see `text_of`.

    Raises:
        ValueError: there is no such column.
    """
    if column not in record:
        asked = "" if option is None else f" ({option})"
        raise ValueError(f"has no {column!r}{asked}: it has {listing(list(map(str, record)))}")
    return record[column]
