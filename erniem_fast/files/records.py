"""The records of an input, one at a time: their texts, and what names them in the results.

for record in read_records(source, ("question", "context"), "id"):
    question, context = record.texts
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from .errors import InputError
from .source import LONGEST_LINE, Source

MOST_OF_A_BATCH = 1024
"""Rows of a Parquet file that are held at once."""


class Record(NamedTuple):
    """A record of an input.

    Attributes:
        texts: of the columns that were asked for; a null is an empty text.
        kept: what goes into the result: the column that names the record, where it has one.
    """

    texts: tuple[str, ...]
    kept: dict[str, Any]


def read_records(source: Source, columns: Sequence[str], name: str = "id", skip: int = 0) -> Iterator[Record]:
    """The records of an input in order, in constant memory.

    Args:
        source: the input, of any format.
        columns: names of the columns with texts. A .txt file has the one column "text".
        name: the column that names a record, which it may lack: strings or integers.
        skip: so many records to leave out at the beginning.

    Raises:
        InputError: the input can't be read, a column is missing, or a value is no text. Names the file and the line.
    """
    readers: dict[str, Callable[..., Iterator[Record]]] = {
        "txt": _lines, "jsonl": _objects, "csv": _rows, "parquet": _parquet
    }  # fmt: skip
    return readers[source.kind](source, tuple(columns), name, skip)


def count_records(source: Source, columns: Sequence[str], name: str = "id") -> int | None:
    """Number of records, or of lines; None where counting would take long. A small file is checked to its end.

    Args:
        source, columns, name: see `read_records`.

    Raises:
        InputError: see `read_records`.
    """
    if source.kind == "parquet":
        count: int = open_parquet(source).metadata.num_rows
        return count
    if source.quick:
        return sum(1 for _ in read_records(source, columns, name))
    return None if source.kind == "csv" else source.count_lines()


def _lines(source: Source, columns: tuple[str, ...], name: str, skip: int) -> Iterator[Record]:
    if columns != ("text",):
        absent = next((column for column in columns if column != "text"), "text")
        raise source.error(f"has no column {absent!r}: a line is one text; a .jsonl, .csv or .parquet file has columns")
    for number, line in islice(source.lines(), skip, None):
        if "\0" in line:
            raise source.error("holds a NUL character", number)
        yield Record((line.removesuffix("\n").removesuffix("\r"),), {})


def _objects(source: Source, columns: tuple[str, ...], name: str, skip: int) -> Iterator[Record]:
    numbered = ((number, line) for number, line in source.lines() if line.strip())
    for number, line in islice(numbered, skip, None):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise source.error(f"is not JSON ({error})", number) from error
        if not isinstance(found, dict):
            raise source.error(f"is not an object, but of type {type(found).__name__}", number)
        texts = []
        for column in columns:
            if column not in found:
                raise source.error(f"has no {column!r}: it has {listing(list(found))}", number)
            texts.append(checked_text(source, found[column], column, number))
        kept = {name: _checked_name(source, found[name], name, number)} if name in found else {}
        yield Record(tuple(texts), kept)


def _rows(source: Source, columns: tuple[str, ...], name: str, skip: int) -> Iterator[Record]:
    csv.field_size_limit(LONGEST_LINE)  # one for the whole process
    reader = csv.reader((line for _, line in source.lines()), strict=True)
    rows = _numbered(source, reader)
    header = next(rows, (0, []))[1]
    places = _places(source, header, columns)
    named = header.index(name) if header.count(name) == 1 else None
    for number, row in islice(rows, skip, None):
        if len(row) != len(header):
            raise source.error(f"has {len(row)} fields, the first line {len(header)}", number)
        texts = tuple(checked_text(source, row[at], column, number) for column, at in zip(columns, places, strict=True))
        yield Record(texts, {} if named is None else {name: row[named]})


def _numbered(source: Source, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, with the number of the line that they begin in."""
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise source.error(f"is not CSV ({error})", number) from error
        if row is None:
            return
        if row:
            yield number, row


def _places(source: Source, header: list[str], columns: tuple[str, ...]) -> list[int]:
    """Where the columns lie in a row."""
    for column in columns:
        if header.count(column) != 1:
            amount = "no column" if column not in header else "more than one column"
            raise source.error(f"has {amount} {column!r}: its columns are {listing(header)}")
    return [header.index(column) for column in columns]


def open_parquet(source: Source) -> Any:
    """The input as a `pyarrow.parquet.ParquetFile`.

    Raises:
        InputError: it is no Parquet file, or the package is missing.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(
            f"INPUT {source.name!r}: Parquet needs the package pyarrow, which is not installed; "
            f"expected `pip install 'erniem_fast[files]'`"
        ) from error
    if source.identity is None:
        raise source.error("is a pipe, of which no Parquet is read")
    source.rewind()
    with source.reading():
        try:
            return parquet.ParquetFile(source.file, pre_buffer=False)
        except ArrowException as error:
            raise source.error(f"can't be read ({error})") from error


def _parquet(source: Source, columns: tuple[str, ...], name: str, skip: int) -> Iterator[Record]:
    file = open_parquet(source)
    from pyarrow import ArrowException, types

    schema = file.schema_arrow
    _places(source, schema.names, columns)
    for column in columns:
        kind = schema.field(column).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
            raise source.error(f"has a column {column!r} of type {kind}, not of strings")
    asked = [*columns, *([name] if schema.names.count(name) == 1 and name not in columns else [])]
    row = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row + rows <= skip:
            row += rows
            continue
        with source.reading():
            try:
                for batch in file.iter_batches(MOST_OF_A_BATCH, [group], asked):
                    fields = [batch.column(column).to_pylist() for column in asked]
                    for values in zip(*fields, strict=True):
                        row += 1
                        if row > skip:
                            yield _of_values(source, dict(zip(asked, values, strict=True)), columns, name, row)
            except UnicodeDecodeError as error:
                raise source.error("or one of the next is not UTF-8", row + 1) from error
            except ArrowException as error:
                raise source.error(f"or one of the next can't be read ({error})", row + 1) from error


def _of_values(source: Source, values: dict[str, Any], columns: tuple[str, ...], name: str, number: int) -> Record:
    texts = tuple(checked_text(source, values[column], column, number) for column in columns)
    kept = {name: _checked_name(source, values[name], name, number)} if name in values else {}
    return Record(texts, kept)


def checked_text(source: Source, value: object, column: str, number: int) -> str:
    """A text that can be tokenized and written."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise source.error(f"has {column!r} of type {type(value).__name__}, not a string", number)
    if "\0" in value:
        raise source.error("holds a NUL character", number)
    if source.kind == "jsonl" and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise source.error(f"holds a lone surrogate, {value[error.start]!r}", number) from error
    return value


def _checked_name(source: Source, value: object, name: str, number: int) -> str | int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, str):
        return checked_text(source, value, name, number)
    raise source.error(f"has {name!r} (--id-column) of type {type(value).__name__}, not a string or an integer", number)


def listing(names: list[str]) -> str:
    """The first eight names and the number of the others, or "none"."""
    shown = ", ".join(repr(name[:40]) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "none"
