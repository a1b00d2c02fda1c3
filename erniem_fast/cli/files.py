"""Files of the command line: texts in, vectors out.

with vector_file("vectors.npy") as file:
    file.allocate(len(texts), hidden_size)
    file.write(indices, vectors)
"""

import errno
import os
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import InputError

STANDARD_STREAM = "-"
TEXT_ENDINGS = (".txt", "")
VECTOR_ENDINGS = (".npy", "")
ACCEPTED_TEXTS = "expected a UTF-8 text file, one text a line"
ACCEPTED_VECTORS = "expected the path of a file that can be written"
TEMPORARY = re.compile(r"\.erniem-fast-vectors-[0-9a-f]{16}\.tmp")


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


def check_vectors(out: str) -> None:
    """Refuse a name that promises another format than .npy.

    Raises:
        InputError: the ending is neither .npy nor none.
    """
    ending = Path(out).suffix
    if ending.lower() not in VECTOR_ENDINGS:
        raise InputError(
            f"--out {out!r}: the ending {ending} is not written; expected a file that ends in .npy or has no ending, "
            f"or - for stdout"
        )


def check_distinct(texts: str, out: str) -> None:
    """Refuse to replace the texts by their vectors.

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
        with _naming(self.out, f"expected room for {size:,} bytes"):
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
        with _naming(self.out, "expected room for the vectors"):
            for index, vector in zip(indices, np.ascontiguousarray(vectors, dtype="<f4"), strict=True):
                self.file.seek(self._start + index * vector.nbytes)
                self.file.write(vector)

    def flush(self) -> None:
        """Hand everything to the operating system.

        Raises:
            InputError: the disk is full.
        """
        with _naming(self.out, "expected room for the vectors"):
            self.file.flush()

    def copy_to(self, target: BinaryIO) -> None:
        """Copy the file to a stream.

        Raises:
            BrokenPipeError: the stream is a pipe without a reader.
            InputError: the stream can't be written.
        """
        with _naming(self.out, "expected a stream that can be written"):
            self.file.seek(0)
            while chunk := memoryview(self.file.read(2**20)):
                # A raw stream, as PYTHONUNBUFFERED makes stdout, may write a part only.
                while chunk:
                    chunk = chunk[target.write(chunk) :]
            target.flush()


@contextmanager
def _naming(out: str, accepted: str) -> Iterator[None]:
    """Turn an OSError of the output into an InputError, except that of a pipe without a reader."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"--out {out!r}: {error.strerror}; {accepted}") from error


@contextmanager
def vector_file(out: str) -> Iterator[VectorFile]:
    """Open the output of a command, in place as a whole at the end, or not at all if anything is raised.

    A file that is replaced keeps its mode. Temporary files that killed runs left in the folder are removed.

    Args:
        out: path of a .npy file, or "-" for stdout.

    Raises:
        InputError: no such file can be written. Known at once, before any work.
    """
    check_vectors(out)
    with _to_stdout() if out == STANDARD_STREAM else _to_file(out) as file:
        yield file


@contextmanager
def _to_stdout() -> Iterator[VectorFile]:
    if sys.stdout is None:
        raise InputError("--out '-': stdout is closed; expected a file or a pipe")
    if sys.stdout.isatty():
        raise InputError("--out '-': stdout is a terminal; expected a file or a pipe")
    with _closing(tempfile.TemporaryFile()) as temporary:
        file = VectorFile(temporary, STANDARD_STREAM)
        yield file
        file.copy_to(sys.stdout.buffer)


@contextmanager
def _to_file(out: str) -> Iterator[VectorFile]:
    target = Path(os.path.realpath(out))
    with ExitStack() as stack:
        with _naming(out, ACCEPTED_VECTORS):
            replaced = _status_if_replaceable(target)
            remove_abandoned(target.parent)
            path, temporary = _create(target.parent, 0o666 if replaced is None else 0o600, stack)
            if replaced is not None:
                _keep_owner_and_mode(path, replaced)
        file = VectorFile(temporary, out)
        yield file
        file.flush()
        with _naming(out, ACCEPTED_VECTORS):
            if sys.platform == "win32":
                temporary.close()  # Windows replaces no open file; elsewhere closing would unlock it too early
            os.replace(path, target)


@contextmanager
def _closing(file: BinaryIO) -> Iterator[BinaryIO]:
    """Close a file at the end, without a second error where a full disk was the first."""
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()


def _status_if_replaceable(target: Path) -> os.stat_result | None:
    """Status of the file that is to be replaced, or None; an OSError where replacing would fail or do harm."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):  # a folder; a device, which a file would replace
        raise OSError(errno.EINVAL, "Not a regular file")
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "Write-protected")
    return status


def _create(folder: Path, mode: int, stack: ExitStack) -> tuple[Path, BinaryIO]:
    """Create and lock a temporary file, which `stack` closes and removes."""
    while True:
        path = folder / f".erniem-fast-vectors-{secrets.token_hex(8)}.tmp"
        stack.callback(path.unlink, missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        file = stack.enter_context(_closing(os.fdopen(descriptor, "r+b")))
        try:
            _lock(descriptor)
        except BlockingIOError:
            continue  # another run is about to remove it
        except OSError:
            pass  # a file system without locks, where nothing is removed either
        if path.exists():
            return path, file


def _keep_owner_and_mode(path: Path, replaced: os.stat_result) -> None:
    if hasattr(os, "chown"):
        with suppress(OSError):
            os.chown(path, replaced.st_uid, replaced.st_gid)
    os.chmod(path, stat.S_IMODE(replaced.st_mode))


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of killed runs: files of our name and this user that no process holds locked."""
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if TEMPORARY.fullmatch(entry.name):
                with suppress(OSError):
                    _remove_if_abandoned(Path(entry.path))


def _remove_if_abandoned(path: Path) -> None:
    if sys.platform == "win32":
        path.unlink()  # fails for an open file
        return
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            _lock(descriptor)  # BlockingIOError: its run is alive
            path.unlink()
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock a file until it is closed, or its process ends, however it ends."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
