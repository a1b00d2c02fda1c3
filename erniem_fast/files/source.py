"""A file that is read once, from its beginning to its end: plain or gzip, or stdin.

with open_source("texts.jsonl.gz") as source:
    for number, line in source.lines():
        ...
    source.check_unchanged()
"""

import errno
import gzip
import io
import os
import stat
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

from .atomic import STANDARD_STREAM
from .errors import InputError

ACCEPTED = {
    "txt": "expected a UTF-8 text file, one text a line",
    "jsonl": "expected UTF-8 JSON Lines, one object a line",
    "csv": "expected UTF-8 CSV with the names of the columns in its first line",
    "parquet": "expected a Parquet file",
}
"""What each format must be, by its name."""
INPUT = "INPUT"
"""What errors call an input that is read once, so that it may be stdin."""
GZIP = ".gz"
LONGEST_LINE = 2**28
"""Bytes of a line. A file of one endless line is an error before it has filled the memory."""
BLOCK = 2**20
"""Bytes that are read at once."""
QUICK, COUNTED = 2**26, 2**33
"""Bytes that are read and checked in a second or two, and bytes whose lines are counted in some seconds."""


class Source:
    """An open input; made by `open_source`.

    Args:
        name: its path, or "-" for stdin.
        kind: its format, a key of `ACCEPTED`.
        file: its content.
        zipped: True if the content is gzip.
        accepted: what each format must be, by its name.
        what: what errors call the input.
    """

    def __init__(
        self, name: str, kind: str, file: BinaryIO, zipped: bool, accepted: Mapping[str, str] = ACCEPTED,
        what: str = INPUT,
    ) -> None:  # fmt: skip
        self.name, self.kind = name, kind
        self._accepted, self._what = accepted, what
        self._raw = file
        self._status = None if name == STANDARD_STREAM else _status_if_regular(file)
        self.file: BinaryIO = gzip.GzipFile(fileobj=file) if zipped else file  # type: ignore[assignment]
        self._zipped = zipped

    @property
    def identity(self) -> str | None:
        """Path, size and time of the last change; None where the content can't be read again: stdin, a pipe."""
        if self._status is None:
            return None
        seconds, rest = divmod(self._status.st_mtime_ns, 10**9)
        changed = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(seconds))}.{rest:09} UTC"
        return f"{os.path.realpath(self.name)} ({self._status.st_size:,} bytes, changed at {changed})"

    def rewind(self) -> None:
        """Go back to the beginning of a file; stdin and pipes stay where they are."""
        if self._status is not None:
            self.file.seek(0)

    def error(self, problem: str, number: int | None = None) -> InputError:
        """The error of this input: that it has changed, if it has.

        Args:
            problem: what is wrong.
            number: of the line, or of the row of a Parquet file.
        """
        if self._has_changed():  # a line may be half written
            return self._changed()
        where = "" if number is None else f"{'row' if self.kind == 'parquet' else 'line'} {number} "
        return InputError(f"{self._what} {self.name!r}: {where}{problem}; {self._accepted[self.kind]}")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what reading raises into an InputError."""
        try:
            yield
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self.error(f"is no whole gzip file ({error})") from error
        except OSError as error:
            raise self.error(error.strerror or str(error)) from error

    def lines(self) -> Iterator[tuple[int, str]]:
        r"""The lines with their numbers, from 1: UTF-8, ended by "\n", which is kept, without a byte order mark.

        Raises:
            InputError: the file cannot be read, is not UTF-8, or has a line of more than `LONGEST_LINE` bytes.
        """
        number = 1
        for block in self._blocks():
            try:
                text = block.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                number += block.count(b"\n", 0, error.start)
                raise self.error("is not UTF-8", number) from error
            for line in io.StringIO(text, newline="\n"):
                yield number, line
                number += 1

    def _blocks(self) -> Iterator[bytes]:
        """The content in blocks of whole lines."""
        self.rewind()
        held: list[bytes] = []
        number = size = 0
        while True:
            with self.reading():
                chunk = self.file.read1(BLOCK)  # type: ignore[attr-defined]
            end = chunk.rfind(b"\n") + 1
            if end or not chunk:
                block = b"".join([*held, chunk[:end]])
                if block:
                    yield block
                if not chunk:
                    return
                number += block.count(b"\n")
                held, size = [], 0
            held.append(chunk[end:])
            size += len(chunk) - end
            if size > LONGEST_LINE:
                raise self.error(f"has more than {LONGEST_LINE:,} bytes", number + 1)

    def count_lines(self) -> int | None:
        """Number of lines, the blank ones included; None where counting would take more than some seconds."""
        if self._status is None or self._zipped or self._status.st_size > COUNTED:
            return None
        count, last = 0, b"\n"
        self.rewind()
        with self.reading():
            while chunk := self.file.read(BLOCK):
                count += chunk.count(b"\n")
                last = chunk[-1:]
        return count + (last != b"\n")

    @property
    def quick(self) -> bool:
        """True if the whole file is read and checked in a second or two."""
        return self._status is not None and self._status.st_size * (4 if self._zipped else 1) <= QUICK

    def check_unchanged(self) -> None:
        """Raise an InputError if the file is not what it was when it was opened."""
        if self._has_changed():
            raise self._changed()

    def _has_changed(self) -> bool:
        if self._status is None:
            return False
        try:
            now = (os.stat(self.name), os.fstat(self._raw.fileno()))
        except OSError:
            return True
        return any(_mark(status) != _mark(self._status) for status in now)

    def _changed(self) -> InputError:
        return InputError(
            f"{self._what} {self.name!r}: changed while it was read, so nothing was put in place; "
            f"expected a file that stays as it is"
        )


@contextmanager
def open_source(
    name: str, kind: str | None = None, *, accepted: Mapping[str, str] = ACCEPTED, what: str = INPUT
) -> Iterator[Source]:
    """Open an input.

    Args:
        name: path of a file, whose ending says what it holds, or "-" for stdin.
        kind: a key of `accepted`, in the place of what the ending says; stdin is the first of them unless told
            otherwise.
        accepted: what each format must be, by its name, which is its ending, too.
        what: what errors call the input.

    Raises:
        InputError: the file can't be read, or its ending is unknown.
    """
    ending, zipped = _ending(name)
    if kind is None:
        kind = ending.removeprefix(".").lower() or next(iter(accepted))
        if kind not in accepted:
            others = "no ending, or - for stdin" if what == INPUT else "or no ending"
            raise InputError(
                f"{what} {name!r}: the ending {ending} is not read; expected one of "
                f"{', '.join(f'.{known}' for known in accepted)}, each also with {GZIP}, {others}"
            )
    try:
        file = _open(name)
    except (OSError, ValueError) as error:  # ValueError: a path with NUL
        raise InputError(f"{what} {name!r}: {getattr(error, 'strerror', error)}; {accepted[kind]}") from error
    source = Source(name, kind, file, zipped, accepted, what)
    # Closing a pipe would wait for a thread that reads it, and that may wait for ever.
    with nullcontext() if source.identity is None else file:
        yield source


def _open(name: str) -> BinaryIO:
    if name != STANDARD_STREAM:
        return open(name, "rb")
    if sys.stdin is None:
        raise OSError(errno.EBADF, "stdin is closed")
    try:
        # Not sys.stdin itself, which Python closes at its end.
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except io.UnsupportedOperation:
        return sys.stdin.buffer


def _ending(name: str) -> tuple[str, bool]:
    """The ending of a path without that of gzip, and whether it has that."""
    path = Path(name)
    if path.suffix.lower() != GZIP:
        return path.suffix, False
    return path.with_suffix("").suffix, True


def _status_if_regular(file: BinaryIO) -> os.stat_result | None:
    """Status of a file that can be read again, None for anything else."""
    try:
        status = os.fstat(file.fileno())
    except io.UnsupportedOperation:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _mark(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
