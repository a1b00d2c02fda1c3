"""Files of the command line: texts in; vectors or records out, whole or not at all.

with vector_file("vectors.npy") as file:
    file.allocate(len(texts), hidden_size)
    file.write(indices, vectors)

with record_file("labels.jsonl") as file:
    file.write({"text": text, "label": label})
"""

import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..files.atomic import STANDARD_STREAM, naming, whole_file
from .errors import InputError

TEXT_ENDINGS = (".txt", "")
VECTOR_ENDINGS = (".npy", "")
RECORD_ENDINGS = (".jsonl", "")
ACCEPTED_TEXTS = "expected a UTF-8 text file, one text a line"


def check_texts(source: str) -> None:
    """Refuse a file whose ending promises another format than one text a line.

    Raises:
        InputError: the ending is neither .txt nor none.
    """
    ending = Path(source).suffix
    if ending.lower() not in TEXT_ENDINGS:
        raise InputError(
            f"TEXTS {source!r}: the ending {ending} is not read; {ACCEPTED_TEXTS}, that ends in .txt or has no ending, "
            f"or - for stdin"
        )


def check_out(out: str, endings: Sequence[str]) -> None:
    """Refuse a name that promises another format than the one that is written.

    Args:
        out: path of a file, or "-" for stdout.
        endings: the ending of the format, and "" for none.

    Raises:
        InputError: another ending.
    """
    ending = Path(out).suffix
    if ending.lower() not in endings:
        raise InputError(
            f"--out {out!r}: the ending {ending} is not written; expected a file that ends in {endings[0]} or has no "
            f"ending, or - for stdout"
        )


def check_distinct(texts: str, out: str) -> None:
    """Refuse to replace the texts by their results.

    Raises:
        InputError: both are one file.
    """
    if STANDARD_STREAM in (texts, out):
        return
    if os.path.exists(out) and os.path.exists(texts) and os.path.samefile(out, texts):
        raise InputError(f"--out {out!r}: is TEXTS itself; expected another file")


def read_texts(source: str) -> list[str]:
    r"""Read the lines of a UTF-8 file, without their "\n" or "\r\n" and without a byte order mark.

    Args:
        source: path of a file, or "-" for stdin.

    Raises:
        InputError: the file can't be read, is empty, is not UTF-8, or holds NUL, as no text does.
    """
    check_texts(source)
    texts = []
    try:
        with _open_texts(source) as lines:
            for number, line in enumerate(lines, 1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise InputError(f"TEXTS {source!r}: line {number} is not UTF-8; {ACCEPTED_TEXTS}") from error
                if "\0" in text:
                    raise InputError(f"TEXTS {source!r}: line {number} holds a NUL character; {ACCEPTED_TEXTS}")
                texts.append(text.removesuffix("\n").removesuffix("\r"))
    except OSError as error:
        raise InputError(f"TEXTS {source!r}: {error.strerror}; {ACCEPTED_TEXTS}") from error
    if not texts:
        raise InputError(f"TEXTS {source!r}: the file is empty; {ACCEPTED_TEXTS}")
    return texts


@contextmanager
def _open_texts(source: str) -> Iterator[Iterable[bytes]]:
    if source != STANDARD_STREAM:
        with open(source, "rb") as file:
            yield file
    elif sys.stdin is None:
        raise OSError(errno.EBADF, "stdin is closed")
    else:
        yield sys.stdin.buffer


class VectorFile:
    """A .npy file of float32 vectors, written in any order. Vectors that are never written are zeros.

    Args:
        file: an empty file, open for reading and writing.
        out: its name in messages.
    """

    def __init__(self, file: BinaryIO, out: str) -> None:
        self.file, self.out = file, out
        self._start = 0

    def allocate(self, vectors: int, hidden_size: int) -> None:
        """Write the header, and take the room for `vectors` vectors of `hidden_size` numbers.

        Raises:
            InputError: it doesn't fit.
        """
        size = vectors * hidden_size * 4
        with naming(f"--out {self.out!r}", f"expected room for {size:,} bytes"):
            header = {"descr": "<f4", "fortran_order": False, "shape": (vectors, hidden_size)}
            np.lib.format.write_array_header_1_0(self.file, header)
            self._start = self.file.tell()
            self.file.truncate(self._start + size)
            if hasattr(os, "posix_fallocate"):
                # A full disk is an error before the work, not after it.
                os.posix_fallocate(self.file.fileno(), 0, self._start + size)

    def write(self, indices: Sequence[int], vectors: np.ndarray) -> None:
        """Write vectors (len(indices), hidden_size) to the rows `indices`.

        Raises:
            InputError: the disk is full.
        """
        with naming(f"--out {self.out!r}", "expected room for the vectors"):
            for index, vector in zip(indices, np.ascontiguousarray(vectors, dtype="<f4"), strict=True):
                self.file.seek(self._start + index * vector.nbytes)
                self.file.write(vector)


class RecordFile:
    """A JSON Lines file: one object a line, UTF-8.

    Args:
        file: an empty file, open for writing.
        out: its name in messages.
    """

    def __init__(self, file: BinaryIO, out: str) -> None:
        self.file, self.out = file, out

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one object as the next line.

        Raises:
            InputError: the disk is full.
        """
        with naming(f"--out {self.out!r}", "expected room for the records"):
            self.file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


@contextmanager
def vector_file(out: str) -> Iterator[VectorFile]:
    """Open a .npy file, in place as a whole at the end, or not at all if anything is raised.

    Args:
        out: path of a .npy file, or "-" for stdout.

    Raises:
        InputError: no such file can be written. Known at once, before any work.
    """
    check_out(out, VECTOR_ENDINGS)
    with whole_file(out, terminal=False) as file:
        yield VectorFile(file, out)


@contextmanager
def record_file(out: str) -> Iterator[RecordFile]:
    """Open a JSON Lines file, in place as a whole at the end, or not at all if anything is raised.

    Args:
        out: path of a .jsonl file, or "-" for stdout.

    Raises:
        InputError: no such file can be written. Known at once, before any work.
    """
    check_out(out, RECORD_ENDINGS)
    with whole_file(out, terminal=True) as file:
        yield RecordFile(file, out)
