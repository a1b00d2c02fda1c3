"""Jobs on files: records in, an engine's results out, in constant memory, resumable.

Job("embed", source="texts.jsonl", out="vectors.npy", model="intfloat/multilingual-e5-base").run(embed)
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from ..files.atomic import STANDARD_STREAM
from ..files.errors import InputError
from ..files.formats import RECORD_FORMATS, Fields, Format, check_ending
from ..files.output import Output, open_output
from ..files.records import Record, count_records, read_records
from ..files.source import ACCEPTED, Source, open_source
from ..inference.engine import DTYPES, Encoder
from ..inference.loading import CheckpointError
from ..inference.progress import progress_bar
from ..inference.stream import stream
from ..inference.task import AnyTask
from ..version import __version__
from .errors import say_on_stderr
from .options import parse_batch_tokens, parse_choice, parse_device

Formats = Mapping[str, Callable[[Fields, str], Format]]
MODEL_FILES = (".json", ".safetensors", ".bin", ".txt", ".model")


@dataclass(frozen=True)
class Work:
    """What a command does with each record.

    Attributes:
        task: name of the engine's task.
        options: of the task, values of JSON by name.
        columns: options that name the columns with texts, and their values.
        fields: names and types of what `result` gives.
        result: from a result of the engine to that of the file, without what names the record.
        item: from the texts of a record to an item of the task.
        formats: formats of the output by ending.
        description: of the progress bar.
        cut: what is said of texts that were cut, after their number.
    """

    task: str
    options: Mapping[str, Any]
    columns: Mapping[str, str]
    fields: Fields
    result: Callable[[Any], Mapping[str, Any]]
    description: str
    item: Callable[[Sequence[str]], Any] = lambda texts: texts[0]
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
        cls, command: str, source: str, kind: str | None, id_column: str, model: str, out: str, batch_tokens: str,
        dtype: str, device: str, restart: bool,
    ) -> "Job":  # fmt: skip
        """The job of values as they were typed.

        Raises:
            InputError: one of them is not as described.
        """
        if kind is not None:
            parse_choice("--format", kind, ACCEPTED)
        parse_choice("--dtype", dtype, DTYPES)
        parse_device(device)
        tokens = parse_batch_tokens(batch_tokens)
        return cls(command, source, kind, id_column, model, out, tokens, dtype, device, restart)

    def run(self, work: Work) -> None:
        """Read, compute and write everything, or go on with that.

        Raises:
            InputError: bad input, or an output that can't be written.
            CheckpointError: a model that can't be used.
        """
        ending = check_ending(self.out, work.formats)
        self._check_distinct()
        with open_source(self.source, self.kind) as source:
            names = tuple(work.columns.values())
            records = read_records(source, names, self.id_column)
            first = next(records, None)
            if first is None:
                raise source.error("holds no records")
            if self.id_column in first.kept and self.id_column in work.fields:
                raise InputError(f"--id-column {self.id_column!r}: is the name of a result; expected another column")
            named = {name: str if value is None else type(value) for name, value in first.kept.items()}
            form = work.formats[ending]({**named, **work.fields}, self.out)
            with open_output(
                self.out, form, self._identity(source, work, ending), self.restart, say_on_stderr
            ) as output:
                if output.placed:
                    return
                known = output.settings
                total = known["records"] if known else count_records(source, names, self.id_column)
                encoder = self._load(known)
                with naming_options():
                    task = encoder.task(work.task, **work.options)
                output.begin(
                    {
                        "records": total,
                        "dtype": encoder.dtype,
                        "device": encoder.device.type,
                        "batch_tokens": encoder.runner.batch_tokens,
                    }
                )
                if source.identity is not None:
                    records = read_records(source, names, self.id_column, skip=output.records)
                else:
                    records = chain((first,), records)
                self._compute(work, encoder, task, source, records, output, total)
        cut = output.notes["cut"]
        if cut:
            say_on_stderr(f"{cut:,} of {output.records:,} texts {work.cut.format(max_tokens=encoder.max_tokens)}")

    def _compute(
        self, work: Work, encoder: Encoder, task: AnyTask, source: Source, records: Iterator[Record], output: Output,
        total: int | None,
    ) -> None:  # fmt: skip
        """Compute what is left of the records."""
        counted = _CountsCuts(task)
        kept: deque[Mapping[str, Any]] = deque()

        def items() -> Iterator[Any]:
            for record in records:
                kept.append(record.kept)
                yield work.item(record.texts)

        runner = encoder.runner
        with progress_bar(total, work.description, " texts", True, output.records) as bar, naming_options():
            tokens = 0

            def count(done: int) -> None:
                nonlocal tokens
                tokens += done
                bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-9):,.0f} tokens/s", refresh=False)
                bar.update(0)

            runner.on_tokens = count
            for results in stream(counted, items(), runner.batch_tokens, output.shards):
                source.check_unchanged()
                output.add([{**kept.popleft(), **work.result(result)} for result in results], counted.cut(len(results)))
                bar.update(len(results))
            source.check_unchanged()

    def _check_distinct(self) -> None:
        """Refuse to replace the input by its results."""
        if STANDARD_STREAM in (self.source, self.out):
            return
        if os.path.exists(self.out) and os.path.exists(self.source) and os.path.samefile(self.out, self.source):
            raise InputError(f"--out {self.out!r}: is INPUT itself; expected another file")

    def _identity(self, source: Source, work: Work, ending: str) -> dict[str, Any] | None:
        """What the results depend on, by the names that errors give it; None where the input can't be read again."""
        if source.identity is None:
            return None
        return {
            "the command": self.command, "INPUT": source.identity, "--format": source.kind, **work.columns,
            "--id-column": self.id_column, "--model": self.model, "the model's files": model_files(self.model),
            "--batch-tokens": self.batch_tokens, "--dtype": self.dtype, "--device": self.device, "the output": ending,
            "the version": __version__, **{option_of(name): value for name, value in work.options.items()},
        }  # fmt: skip

    def _load(self, known: Mapping[str, Any]) -> Encoder:
        """Load the model; what was left to it is settled as the job's first run settled it."""
        with naming_options():
            return Encoder.from_pretrained(
                self.model,
                dtype=known.get("dtype", self.dtype),
                device=known.get("device", "auto") if self.device == "auto" else self.device,
                batch_tokens=known.get("batch_tokens", self.batch_tokens),
            )


