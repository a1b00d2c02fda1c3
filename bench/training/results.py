"""Result files of training runs: figures beside what they must reach, and curves.

with TrainingRun("languages", command, options) as run:
    run.add_figure("accuracy on held-out lines", 0.97, at_least=0.95)
    run.add_curves(trainer.state.log_history)
"""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

from bench.engine.environment import RESULTS, describe, now, others_seconds
from bench.engine.results import ResultFile

PACKAGES = ("accelerate", "datasets")
"""Packages that training depends on besides those that every result file names."""
NOT_CURVES = ("runtime", "per_second", "total_flos", "epoch", "step", "model_preparation_time")
"""Ends of the names in a log that are no curve of training."""


def parser(description: str | None, texts: str | None = None) -> argparse.ArgumentParser:
    """Options of every run.

    Args:
        description: for `--help`.
        texts: what `--texts` must name; None: the run has texts of its own.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if texts is not None:
        made.add_argument("--texts", type=Path, required=True, metavar="DIR", help=texts)
    made.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    made.add_argument("--tiny", action="store_true", help="dry run of a few steps, whose figures mean nothing")
    made.add_argument("--output", type=Path, default=RESULTS, help="folder of the result file")
    return made


def command_line(module: str, arguments: Sequence[str] | None = None) -> str:
    """The command that was given: `module` is `__spec__.name`, `arguments` are those of `main`, None: sys.argv's."""
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if arguments is None else arguments)])


class TrainingRun:
    """One run, whose file `training-<name>-<date>.json` is written when its block ends without an error.

    Args:
        name: of the run: "languages".
        command: that gives the same figures again, for `docs/benchmarks.md`.
        options: of `parser`: `tiny`, `output`.
    """

    def __init__(self, name: str, command: str, options: argparse.Namespace) -> None:
        about = describe("cpu") | {"suite": f"training-{name}", "tiny": options.tiny, "command": command}
        about["versions"] |= {package: _version(package) for package in PACKAGES}
        path = options.output / f"training-{name}-{about['date'][:10]}.json"
        self.file = ResultFile.new(path, about | {"figures": {}, "curves": {}})
        self.file.begin({"date": now()})

    def __enter__(self) -> "TrainingRun":
        self._begun, self._others = monotonic(), others_seconds()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None:
            return
        run = self.file.content["runs"][-1]
        run["seconds"] = round(monotonic() - self._begun, 1)
        if self._others is not None:
            busy = ((others_seconds() or self._others) - self._others) / max(run["seconds"], 0.1)
            run["others_busy_cores"] = round(busy, 2)
        self.file.write()
        for name, figure in self.file.content["figures"].items():
            print(f"{name}: {shown(figure['value'], figure['unit'])}")
        print(self.file.path)

    def add_figure(
        self, name: str, value: float, unit: str = "", *, at_least: float | None = None, at_most: float | None = None
    ) -> None:
        """Add a line to the run's table.

        Args:
            name: what was measured: "accuracy on held-out lines".
            value: the figure.
            unit: "s", "MiB", "%", or nothing. "%": the value is a share, 0.97 is shown as 97.0 %.
            at_least, at_most: the bar, if there is one.

        Raises:
            ValueError: the value is not finite.
        """
        if not math.isfinite(value):
            raise ValueError(f"value of {name!r} must be finite, got {value}")
        figure = {"value": value, "unit": unit, "at_least": at_least, "at_most": at_most}
        self.file.content["figures"][name] = figure

    def add_curve(self, quantity: str, points: Sequence[Sequence[float]], model: str = "") -> None:
        """Add a curve to the plots.

        Args:
            quantity: what is plotted, by which curves share a panel: "loss", "accuracy".
            points: (step, value) pairs; a few hundred at most.
            model: which of several models it is.
        """
        name = f"{quantity}, {model}" if model else quantity
        self.file.content["curves"][name] = [[int(step), round(float(value), 6)] for step, value in points]

    def add_curves(self, log_history: Sequence[dict[str, Any]], model: str = "", only: Sequence[str] = ()) -> None:
        """Add the curves of a Trainer's `state.log_history`.

        Args:
            log_history: a dict for each time that something was logged.
            model: which of several models it is.
            only: names to take, without "eval_" in front: ("loss", "accuracy"). Nothing: all that are curves. The
                loss of the evaluation is "loss on held-out text".
        """
        curves: dict[str, list[tuple[int, float]]] = {}
        for entry in log_history:
            for key, value in entry.items():
                name = key.removeprefix("eval_")
                wanted = name in only if only else not name.endswith(NOT_CURVES) and not name.startswith("train_")
                if wanted and isinstance(value, int | float):
                    quantity = "loss on held-out text" if key == "eval_loss" else name
                    curves.setdefault(quantity, []).append((entry["step"], value))
        for quantity, points in curves.items():
            if len(points) > 1:
                self.add_curve(quantity, points, model)


def shown(value: float, unit: str) -> str:
    """A figure as it is printed."""
    if unit == "%":
        return f"{100 * value:.1f} %"
    digits = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{digits} {unit}".rstrip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
