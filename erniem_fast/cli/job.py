"""Jobs on files: records in, an engine's results out, in constant memory, resumable.

Job.of("embed", "texts.jsonl", ...).run(Work(task="encode", ...))
"""

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from os.path import exists, samefile
from typing import Any, NamedTuple

from ..files.atomic import STANDARD_STREAM
from ..files.formats import RECORD_FORMATS, Fields, Format, Result, check_ending
from ..files.output import Output, open_output
from ..files.records import Record, count_records, read_records
from ..files.source import ACCEPTED, Source, open_source
from ..inference.engine import DTYPES, TASKS, Encoder
from ..inference.loading import CheckpointError, model_files
from ..inference.progress import progress_bar
from ..inference.stream import stream
from ..inference.task import AnyTask
from ..version import __version__
from .errors import InputError, say_on_stderr
from .options import parse_batch_tokens, parse_choice, parse_device

Formats = Mapping[str, Callable[[Fields, str], Format]]
ARGUMENT = re.compile(r"([a-z_]+)(?:\[.*?\])? ")
"""How errors of the engine begin that are about an argument."""
PLACE = re.compile(r"\w+\[(\d+)\] ?")
"""How errors of the engine begin that are about one of its items."""


@dataclass(frozen=True)
class Work:
    """What a command does with each record.

    Attributes:
        task: name of the engine's task.
        options: of the task, values of JSON by name.
        columns: names of the columns with texts, by the options that give them.
        fields: names and types of what `result` gives.
        result: from a result of the engine to that of the file, without what names the record.
        description: of the progress bar.
        item: from the texts of a record to an item of the task.
        empty: result of a record one of whose texts is empty, where the task takes none; None: it takes them.
        formats: formats of the output by their endings.
        cut: what is said of texts that were cut, behind their number.
    """

    task: str
    options: Mapping[str, Any]
    columns: Mapping[str, str]
    fields: Fields
    result: Callable[[Any], Result]
    description: str
    item: Callable[[Sequence[str]], Any] = lambda texts: texts[0]
    empty: Result | None = None
    formats: Formats = field(default_factory=lambda: RECORD_FORMATS)
    cut: str = "were cut to {max_tokens} tokens"