class _CountsCuts:
    """A task that says how many of the texts whose results come out were cut.

    Args:
        task: counts in `truncated`, if it cuts, the texts that go in, ahead of the results.
    """

    def __init__(self, task: AnyTask) -> None:
        self._task = task
        self.size, self.compute = task.size, task.compute
        self._cut: deque[bool] = deque()

    def tokenize(self, items: Sequence[Any], first: int = 0) -> list[Any]:
        before = getattr(self._task, "truncated", 0)
        found = self._task.tokenize(items, first)
        cut = getattr(self._task, "truncated", 0) - before
        # Cut texts are the longest: no other needs to be asked.
        longest = set(sorted(range(len(found)), key=lambda place: -self.size(found[place]))[:cut]) if cut else set()
        self._cut.extend(place in longest for place in range(len(found)))
        return found

    def cut(self, results: int) -> dict[str, int]:
        """The number of texts that were cut among those of the next results."""
        return {"cut": sum(self._cut.popleft() for _ in range(results))}


def model_files(name: str) -> str | None:
    """What changes when a checkpoint's files do; None if there are none."""
    folder = Path(name)
    if not folder.is_dir():
        try:
            found = cached_file(name, "config.json")
        except (OSError, ValueError):
            found = None
        if found is None:
            return None
        folder = Path(found).parent
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        if path.suffix in MODEL_FILES and path.is_file():
            status = path.stat()
            digest.update(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def option_of(argument: str) -> str:
    """The option behind an argument of the engine."""
    return {"candidate_labels": "--labels"}.get(argument, f"--{argument.replace('_', '-')}")


@contextmanager
def naming_options() -> Iterator[None]:
    """Turn a ValueError of the engine, whose first word is an argument, into an InputError that names the option."""
    try:
        yield
    except (InputError, CheckpointError):
        raise
    except ValueError as error:
        argument = str(error).split(maxsplit=1)[0] if str(error) else ""
        if not argument.isidentifier():
            raise
        raise InputError(f"{option_of(argument)}: {error}") from error
