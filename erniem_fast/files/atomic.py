"""Output that is there as a whole at the end, or not at all: a file replaced in one step, or stdout.

with whole_file("out.bin", terminal=False) as file:
    file.write(data)
"""

import errno
import os
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import InputError

STANDARD_STREAM = "-"
ACCEPTED_OUT = "expected the path of a file that can be written"
TEMPORARY = re.compile(r"\.erniem-fast-[0-9a-f]{16}\.tmp")


@contextmanager
def whole_file(out: str, terminal: bool) -> Iterator[BinaryIO]:
    """Open the output of a command, in place as a whole at the end, or not at all if anything is raised.

    A file that is replaced keeps its mode. Temporary files that killed runs left in the folder are removed.

    Args:
        out: path of a file, or "-" for stdout.
        terminal: True if the output is text, which stdout may show on a terminal.

    Raises:
        InputError: no such file can be written. Known at once, before any work.
    """
    with _to_stdout(terminal) if out == STANDARD_STREAM else _to_file(out) as file:
        yield file


@contextmanager
def naming(what: str, accepted: str) -> Iterator[None]:
    """Turn an OSError of an output into an InputError, except that of a pipe without a reader.

    Args:
        what: the option and its value.
        accepted: what would do.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"{what}: {error.strerror or error}; {accepted}") from error


@contextmanager
def _to_stdout(terminal: bool) -> Iterator[BinaryIO]:
    if sys.stdout is None:
        raise InputError("--out '-': stdout is closed; expected a file or a pipe")
    if sys.stdout.isatty() and not terminal:
        raise InputError("--out '-': stdout is a terminal; expected a file or a pipe")
    with closing(tempfile.TemporaryFile()) as temporary:
        yield temporary
        with naming(f"--out {STANDARD_STREAM!r}", "expected a stream that can be written"):
            _copy(temporary, sys.stdout.buffer)


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    source.seek(0)
    while chunk := memoryview(source.read(2**20)):
        # A raw stream, as PYTHONUNBUFFERED makes stdout, may write a part only.
        while chunk:
            chunk = chunk[target.write(chunk) :]
    target.flush()


@contextmanager
def _to_file(out: str) -> Iterator[BinaryIO]:
    target = Path(os.path.realpath(out))
    with ExitStack() as stack:
        with naming(f"--out {out!r}", ACCEPTED_OUT):
            replaced = replaceable(target)
            remove_abandoned(target.parent)
            path, temporary = _create(target.parent, 0o666 if replaced is None else 0o600, stack)
            if replaced is not None:
                keep_owner_and_mode(path, replaced)
        yield temporary
        with naming(f"--out {out!r}", "expected room for the results"):
            temporary.flush()
        with naming(f"--out {out!r}", ACCEPTED_OUT):
            if sys.platform == "win32":
                temporary.close()  # Windows replaces no open file; elsewhere closing would unlock it too early
            os.replace(path, target)


@contextmanager
def closing(file: BinaryIO) -> Iterator[BinaryIO]:
    """Close a file at the end, without a second error where a full disk was the first."""
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()


def replaceable(target: Path) -> os.stat_result | None:
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
        path = folder / f".erniem-fast-{secrets.token_hex(8)}.tmp"
        stack.callback(path.unlink, missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        file = stack.enter_context(closing(os.fdopen(descriptor, "r+b")))
        try:
            lock(descriptor)
        except BlockingIOError:
            continue  # another run is about to remove it
        except OSError:
            pass  # a file system without locks, where nothing is removed either
        if path.exists():
            return path, file


def keep_owner_and_mode(path: Path, replaced: os.stat_result) -> None:
    """Give a file the mode of the one that it will replace, and its owner where that is allowed."""
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
            lock(descriptor)  # BlockingIOError: its run is alive
            path.unlink()
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> None:
    """Lock a file until it is closed, or its process ends, however it ends; BlockingIOError: another one holds it."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
