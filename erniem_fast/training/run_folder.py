"""The folders of a run: OUT.partial while it trains, OUT as a whole at the end.

with RunFolder.open("out", {"--epochs": 3}, restart=False, say=print) as run:
    if not run.complete:
        train_in(run.work)
        save_model(run.result)
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..files.atomic import lock, naming
from ..files.errors import InputError

ACCEPTED = "expected an empty folder, or the name of a new one in a folder that exists"
RUN, NEW = "run.json", "run.new"
"""What a run was told, in both folders; and before it is whole."""
LOCK, CHECKPOINTS, CURVE, RESULT = "lock", "checkpoints", "metrics.jsonl", "model"


class RunFolder:
    """The folders of one run; made by `open`.

    Attributes:
        work: what is kept while it trains.
        target: where the model is put at the end.
        complete: True if the model of this very run is there.
        settled: what the first run of the same command settled.
    """

    def __init__(self, work: Path, target: Path, complete: bool, run: Mapping[str, Any], settled: Mapping[str, Any]):
        self.work, self.target, self.complete = work, target, complete
        self._run, self.settled = run, settled

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.work / CHECKPOINTS

    @property
    def curve(self) -> Path:
        """File of every step's figures."""
        return self.work / CURVE

    @property
    def result(self) -> Path:
        """Folder to fill with the model."""
        return self.work / RESULT

    def settle(self, **settled: Any) -> None:
        """Keep what the first run settles for those that go on."""
        self.settled = settled
        _write(self.work / RUN, {**self._run, "settled": settled})

    def put_in_place(self) -> None:
        """Rename the filled folder to its target, and remove the rest."""
        shutil.copyfile(self.curve, self.result / CURVE)
        _write(self.result / RUN, {**self._run, "settled": self.settled})
        old = self.work / "replaced"
        if self.target.exists():
            self.target.rename(old)
        self.result.rename(self.target)
        _remove(self.work)
        self.complete = True

    @classmethod
    @contextmanager
    def open(
        cls, out: str, asked: Mapping[str, Any], restart: bool, say: Callable[[str], None], leads: bool = True
    ) -> Iterator["RunFolder"]:
        """Take the folders of a run, new ones or those of a run that was stopped.

        Args:
            out: path of the model's folder.
            asked: what the result depends on, values of JSON by the names that errors give them.
            restart: drop what another run has left, and replace its model at the end.
            say: takes a line about what is gone on with.
            leads: False: another process of this run sees to the folders, and this one only looks.

        Raises:
            InputError: OUT or OUT.partial holds other files, or a run with other settings; or another run is under way.
        """
        target = Path(os.path.realpath(out))
        if not target.name:
            raise InputError(f"--out {out!r}: is the root of the file system; {ACCEPTED}")
        work = target.with_name(target.name + ".partial")
        run = {"version": 1, "asked": json.loads(json.dumps(asked))}
        with naming(f"--out {out!r}", ACCEPTED):
            complete = _check_target(out, target, run, restart)
            if complete:
                say(f"{out} is complete already")
            if complete or not leads:
                settled = _read(target / RUN).get("settled", {}) if complete else {}
                yield cls(work, target, complete, run, settled)
                return
            _check_work(out, work)
            descriptor = _take(out, work)
        try:
            if restart:
                _clear(work)
            settled = _settled(out, work, run)
            if settled is None:
                _clear(work)
                _write(work / RUN, {**run, "settled": {}})
            shutil.rmtree(work / RESULT, ignore_errors=True)
            yield cls(work, target, False, run, settled or {})
        finally:
            os.close(descriptor)
            if work.exists() and not any((work / CHECKPOINTS).glob("*")) and not any(work.glob("failed-*")):
                _remove(work)  # nothing was trained yet


def _check_target(out: str, target: Path, run: Mapping[str, Any], restart: bool) -> bool:
    """True if the model is there already."""
    if not target.exists() or not any(os.scandir(target)):
        return False
    other = _read(target / RUN)
    if other is None:
        raise InputError(f"--out {out!r}: holds files; {ACCEPTED}")
    if restart:
        return False
    if difference := _difference(other, run):
        raise InputError(
            f"--out {out!r}: holds the model of another run ({difference}); expected another folder, or --restart"
        )
    return True


def _check_work(out: str, work: Path) -> None:
    """Check that what the working folder holds is a run's."""
    if not work.exists() or _read(work / RUN) is not None:
        return
    foreign = sorted(set(os.listdir(work)) - {LOCK, NEW})
    if foreign:
        raise InputError(f"--out {out!r}: needs the folder {work}, which holds {foreign[0]!r}; {ACCEPTED}")


def _settled(out: str, work: Path, run: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the run that was stopped had settled; None if there is none."""
    other = _read(work / RUN)
    if other is None:
        return None
    if difference := _difference(other, run):
        raise InputError(
            f"--out {out!r}: {work} holds an unfinished run with other settings ({difference}); expected the same "
            f"command again, --restart, or another folder"
        )
    return dict(other.get("settled", {}))


def _difference(other: Mapping[str, Any], run: Mapping[str, Any]) -> str | None:
    """The first setting in which two runs differ."""
    was, now = other.get("asked", {}), run["asked"]
    for name in [*now, *was]:
        if was.get(name) != now.get(name):
            return f"{name} was {was.get(name)!r:.200}, is {now.get(name)!r:.200}"
    return None


def _read(path: Path) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    new = path.with_name(NEW)
    new.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(new, path)


def _take(out: str, work: Path) -> int:
    """The locked file of a working folder."""
    work.mkdir(exist_ok=True)
    descriptor = os.open(work / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        lock(descriptor)
    except BlockingIOError as error:
        os.close(descriptor)
        raise InputError(f"--out {out!r}: another run is writing it; expected one at a time") from error
    except OSError:
        pass  # a file system without locks
    return descriptor


def _remove(work: Path) -> None:
    """Remove a working folder, as far as that can be done."""
    with suppress(OSError):
        _clear(work)
    shutil.rmtree(work, ignore_errors=True)


def _clear(work: Path) -> None:
    """Remove all but the lock, and last what tells that the rest is a run's: this may be killed."""
    for entry in sorted(os.scandir(work), key=lambda entry: entry.name == RUN):
        if entry.name == LOCK:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            with suppress(FileNotFoundError):
                os.unlink(entry.path)