@dataclass(frozen=True)
class Job:
    """What all commands on files are told.

    Attributes:
        command: its name.
        source: path of the input, or "-".
        kind: format of the input; None: as its ending says.
        id_column: column that names a record.
        model: folder or id on the Hub.
        out: path of the output, or "-".
        batch_tokens: most tokens of a batch; None: by the memory that is free.
        dtype, device: as the engine takes them.
        restart: drop what other runs have left.
    """

    command: str
    source: str
    kind: str | None
    id_column: str
    model: str
    out: str
    batch_tokens: int | None
    dtype: str
    device: str
    restart: bool

    @classmethod
    def of(
        cls, command: str, *, source: str, input_format: str | None, id_column: str, model: str, out: str,
        batch_tokens: str, dtype: str, device: str, restart: bool,
    ) -> "Job":  # fmt: skip
        """The job of values as they were typed.

        Raises:
            InputError: one of them is not as described.
        """
        if input_format is not None:
            parse_choice("--format", input_format, ACCEPTED)
        parse_choice("--dtype", dtype, DTYPES)
        parse_device(device)
        tokens = parse_batch_tokens(batch_tokens)
        return cls(command, source, input_format, id_column, model, out, tokens, dtype, device, restart)

    def run(self, work: Work) -> None:
        """Read, compute and write everything, or what an earlier run left of it.

        Raises:
            InputError: bad input, or an output that can't be written.
            CheckpointError: a model that can't be used.
        """
        ending = check_ending(self.out, work.formats)
        self._check_distinct()
        with open_source(self.source, self.kind) as source:
            columns = tuple(work.columns.values())
            fields: dict[str, Any] = {}  # known with the first record, which may be long in coming
            form = work.formats[ending](fields, self.out)
            job = self._identity(source, work, ending)
            with open_output(self.out, form, job, self.restart, say_on_stderr) as output:
                if output.placed:
                    return
                records = read_records(source, columns, self.id_column)
                first = next(records, None)
                if first is None:
                    raise source.error("holds no records")
                fields |= self._names(first, work.fields) | dict(work.fields)
                known = output.settings
                total = known["records"] if known else count_records(source, columns, self.id_column)
                encoder = self._load(known)
                with naming_options():
                    task = encoder.task(work.task, **work.options)
                output.begin(_settings(encoder) | {"records": total})
                if job is not None:
                    records = read_records(source, columns, self.id_column, skip=output.records)
                else:
                    records = chain((first,), records)
                self._compute(work, encoder, task, source, records, output, total)
        if output.notes["cut"]:
            cut = work.cut.format(max_tokens=encoder.max_tokens)
            say_on_stderr(f"{output.notes['cut']} of {output.records} texts {cut}")

    def _compute(
        self, work: Work, encoder: Encoder, task: AnyTask, source: Source, records: Iterator[Record], output: Output,
        total: int | None,
    ) -> None:  # fmt: skip
        """Compute the records, a shard at a time."""
        lane = _Lane(work, task, source, output.records)
        runner = encoder.runner
        bars = progress_bar(total, work.description, " texts", True, output.records)
        with bars as bar, runner.showing_rate(bar):

            def add(results: list[Result], notes: Mapping[str, int]) -> None:
                source.check_unchanged()
                output.add(results, notes)
                bar.update(len(results))

            with naming_options():
                for found in stream(lane, lane.items(records), runner.batch_tokens, output.shards):
                    add(*lane.results(found))
            if rest := lane.rest():
                add(rest, {})

    def _check_distinct(self) -> None:
        """Refuse to replace the input by its results."""
        if STANDARD_STREAM in (self.source, self.out):
            return
        if exists(self.out) and exists(self.source) and samefile(self.out, self.source):
            raise InputError(f"--out {self.out!r}: is INPUT itself; expected another file")

    def _names(self, first: Record, fields: Fields) -> dict[str, type]:
        """The type of the column that names the records, if there is one."""
        if self.id_column in first.kept and self.id_column in fields:
            raise InputError(f"--id-column {self.id_column!r}: is the name of a result; expected another column")
        return {name: str if value is None else type(value) for name, value in first.kept.items()}

    def _identity(self, source: Source, work: Work, ending: str) -> dict[str, Any] | None:
        """What the results depend on, by the names that errors give it; None where the input can't be read again."""
        if source.identity is None:
            return None
        asked = {
            "the command": self.command,
            "INPUT": source.identity,
            "--format": source.kind,
            **work.columns,
            "--id-column": self.id_column,
            "--model": self.model,
            "the model's files": model_files(self.model),
            "--batch-tokens": self.batch_tokens,
            "--dtype": self.dtype,
            "--device": self.device,
            "the ending of --out": ending,
            "the version": __version__,
        }
        return asked | {option_of(name): value for name, value in work.options.items()}

    def _load(self, known: Mapping[str, Any]) -> Encoder:
        """Load the model; what was left to it is settled as the job's first run settled it."""
        with naming_options():
            return Encoder.from_pretrained(
                self.model,
                dtype=known.get("dtype", self.dtype),
                device=known.get("device", self.device),
                batch_tokens=known.get("batch_tokens", self.batch_tokens),
            )


def _settings(encoder: Encoder) -> dict[str, Any]:
    return {
        "dtype": encoder.dtype, "device": str(encoder.device), "batch_tokens": encoder.runner.batch_tokens,
    }  # fmt: skip


class _Waiting(NamedTuple):
    """A record whose result is not there yet.

    Attributes:
        kept: what goes into the result.
        is_empty: True if the task is not given it.
    """

    kept: Mapping[str, Any]
    is_empty: bool


