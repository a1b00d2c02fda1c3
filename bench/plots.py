"""Plots of the GPU suite's newest results: `python -m bench.plots`; needs matplotlib (the extra `bench`)."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import work
from .gpu_shapes import DROPOUT_P
from .gpu_tables import LENGTHS, ROW_OPERATIONS, Rows, newest
from .run import RESULTS

Line = tuple[str, list[float], list[float]]


def _providers(rows: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["provider"] for row in rows))


def attention_lines(rows: Rows, passes: str) -> list[Line]:
    """TFLOP/s by length at 64 k tokens, without dropout."""
    lines = []
    for name in _providers(rows.rows):
        points = []
        for length in LENGTHS:
            try:
                row = rows.kernel("attention", f"{length}-64k", passes, provider=name)
            except KeyError:
                continue
            points.append((float(length), float(row["tflops"])))
        if points:
            lines.append((name, [x for x, _ in points], [y for _, y in points]))
    return lines


def copy_bars(rows: Rows) -> list[tuple[str, list[str], list[float]]]:
    """Share of the copy rate, in percent, of the row operations at 64 k tokens: provider, labels, values."""
    bars = []
    for name in _providers(rows.rows):
        labels, values = [], []
        for operation in ROW_OPERATIONS:
            for passes, p in ((work.FORWARD, 0.0), (work.BACKWARD, 0.0), (work.BACKWARD, DROPOUT_P)):
                try:
                    row = rows.kernel(operation, "pairs-64k", passes, p, name)
                except KeyError:
                    continue
                labels.append(f"{operation}\n{passes}{', dropout' if p else ''}")
                values.append(100 * float(row["share_of_copy_rate"]))
        if labels:
            bars.append((name, labels, values))
    return bars


def model_bars(rows: Rows) -> list[tuple[str, list[str], list[float]]]:
    """Real tokens a second, in millions, of inference in bfloat16: provider, labels, values."""
    bars = []
    chosen = [row for row in rows.rows if row["operation"] == "inference" and row["dtype"] == "bfloat16"]
    for name in _providers(chosen):
        own = [row for row in chosen if row["provider"] == name]
        labels = [f"{row['layers']} layers\n{row['shape']}" for row in own]
        bars.append((name, labels, [row["real_tokens_per_s"] / 1e6 for row in own]))
    return bars


def _draw_bars(axes: Any, bars: Sequence[tuple[str, list[str], list[float]]]) -> None:
    labels = list(dict.fromkeys(label for _, own, _ in bars for label in own))
    width = 0.8 / max(len(bars), 1)
    for place, (name, own, values) in enumerate(bars):
        axes.bar([labels.index(label) + place * width for label in own], values, width, label=name)
    axes.set_xticks([index + 0.4 - width / 2 for index in range(len(labels))], labels, fontsize=7)
    axes.legend(fontsize=7)


def draw(folder: Path, output: Path) -> list[Path]:
    """Draw what has been measured; the files that were written."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    written = []

    def save(figure: Any, name: str, result: dict[str, Any]) -> None:
        figure.suptitle(f"{result['processor']}, {result['date'][:10]}", fontsize=9)
        figure.tight_layout()
        path = output / name
        figure.savefig(path, dpi=120, metadata={"Software": None})
        pyplot.close(figure)
        written.append(path)

    kernels, models = newest(folder, "kernels"), newest(folder, "models")
    if kernels is not None:
        rows = Rows(kernels[1]["rows"])
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 4))
        for one, passes in zip(axes, (work.FORWARD, work.BACKWARD), strict=True):
            for name, lengths, tflops in attention_lines(rows, passes):
                one.plot(lengths, tflops, marker="o", label=name)
            one.set_xscale("log", base=2)
            one.set(title=f"attention, {passes}", xlabel="length", ylabel="TFLOP/s of real tokens")
            if one.lines:
                one.legend(fontsize=7)
        save(figure, "gpu-attention.png", kernels[1])
        figure, one = pyplot.subplots(figsize=(11, 4))
        _draw_bars(one, copy_bars(rows))
        one.set(ylabel="% of the measured copy rate")
        save(figure, "gpu-rows.png", kernels[1])
    if models is not None:
        figure, one = pyplot.subplots(figsize=(11, 4))
        _draw_bars(one, model_bars(Rows(models[1]["rows"])))
        one.set(ylabel="million real tokens a second")
        save(figure, "gpu-inference.png", models[1])
    return written


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--output", type=Path, help="folder of the plots; None: that of the results")
    options = parser.parse_args(argv)
    written = draw(options.results, options.output or options.results)
    print("\n".join(map(str, written)) or "nothing to draw: no result of the GPU suite", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
