"""Endless streams of texts and of translated pairs, in constant memory: shuffled, a share for each rank, resumable.

stream = Stream(open_readers(["pairs.tsv"], PARALLEL), seed=0)
for sample in stream:
    first, second = sample.texts
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..files.errors import InputError
from ..files.records import checked_text, listing
from ..files.rows import BadLines, read_rows
from ..files.source import ACCEPTED, GZIP, Source, open_source

BUFFER = 10_000
"""Samples among which the next one is drawn."""
GZIP_RATIO = 4
"""Bytes of text in a byte of gzip, about."""
ROW_BYTES = 200
"""Bytes of text in a row of a dataset, about."""
PAIRS = {
    "tsv": "expected UTF-8 lines of a text, a tab and its translation, and perhaps the two languages, without quotes",
    "jsonl": ACCEPTED["jsonl"],
}
"""What a file of pairs must be, by its format."""
TEXTS = {
    "txt": ACCEPTED["txt"],
    "tsv": "expected UTF-8 lines of a text, and perhaps a tab and its language, without quotes",
    "jsonl": ACCEPTED["jsonl"],
}
"""What a file of texts must be, by its format."""


class Columns(NamedTuple):
    """Columns of the files of a stream.

    Attributes:
        texts: names of the columns with texts in JSON Lines and datasets; a dot reads an object in the column, as in
            "translation.de". Their number is that of the texts of a sample.
        languages: names of the columns with the language of each text, which may be lacking.
    """

    texts: tuple[str, ...]
    languages: tuple[str, ...] = ()


PARALLEL = Columns(("source", "target"), ("source_language", "target_language"))
MONOLINGUAL = Columns(("text",), ("language",))


class Sample(NamedTuple):
    """A text, or a text and its translation.

    Attributes:
        texts: one or two, none of them empty.
        languages: of each text, where the input names it.
        place: file and line, or dataset and row, from 1.
        epoch: number of times that the stream has been read to its end before.
        number: of the sample within the epoch, in the stream's order, from 0.
    """

    texts: tuple[str, ...]
    languages: tuple[str | None, ...]
    place: str
    epoch: int = 0
    number: int = 0


class Reader(Protocol):
    """A file or a dataset, which can be read any number of times.

    Attributes:
        name: what it is called in errors.
        size: bytes of text, about; 0: unknown.
        identity: what changes when the content does.
        quick: it is read within a second or two.
    """

    name: str
    size: float
    identity: str
    quick: bool

    def read(self, bad: BadLines) -> Iterator[Sample]:
        """The samples in order. Blank lines are left out, and so are bad ones where they are to be skipped."""

    def check(self) -> None:
        """Raise the InputError of the first bad line, if the content is read quickly."""


class FileReader:
    """A file of plain text, TSV or JSON Lines, each also as gzip.

    Args:
        name: its path.
        columns: of JSON Lines. TSV has as many texts as these have, then perhaps as many languages.

    Raises:
        InputError: the file can't be read, or its ending is unknown.
    """

    def __init__(self, name: str, columns: Columns) -> None:
        self.name, self.columns = name, columns
        self._accepted = PAIRS if len(columns.texts) == 2 else TEXTS
        with self._open() as source:
            if source.identity is None:
                raise source.error("is a pipe, which can't be read twice")
            path = Path(name)
            bytes_on_disk = path.stat().st_size
            self.size = float(bytes_on_disk * (GZIP_RATIO if name.endswith(GZIP) else 1))
            self.identity = f"{path.name} ({bytes_on_disk:,} bytes, {_digest(path, bytes_on_disk)})"
            self.quick, self._seen = source.quick, source.identity

    def read(self, bad: BadLines) -> Iterator[Sample]:
        with self._open() as source:
            if source.identity != self._seen:
                raise InputError(f"file {self.name!r}: has changed since the run began; expected a file that stays")
            numbered = read_rows(source, bad) if source.kind == "jsonl" else source.lines()
            parse = {"txt": _plain, "tsv": _row, "jsonl": _object}[source.kind]
            for number, line in numbered:
                if isinstance(line, str) and not line.strip():
                    continue
                with bad.caught():
                    texts, languages = parse(source, number, line, self.columns)
                    yield self._sample(source, number, texts, languages)
            source.check_unchanged()

    def check(self) -> None:
        if self.quick:
            for _ in self.read(BadLines()):
                pass

    def _open(self) -> AbstractContextManager[Source]:
        return open_source(self.name, accepted=self._accepted, what="file")

    def _sample(self, source: Source, number: int, texts: list[Any], languages: list[Any]) -> Sample:
        found = tuple(
            checked_text(source, text, column, number).strip()
            for column, text in zip(self.columns.texts, texts, strict=True)
        )
        if not all(found):
            raise source.error("has an empty text", number)
        spoken = tuple(checked_text(source, language, "language", number) or None for language in languages)
        return Sample(found, spoken or (None,) * len(found), f"{self.name}:{number}")


def _digest(path: Path, size: int, block: int = 2**16) -> str:
    """Of up to 17 blocks all over a file: of all of a small one."""
    found = hashlib.blake2b(digest_size=8)
    with path.open("rb") as file:
        for start in range(0, size, max(size // 16, block)):
            file.seek(start)
            found.update(file.read(block))
    return found.hexdigest()


def _plain(source: Source, number: int, line: Any, columns: Columns) -> tuple[list[Any], list[Any]]:
    return [line], []


def _row(source: Source, number: int, line: Any, columns: Columns) -> tuple[list[Any], list[Any]]:
    fields, texts = line.rstrip("\r\n").split("\t"), len(columns.texts)
    if len(fields) not in (texts, 2 * texts):
        raise source.error(f"has {len(fields)} columns, not {texts}, or {2 * texts} with languages", number)
    return fields[:texts], fields[texts:]


def _object(source: Source, number: int, found: Any, columns: Columns) -> tuple[list[Any], list[Any]]:
    try:
        return _fields(found, columns)
    except KeyError as error:
        raise source.error(f"has no {error.args[0]!r}: it has {listing(list(found))}", number) from error


class DatasetReader:
    """A dataset of Hugging Face `datasets`, map-style or iterable.

    Args:
        dataset: a Dataset or an IterableDataset, which gives the same rows each time that it is read.
        columns: names of its columns.
        name: what it is called in errors.

    Raises:
        InputError: a column is missing.
    """

    quick = False

    def __init__(self, dataset: Any, columns: Columns, name: str = "in memory") -> None:
        self.name, self.columns, self._dataset = name, columns, dataset
        rows = getattr(dataset, "num_rows", None)
        if isinstance(dataset, dict):
            raise InputError(f"dataset {name!r}: holds the splits {', '.join(dataset)}; expected one of them")
        self.size = float(rows * ROW_BYTES) if rows is not None else 0.0
        self.identity = f"{Path(name).name} ({'unknown' if rows is None else f'{rows:,}'} rows)"
        known: list[str] = getattr(dataset, "column_names", None) or []
        for column in columns.texts:
            if known and column not in known and column.split(".")[0] not in known:
                raise InputError(f"dataset {name!r}: has no column {column!r}; its columns are {listing(known)}")

    def read(self, bad: BadLines) -> Iterator[Sample]:
        for number, row in enumerate(self._dataset, 1):
            with bad.caught():
                yield self._sample(number, row)

    def check(self) -> None:
        """Check nothing: a dataset is read a row at a time."""

    def _sample(self, number: int, row: Mapping[str, Any]) -> Sample:
        try:
            texts, languages = _fields(row, self.columns)
        except KeyError as error:
            raise self._error(number, f"has no {error.args[0]!r}") from error
        if not all(isinstance(text, str) and "\0" not in text for text in texts):
            raise self._error(number, "has a text that is no string, or holds a NUL character")
        found = tuple(text.strip() for text in texts)
        if not all(found):
            raise self._error(number, "has an empty text")
        return Sample(found, tuple(languages) or (None,) * len(found), f"{self.name}:{number}")

    def _error(self, number: int, problem: str) -> InputError:
        return InputError(
            f"dataset {self.name!r}: row {number} {problem}; expected texts in {', '.join(self.columns.texts)}"
        )


def _fields(row: Mapping[str, Any], columns: Columns) -> tuple[list[Any], list[Any]]:
    """Texts and languages of a row; a KeyError names the column that is missing."""
    texts = [_field(row, column) for column in columns.texts]
    there = bool(columns.languages) and all(column in row for column in columns.languages)
    return texts, [row[column] for column in columns.languages] if there else []


def _field(row: Mapping[str, Any], column: str) -> Any:
    if column in row:
        return row[column]
    found: Any = row
    for name in column.split("."):
        if not isinstance(found, Mapping) or name not in found:
            raise KeyError(column)
        found = found[name]
    return found


def open_readers(inputs: Sequence[Any], columns: Columns) -> list[Reader]:
    """Readers of files, of folders that `datasets` saved on disk, and of datasets.

    Args:
        inputs: paths, Datasets and IterableDatasets.
        columns: of all of them.

    Raises:
        InputError: one of them can't be read.
    """
    return [_open_reader(one, columns) for one in inputs]


def _open_reader(one: Any, columns: Columns) -> Reader:
    if not isinstance(one, str | Path):
        return DatasetReader(one, columns)
    if not Path(one).is_dir():
        return FileReader(str(one), columns)
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise InputError(
            f"folder {str(one)!r}: needs the package datasets, which is not installed; "
            f"expected `pip install 'erniem_fast[train]'`"
        ) from error
    try:
        dataset = load_from_disk(str(one))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"folder {str(one)!r}: {reason}; expected what Dataset.save_to_disk writes") from error
    return DatasetReader(dataset, columns, str(one))


class Stream:
    """The samples of files and datasets, without an end: epoch after epoch, each in another order.

    Within an epoch each line comes exactly once, on exactly one rank. Files are read side by side, each as often as its
    size asks for, so that they end at about the same time; the sample that comes next is drawn from a buffer.

    Args:
        readers: files and datasets, at least one.
        seed: of the order. The same on all ranks.
        buffer_size: samples among which the next one is drawn; 1 keeps the order of a single file.
        rank, world_size: this process's number and the number of processes: each gets every world_size-th sample.
        skip_bad_lines: leave out lines that are no samples, and count them.

    Attributes:
        names: what is read.
        bad_lines: lines that were left out of one epoch, as far as it was read, whatever the rank.

    Raises:
        InputError: while it is read: a bad line, with its file and number; no sample at all.
    """

    def __init__(
        self, readers: Sequence[Reader], *, seed: int = 0, buffer_size: int = BUFFER, rank: int = 0,
        world_size: int = 1, skip_bad_lines: bool = False,
    ) -> None:  # fmt: skip
        if not readers:
            raise ValueError("readers: got none, expected at least one")
        if buffer_size < 1:
            raise ValueError(f"buffer_size: got {buffer_size}, expected at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: got {rank}, expected 0 to {world_size - 1}")
        self._readers, self._seed, self._buffer_size = list(readers), seed, buffer_size
        self.names = ", ".join(repr(reader.name) for reader in readers)
        self._rank, self._world_size = rank, world_size
        self._skip_bad_lines = skip_bad_lines
        self._start = (0, 0)
        self.bad_lines = 0

    def check(self) -> None:
        """Read the small files to their ends, so that a bad line is known before any work.

        Raises:
            InputError: a bad line that is not to be skipped.
        """
        for reader in self._readers if not self._skip_bad_lines else ():
            reader.check()

    def state_dict(self, sample: Sample | None = None) -> dict[str, Any]:
        """Position at which reading begins with a sample that the stream gave; None: at which it began last.

        Returns:
            Values of JSON.
        """
        epoch, number = self._start if sample is None else (sample.epoch, sample.number)
        return {"epoch": epoch, "number": number, "inputs": [reader.identity for reader in self._readers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin at a position: an iterator made from now on gives its sample first. It reads what is before it again.

        Raises:
            InputError: the files are others.
        """
        here = [reader.identity for reader in self._readers]
        if list(state["inputs"]) != here:
            raise InputError(
                f"inputs {', '.join(here)}: the run to go on with read {', '.join(state['inputs'])}; expected the same "
                f"files in the same order"
            )
        self._start = (int(state["epoch"]), int(state["number"]))

    def __iter__(self) -> Iterator[Sample]:
        first, number = self._start
        for epoch in count(first):
            skipped = number if epoch == first else 0
            given = False
            for place, sample in enumerate(islice(self._epoch(epoch), skipped, None), skipped):
                given = True
                yield sample._replace(epoch=epoch, number=place)
            if not given and not skipped:
                raise InputError(
                    f"{self.names}: no texts for rank {self._rank} of {self._world_size}; expected some lines"
                )

    def once(self) -> Iterator[Sample]:
        """The samples of the first epoch."""
        return (sample._replace(number=number) for number, sample in enumerate(self._epoch(0)))

    def _epoch(self, epoch: int) -> Iterator[Sample]:
        """The samples of this rank in one epoch."""
        bad = BadLines(self._skip_bad_lines)
        mine = islice(self._side_by_side(epoch, bad), self._rank, None, self._world_size)
        draw = random.Random(f"{self._seed} {epoch} {self._rank}")
        buffer = list(islice(mine, self._buffer_size))
        for sample in mine:
            at = draw.randrange(self._buffer_size)
            yield buffer[at]
            buffer[at] = sample
            self.bad_lines = max(self.bad_lines, bad.count)
        self.bad_lines = max(self.bad_lines, bad.count)
        draw.shuffle(buffer)
        yield from buffer

    def _side_by_side(self, epoch: int, bad: BadLines) -> Iterator[Sample]:
        """The samples of all readers, in the same order on all ranks."""
        draw = random.Random(f"{self._seed} {epoch}")
        known = [reader.size for reader in self._readers if reader.size]
        usual = sum(known) / len(known) if known else 1.0
        left = [(reader.read(bad), reader.size or usual) for reader in self._readers]
        while left:
            at = draw.choices(range(len(left)), [size for _, size in left])[0] if len(left) > 1 else 0
            sample = next(left[at][0], None)
            if sample is None:
                del left[at]
            else:
                yield sample
