"""The folder of an unfinished output: beside it, held by one run at a time, gone when there is nothing to go on with.

with hold("vectors.npy", Path("/data/vectors.npy")) as folder:  # /data/vectors.npy.partial
    write_manifest(folder, {"records": 8192})
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .atomic import ACCEPTED_OUT, lock, naming
from .errors import InputError

ENDING = ".partial"
LOCK, MANIFEST, NEW_MANIFEST, DATA, COMPLETE = NAMES = ("lock", "manifest.json", "manifest.new", "data", "complete")
VERSION = 1
"""Of the folder's content. What another version left is not gone on with."""


@contextmanager
def hold(out: str, target: Path) -> Iterator[Path]:
    """Create the folder of an output, or take over that of a run that has ended.

    It is removed at the end, unless it holds a manifest.

    Args:
        out: name of the output in messages.
        target: its path, without symbolic links in it.

    Raises:
        InputError: another run holds it, it is no such folder, or none can be written.
    """
    folder = target.with_name(target.name + ENDING)
    with naming(f"--out {out!r}", ACCEPTED_OUT):
        descriptor = None
        while descriptor is None:
            descriptor = _take(out, folder)
    try:
        yield folder
    finally:
        with suppress(OSError):
            if not (folder / MANIFEST).exists():
                _remove(folder)
        os.close(descriptor)


def _take(out: str, folder: Path) -> int | None:
    """The locked file of a folder; None if a run that is ending removed it at this moment."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    with suppress(FileNotFoundError):
        foreign = sorted({entry.name for entry in os.scandir(folder)} - {*NAMES})
        if foreign:
            raise InputError(f"--out {out!r}: needs the folder {folder}, which holds {foreign[0]!r}; {ACCEPTED_OUT}")
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                lock(descriptor)
            except BlockingIOError as error:
                raise InputError(f"--out {out!r}: another run is writing it; expected one at a time") from error
            except OSError:
                pass  # a file system without locks
            if os.path.samestat(os.fstat(descriptor), os.stat(folder / LOCK)):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    return None


def _remove(folder: Path) -> None:
    """Remove the files of an output; the lock last, behind which another run may begin at once."""
    for name in reversed(NAMES):
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()


def read_manifest(out: str, folder: Path, job: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the last run left; None if it left nothing.

    Raises:
        InputError: it is of another job, or of another version.
    """
    wayout = f"expected the same command again, --restart, or that {folder} is deleted"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, other = manifest["version"], manifest["job"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"--out {out!r}: {folder / MANIFEST} can't be read; {wayout}") from error
    if version != VERSION:
        raise InputError(f"--out {out!r}: {folder} was written by another version; {wayout}")
    for name in [*job, *other]:
        if job.get(name) != other.get(name):
            was, now = (f"{found.get(name)!r:.200}" for found in (other, job))
            raise InputError(
                f"--out {out!r}: {folder} holds unfinished results of another job ({name} was {was}, is {now}); "
                f"{wayout}"
            )
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest in one step that outlives a power failure."""
    with open(folder / NEW_MANIFEST, "w", encoding="utf-8") as file:
        json.dump({"version": VERSION, **manifest}, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(folder / NEW_MANIFEST, folder / MANIFEST)
    sync_folder(folder)


def drop_manifest(folder: Path) -> None:
    """Say that there is nothing to go on with."""
    (folder / MANIFEST).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
