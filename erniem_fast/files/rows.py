"""Rows of a file of samples, with all their columns, and what becomes of the rows that can't be read.

bad = BadLines(skip=True)
for number, row in read_rows(source, bad):
    ...
print(bad.count)
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .errors import InputError
from .records import MOST_OF_A_BATCH, listing, open_parquet
from .source import ACCEPTED, LONGEST_LINE, Source

Row = Mapping[str, Any]

ROWS: Mapping[str, str] = {
    "jsonl": ACCEPTED["jsonl"],
    "csv": ACCEPTED["csv"],
    "tsv": "expected UTF-8, columns separated by tabs, without quoting, with the columns' names in the first line",
    "parquet": ACCEPTED["parquet"],
}
"""What each format of `read_rows` must be, by its name; `open_source` takes this."""


class BadLines:
    """What becomes of malformed lines: the first is an error, or all are left out and counted.

    Args:
        skip: leave them out.

    Attributes:
        count: number of lines that were left out.
        first: what is wrong with the first of them.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.count = 0
        self.first: str | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Context for the work on one line."""
        try:
            yield
        except InputError as error:
            self.add(error)

    def add(self, error: InputError, lines: int = 1) -> None:
        """Raise the error of a line, or of several that can't be told apart, or count them."""
        if not self.skip:
            raise error
        self.count += lines
        self.first = self.first or str(error)


def read_rows(source: Source, bad: BadLines) -> Iterator[tuple[int, Row]]:
    """The rows of an input, by the names of their columns, each with the number of its line.

    Values are strings in .csv and .tsv files, and anything in .jsonl and .parquet.

    Args:
        source: the input, of a format of `ROWS`.
        bad: what becomes of malformed lines.

    Raises:
        InputError: the input can't be read, or holds a bad line. Names the file and the line.
    """
    readers: Mapping[str, Callable[[Source, BadLines], Iterator[tuple[int, Row]]]] = {
        "jsonl": _objects, "csv": _table, "tsv": _table, "parquet": _parquet
    }  # fmt: skip
    return readers[source.kind](source, bad)


def _objects(source: Source, bad: BadLines) -> Iterator[tuple[int, Row]]:
    for number, line in source.lines():
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            bad.add(source.error(f"is not JSON ({error})", number))
            continue
        if isinstance(found, dict):
            yield number, found
        else:
            bad.add(source.error(f"is not an object, but of type {type(found).__name__}", number))


def _table(source: Source, bad: BadLines) -> Iterator[tuple[int, Row]]:
    rows = (_quoted if source.kind == "csv" else _tab_separated)(source, bad)
    _, header = next(rows, (0, []))
    if bad.count:  # before the first row, which is then not the header
        raise InputError(str(bad.first))
    if len(set(header)) < len(header):
        raise source.error(f"has two columns of one name: its columns are {listing(header)}")
    for number, row in rows:
        if len(row) == len(header):
            yield number, dict(zip(header, row, strict=True))
        else:
            bad.add(source.error(f"has {len(row)} fields, the first line {len(header)}", number))


def _quoted(source: Source, bad: BadLines) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(LONGEST_LINE)  # one for the whole process
    reader = csv.reader((line for _, line in source.lines()), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            bad.add(source.error(f"is not CSV ({error})", number), reader.line_num + 1 - number)
            continue
        if row is None:
            return
        if row:
            yield number, row


def _tab_separated(source: Source, bad: BadLines) -> Iterator[tuple[int, list[str]]]:
    for number, line in source.lines():
        line = line.removesuffix("\n").removesuffix("\r")
        if line:
            yield number, line.split("\t")


def _parquet(source: Source, bad: BadLines) -> Iterator[tuple[int, Row]]:
    file = open_parquet(source)
    from pyarrow import ArrowException

    number = 0
    with source.reading():
        try:
            for batch in file.iter_batches(MOST_OF_A_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (ArrowException, UnicodeDecodeError) as error:
            raise source.error(f"or one of the next can't be read ({error})", number + 1) from error