class _Lane:
    """A task as the stream runs it, and the records that are on their way.

    Args:
        work: what is done with each record.
        task: of the engine.
        source: where the records come from.
        done: number of records before them.
    """

    def __init__(self, work: Work, task: AnyTask, source: Source, done: int) -> None:
        self._work, self._task, self._source = work, task, source
        self.size = task.size
        # Appended to by the thread that reads, taken from by the one that writes.
        self._waiting: deque[_Waiting] = deque()
        self._cut: deque[bool] = deque()
        self._numbers: deque[int] = deque()  # of records, from 1, whose items are not tokenized yet
        self._read = done

    def items(self, records: Iterator[Record]) -> Iterator[Any]:
        """Items of records."""
        for record in records:
            self._read += 1
            is_empty = self._work.empty is not None and not all(map(str.strip, record.texts))
            self._waiting.append(_Waiting(record.kept, is_empty))
            if not is_empty:
                self._numbers.append(self._read)
                yield self._work.item(record.texts)

    def tokenize(self, items: Sequence[Any], first: int = 0) -> list[Any]:
        numbers = [self._numbers.popleft() for _ in items]
        try:
            found, cut = self._tokenize(items, first)
        except ValueError as error:
            place = PLACE.match(str(error))
            if place is None:
                raise
            problem = str(error)[place.end() :]
            raise self._source.error(f"record {numbers[int(place[1]) - first]} {problem}") from error
        self._cut.extend(self._which_are_cut(items, found, cut))
        return found

    def _tokenize(self, items: Sequence[Any], first: int) -> tuple[list[Any], int]:
        """Tokens of items, and how many of them were cut."""
        before = getattr(self._task, "truncated", 0)
        found = self._task.tokenize(items, first)
        return found, getattr(self._task, "truncated", 0) - before

    def _which_are_cut(self, items: Sequence[Any], found: Sequence[Any], cut: int) -> list[bool]:
        """True for each item that was cut. These are the longest."""
        sizes = [self.size(tokens) for tokens in found]
        least = sorted(sizes)[-cut] if cut else max(sizes, default=0) + 1
        if sum(size >= least for size in sizes) == cut:
            return [size >= least for size in sizes]
        # Others are as long without a cut.
        return [
            size > least or (size == least and self._tokenize([item], 0)[1] > 0)
            for item, size in zip(items, sizes, strict=True)
        ]

    def compute(self, tokens: Sequence[Any]) -> Any:
        return self._task.compute(tokens)

    def results(self, found: Sequence[Any]) -> tuple[list[Result], dict[str, int]]:
        """Results of the file from those of the task, and how many of their texts were cut."""
        results: list[Result] = []
        for one in found:
            results += self.rest()
            results.append({**self._waiting.popleft().kept, **self._work.result(one)})
        return results, {"cut": sum(self._cut.popleft() for _ in found)}

    def rest(self) -> list[Result]:
        """Results of the next records that the task is not given."""
        results: list[Result] = []
        while self._work.empty is not None and self._waiting and self._waiting[0].is_empty:
            results.append({**self._waiting.popleft().kept, **self._work.empty})
        return results


def option_of(argument: str) -> str:
    """The option behind an argument of the engine, or behind a task that the model is not made for."""
    named = {"candidate_labels": "--labels"} | dict.fromkeys(("tokenizer", *TASKS), "--model")
    return named.get(argument, f"--{argument.replace('_', '-')}")


@contextmanager
def naming_options() -> Iterator[None]:
    """Turn a ValueError of the engine, whose first word is an argument, into an InputError that names the option."""
    try:
        yield
    except (InputError, CheckpointError):
        raise
    except ValueError as error:
        argument = ARGUMENT.match(str(error))
        if argument is None:
            raise
        raise InputError(f"{option_of(argument[1])}: {error}") from error
