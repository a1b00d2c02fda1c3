"""The GPU suite's result file: written whole after every case, so that an interrupted run keeps what it has."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from .gpu_cases import Measured


class ResultFile:
    """One part's results on one device.

    Attributes:
        path: where it is written.
        content: what is written.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.content = content

    @classmethod
    def new(cls, path: Path, about: dict[str, Any]) -> "ResultFile":
        """Without a case."""
        lists: dict[str, list[Any]] = {name: [] for name in ("runs", "done", "left_out", "failed", "skipped", "rows")}
        return cls(path, about | lists)

    @classmethod
    def read(cls, path: Path) -> "ResultFile":
        return cls(path, json.loads(path.read_text(encoding="utf-8")))

    def continues(self, about: dict[str, Any]) -> bool:
        """Whether it is of the same code, without changes, on the same device, and has cases left."""
        same = all(self.content.get(key) == value for key, value in about.items() if key != "date")
        return same and not about["dirty"] and bool(self.content["left_out"])

    def begin(self, run: dict[str, Any]) -> None:
        """A run; its rows name it by its place."""
        self.content["runs"].append(run)
        self.content["left_out"] = []

    def add(self, name: str, measured: Measured) -> None:
        """A case is done."""
        run = len(self.content["runs"]) - 1
        self.content["rows"] += [row | {"run": run} for row in measured.rows]
        self.content["failed"] += measured.failed
        self.content["skipped"] += measured.skipped
        self.content["done"].append(name)

    def write(self) -> None:
        """In one step: there is always a whole file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(dump(self.content))
            os.chmod(name, 0o644)
            os.replace(name, self.path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise


def dump(content: dict[str, Any]) -> str:
    """Compact JSON, a field or an element of a list a line."""
    lines = []
    for key, value in content.items():
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(json.dumps(element) for element in value) + "\n ]"
        else:
            text = json.dumps(value)
        lines.append(f"{json.dumps(key)}: {text}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def newest(folder: Path, part: str, device: str) -> Path | None:
    """The newest file of a part and a device's name."""
    paths = sorted(folder.glob(f"gpu-{part}-{device}-*.json"))
    return paths[-1] if paths else None
