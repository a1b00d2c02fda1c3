"""Figures of result files, found by their fields."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.engine.registry import CPU_PARTS, OURS

PARTS = (*CPU_PARTS, "kernels", "models")
PACKAGES = ("torch", "transformers", "sentence-transformers", "torchao", "openvino", "onnxruntime")
TRUSTED = 0.2
"""Cores that other processes may keep busy while a CPU is measured."""
BASE_LAYERS, LARGE_LAYERS = 12, 24


class Rows:
    """Rows of a result file."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self.rows = list(rows)

    def find(self, **fields: Any) -> dict[str, Any]:
        """The latest row with these fields.

        Raises:
            KeyError: there is none.
        """
        found = [row for row in self.rows if all(row.get(key) == value for key, value in fields.items())]
        if not found:
            raise KeyError(str(fields))
        return found[-1]

    def kernel(
        self, operation: str, shape: str, passes: str, dropout_p: float = 0.0, provider: str = OURS
    ) -> dict[str, Any]:
        return self.find(operation=operation, shape=shape, passes=passes, dropout_p=dropout_p, provider=provider)

    def model(
        self, operation: str, shape: str, layers: int = BASE_LAYERS, provider: str = "padding-free"
    ) -> dict[str, Any]:
        return self.find(operation=operation, shape=shape, layers=layers, provider=provider, dtype="bfloat16")

    def providers(self) -> list[str]:
        """Names of the providers in order of appearance."""
        return list(dict.fromkeys(row["provider"] for row in self.rows))


@dataclass(frozen=True)
class Result:
    """A result file."""

    path: Path
    content: dict[str, Any]

    @property
    def rows(self) -> Rows:
        return Rows(self.content["rows"])

    def describe(self, folder: str) -> str:
        """Source of the figures, and what is missing, in a paragraph; `folder` leads from the page to the file."""
        content, run = self.content, self.content["runs"][-1]
        versions, reached = content["versions"], run.get("ceilings")
        commit = f"`{content['commit'][:12]}`" if content["commit"] else "unknown"
        doors = {
            "cpu": "run",
            "families": "run families",
            "serving": "run serving",
            "texts": "tools.texts",
            "zero-shot": "tools.zero_shot",
            "precision": "tools.precision",
        }
        command = content.get("command", f"python -m bench.{doors.get(content['suite'], 'gpu ' + content['suite'])}")
        machine = [content["processor"]]
        if content["device"] == "cpu":
            machine += [f"{content['cores']} cores", f"{content['threads']} threads"]
            machine += ["float32"] if content["suite"] in ("cpu", "families") else []
        else:
            machine += [f"driver {content['driver']}", f"triton {versions['triton']}"]
        packages = ", ".join(f"{name} {versions[name]}" for name in PACKAGES if versions.get(name))
        name = self.path.name
        text = (
            f"Measured on {content['date'][:10]} by `{command}` ([{name}]({folder}/{name})): "
            f"{', '.join(machine)}, {packages}, commit {commit}"
            f"{', changed since' if content['dirty'] else ''}."
        )
        if reached:
            text += (
                f" In the same run PyTorch reached {reached['matrix_tflops']:,.3g} TFLOP/s in a matrix product and "
                f"{reached['copy_gbps']:,.0f} GB/s in a copy."
            )
        if run.get("others_busy_cores", 0) > TRUSTED:
            text += f" Other processes kept {run['others_busy_cores']:.1f} cores busy: its times are preliminary."
        lacks = [f"{len(content[key])} {what}" for key, what in (("left_out", "cases left out"), ("failed", "failures"))
                 if content[key]]  # fmt: skip
        return text + (f" There were {' and '.join(lacks)}." if lacks else "")


def newest(folder: Path, part: str) -> Result | None:
    """The newest result of a part, dry runs excluded, or None."""
    pattern = f"{part}-*.json" if part in CPU_PARTS else f"gpu-{part}-*.json"
    found = [Result(path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob(pattern))]
    device = "cpu" if part in CPU_PARTS else "cuda"
    whole = [one for one in found if one.content.get("rows") and not one.content["tiny"]]
    measured = [one for one in whole if one.content["device"] == device]
    return max(measured, key=lambda one: one.content["date"], default=None)
