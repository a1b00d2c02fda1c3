"""The output of a long job: it grows shard by shard, outlives a killed run, and is put in place as a whole.

with open_output("vectors.npy", Npy(), job, restart=False, say=print) as output:
    for results in shards(skip=output.records):
        output.add(results)

A file grows in the folder OUT.partial, whose manifest says how much of it counts. What is behind that, the shard that
was under way, is written anew. The last step renames the file to OUT and removes the folder.
"""

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .atomic import (
    ACCEPTED_OUT,
    STANDARD_STREAM,
    closing,
    keep_owner_and_mode,
    naming,
    remove_abandoned,
    replaceable,
    whole_file,
)
from .errors import InputError
from .formats import Format, JsonLines, Result
from .partial import COMPLETE, DATA, drop_manifest, hold, read_manifest, sync_folder, write_manifest

ROOM = "expected room for the results"
SECONDS_UNKEPT = 1.0
"""Shards that are done within so many seconds are written to the disk together."""


class Output:
    """An output that grows; made by `open_output`.

    Attributes:
        records: number of results that it holds.
        shards: number of calls of `add` that brought them.
        notes: sums of what was noted with them.
        settings: what the first run settled and the later ones keep; empty before `begin`.
        placed: True if a killed run had put everything in place, so that nothing is left to do.
    """

    def __init__(self, out: str, form: Format, file: BinaryIO) -> None:
        self.out, self.form, self.file = out, form, file
        self.records, self.shards, self.size = 0, 0, form.reserved
        self.notes: Counter[str] = Counter()
        self.settings: dict[str, Any] = {}
        self.placed = False

    def begin(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settle what is not to change between the runs of a job, such as a dtype that was chosen automatically.

        Returns:
            What the first run settled.
        """
        self.settings = self.settings or dict(settings)
        return self.settings

    def add(self, results: Sequence[Result], notes: Mapping[str, int] | None = None) -> None:
        """Add the results of a shard.

        Args:
            results: of the next records, in order.
            notes: numbers to be summed up.

        Raises:
            InputError: the disk is full, or the format can't hold a result.
        """
        with naming(f"--out {self.out!r}", ROOM):
            self.file.seek(self.size)
            for piece in self.form.encode(results):
                self.file.write(piece)
            self.file.flush()
        self.size = self.file.tell()
        self.records += len(results)
        self.shards += 1
        self.notes.update(notes or {})

    def complete(self, target: BinaryIO) -> None:
        """Make the complete file; see `Format.complete`."""
        with naming(f"--out {self.out!r}", ROOM):
            self.form.complete(self.file, self.records, self.size, target)
            target.flush()


class ResumableOutput(Output):
    """An output of which a killed run leaves what was kept.

    Args:
        out: path of the output.
        form: its format.
        file: the file that grows, in the folder.
        folder: the folder, which this run holds.
        job: what the results depend on.

    Attributes:
        kept: number of results that no end of the process loses.
    """

    def __init__(self, out: str, form: Format, file: BinaryIO, folder: Path, job: Mapping[str, Any]) -> None:
        super().__init__(out, form, file)
        self.folder, self.job, self.kept = folder, job, 0
        self._kept_at = time.monotonic()

    def resume(self, manifest: Mapping[str, Any]) -> None:
        """Go on where another run stopped."""
        self.records, self.shards, self.size = (manifest[name] for name in ("records", "shards", "bytes"))
        self.settings, self.notes = manifest["settings"], Counter(manifest["notes"])
        self.kept = self.records

    def begin(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        super().begin(settings)
        self.keep()
        return self.settings

    def add(self, results: Sequence[Result], notes: Mapping[str, int] | None = None) -> None:
        super().add(results, notes)
        if time.monotonic() - self._kept_at >= SECONDS_UNKEPT:
            self.keep()

    def keep(self, **more: Any) -> None:
        """Keep all results that were added."""
        counts = {"records": self.records, "shards": self.shards, "bytes": self.size, "notes": self.notes}
        with naming(f"--out {self.out!r}", ROOM):
            os.fsync(self.file.fileno())
            write_manifest(self.folder, {"job": self.job, "settings": self.settings, **counts, **more})
        self.kept, self._kept_at = self.records, time.monotonic()

    def put_in_place(self, target: Path, replaced: os.stat_result | None) -> None:
        """Make the complete file, and rename it to `target`, whose status is `replaced` if it exists."""
        path = self.folder / (COMPLETE if self.form.rewrites else DATA)
        with naming(f"--out {self.out!r}", ROOM):
            self.file.truncate(self.size)
            file = path.open("wb") if self.form.rewrites else self.file
        with closing(file):
            self.complete(file)
            with naming(f"--out {self.out!r}", ROOM):
                os.fsync(file.fileno())
            if replaced is not None:
                keep_owner_and_mode(path, replaced)
            self.keep(placed=_mark(os.fstat(file.fileno())))
        with naming(f"--out {self.out!r}", ACCEPTED_OUT):
            os.replace(path, target)
            sync_folder(target.parent)


@contextmanager
def open_output(
    out: str, form: Format, job: Mapping[str, Any] | None, restart: bool, say: Callable[[str], None]
) -> Iterator[Output]:
    """Open the output of a job, which is put in place as a whole at the end.

    If anything is raised, what `add` has taken is kept, and the same call goes on behind it; likewise after a kill or a
    power failure.

    Args:
        out: path of a file, or "-" for stdout, to which everything is copied at the end.
        form: format of the results.
        job: what the results depend on, values of JSON by the names that errors give them; None: nothing is kept.
        restart: drop what other runs have left.
        say: takes a line about what is gone on with, or kept.

    Raises:
        InputError: no such file can be written, another run is writing it, or what is kept belongs to another job.
            Known at once, before any work.
    """
    if job is None or out == STANDARD_STREAM:
        with whole_file(out, terminal=isinstance(form, JsonLines)) as file, _growing(out, form, file) as growing:
            output = Output(out, form, growing)
            yield output
            output.complete(file)
        return
    target = Path(os.path.realpath(out))
    with naming(f"--out {out!r}", ACCEPTED_OUT):
        replaced = replaceable(target)
        remove_abandoned(target.parent)
    with hold(out, target) as folder:
        if restart:
            drop_manifest(folder)
        with _resumable(out, form, folder, target, json.loads(json.dumps(job)), say) as resumable:
            yield resumable
            if not resumable.placed:
                resumable.put_in_place(target, replaced)
        drop_manifest(folder)


@contextmanager
def _growing(out: str, form: Format, file: BinaryIO) -> Iterator[BinaryIO]:
    """The file that grows: the output itself, or one without a name if the format rewrites."""
    if not form.rewrites:
        yield file
        return
    with ExitStack() as stack:
        with naming(f"--out {out!r}", ROOM):
            other = stack.enter_context(tempfile.TemporaryFile(dir=Path(os.path.realpath(out)).parent))
        yield other


@contextmanager
def _resumable(
    out: str, form: Format, folder: Path, target: Path, job: Mapping[str, Any], say: Callable[[str], None]
) -> Iterator[ResumableOutput]:
    """Open what grows in a folder, and say at the end of a run that stops what is kept."""
    manifest = read_manifest(out, folder, job)
    placed = manifest is not None and _is_placed(manifest, target)
    if manifest is not None and not placed and not _holds(folder / DATA, manifest["bytes"]):
        manifest = None
    with naming(f"--out {out!r}", ACCEPTED_OUT):
        file = (folder / DATA).open("r+b" if manifest and not placed else "w+b")
    with closing(file):
        output = ResumableOutput(out, form, file, folder, job)
        if manifest is not None:
            output.resume(manifest)
            output.placed = placed
        if placed:
            say(f"{out} is complete already")
        elif output.kept:
            say(f"Going on behind the {output.kept:,} records in {folder}")
        try:
            yield output
        except BaseException as error:
            with suppress(InputError, ValueError):  # a full disk, on which less is kept; a file that was complete
                output.keep()
            if not output.kept:
                drop_manifest(folder)
                raise
            kept = f"{output.kept:,} records are kept in {folder}"
            if isinstance(error, InputError):
                raise InputError(f"{error}; {kept}") from error
            say(f"Stopped: {kept}; the same command goes on behind them")
            raise


def _holds(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size >= size


def _mark(status: os.stat_result) -> list[int]:
    """What a file keeps when it is renamed, and no other file has."""
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


def _is_placed(manifest: Mapping[str, Any], target: Path) -> bool:
    """True if the run that wrote the manifest was ended between its last two steps."""
    try:
        return "placed" in manifest and _mark(target.stat()) == manifest["placed"]
    except OSError:
        return False
