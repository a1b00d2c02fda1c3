"""Result files, written whole after every case: an interrupted run keeps what it has."""

import contextlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAY_DIFFER = ("date", "commit", "dirty", "driver")
"""Fields in which runs of one file may differ: it is the digest of the sources that says what was measured."""


@dataclass
class Measured:
    """Results of a case: figures; providers that raised or were wrong, and why; providers that cannot run, and why."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)


class ResultFile:
    """Results of one part of the suite on one device, as they are written to `path`."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.content = content

    @classmethod
    def new(cls, path: Path, about: dict[str, Any]) -> "ResultFile":
        """File without a case."""
        lists: dict[str, list[Any]] = {name: [] for name in ("runs", "done", "left_out", "failed", "skipped", "rows")}
        return cls(path, about | {"under_way": None} | lists)

    @classmethod
    def newest(cls, folder: Path, prefix: str) -> "ResultFile | None":
        """The file of the latest date whose name begins so, or None."""
        paths = sorted(folder.glob(f"{prefix}-????-??-??.json"))
        return cls(paths[-1], json.loads(paths[-1].read_text(encoding="utf-8"))) if paths else None

    def differences(self, about: dict[str, Any]) -> list[str]:
        """Fields in which a run of `about` differs: none, if it can go on with this file."""
        return [key for key, value in about.items() if key not in MAY_DIFFER and self.content.get(key) != value]

    @property
    def is_whole(self) -> bool:
        """True if no case is left."""
        return not self.content["left_out"] and not self.content["under_way"]

    def begin(self, run: dict[str, Any]) -> None:
        """Append a run; its rows refer to it by its index. A case that ended the run before has failed."""
        self.content["runs"].append(run)
        if self.content["under_way"]:
            name, text = self.content["under_way"], "hung, or ended the process"
            self.add(name, Measured(failed=[{"case": name, "provider": "all", "message": text}]))
        self.content["under_way"], self.content["left_out"] = None, []

    def add(self, name: str, measured: Measured) -> None:
        """Append the results of a case."""
        run = len(self.content["runs"]) - 1
        self.content["rows"] += [row | {"run": run} for row in measured.rows]
        self.content["failed"] += measured.failed
        self.content["skipped"] += measured.skipped
        self.content["done"].append(name)

    def write(self) -> None:
        """Replace the file in one step: there is always a whole one."""
        write_whole(self.path, dump(self.content))


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step, so that a failure leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def carry(source: Path, target: Path) -> None:
    """Copy the result files of a folder, which may be read-only, into another one that lacks them.

    Raises:
        FileNotFoundError: the folder holds none.
    """
    if not any(source.glob("*.json")):
        raise FileNotFoundError(f"--resume must name a folder of result files, got {source}, which holds none")
    target.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.json"):
        if not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)


def dump(content: dict[str, Any]) -> str:
    """Compact JSON: one line for a field, or for an element of a list."""
    lines = []
    for key, value in content.items():
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(json.dumps(element) for element in value) + "\n ]"
        else:
            text = json.dumps(value)
        lines.append(f"{json.dumps(key)}: {text}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"
