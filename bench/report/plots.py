"""Plots of the GPU suite's newest results; needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.engine.shapes import BACKWARD, FORWARD
from bench.ops.inputs import DROPOUT_P

from .goals import MIX, ROW_OPERATIONS
from .rows import Result, Rows, newest

Line = tuple[str, list[float], list[float]]
Bars = tuple[str, list[str], list[float]]
LENGTHS = (16, 32, 64, 128, 256, 512)
ROW_PASSES = ((FORWARD, 0.0), (BACKWARD, 0.0), (BACKWARD, DROPOUT_P))


def attention_lines(rows: Rows, passes: str) -> list[Line]:
    """TFLOP/s by length at 64 k tokens, without dropout: provider, lengths, values."""
    shapes = {f"{length}-64k": float(length) for length in LENGTHS}
    wanted = {"operation": "attention", "passes": passes, "dropout_p": 0.0}
    chosen = Rows(row for row in rows.rows if row["shape"] in shapes and wanted.items() <= row.items())
    lines = []
    for name in chosen.providers():
        points = sorted((shapes[row["shape"]], row["tflops"]) for row in chosen.rows if row["provider"] == name)
        lines.append((name, [x for x, _ in points], [y for _, y in points]))
    return lines


def copy_bars(rows: Rows) -> list[Bars]:
    """Percent of the copy rate of the row operations at 64 k tokens: provider, labels, values."""
    bars = []
    for name in rows.providers():
        own = [
            (f"{row['operation']}\n{row['passes']}{', dropout' if row['dropout_p'] else ''}", row["share_of_copy_rate"])
            for row in rows.rows
            if row["provider"] == name and row["operation"] in ROW_OPERATIONS and row["shape"] == MIX
            if (row["passes"], row["dropout_p"]) in ROW_PASSES
        ]
        if own:
            bars.append((name, [label for label, _ in own], [100 * share for _, share in own]))
    return bars


def model_bars(rows: Rows) -> list[Bars]:
    """Millions of real tokens a second of inference in bfloat16: provider, labels, values."""
    bars = []
    chosen = Rows(row for row in rows.rows if row["operation"] == "inference" and row["dtype"] == "bfloat16")
    for name in chosen.providers():
        own = [row for row in chosen.rows if row["provider"] == name]
        labels = [f"{row['layers']} layers\n{row['shape']}" for row in own]
        bars.append((name, labels, [row["real_tokens_per_s"] / 1e6 for row in own]))
    return bars


def _draw_bars(axes: Any, bars: Sequence[Bars]) -> None:
    labels = list(dict.fromkeys(label for _, own, _ in bars for label in own))
    width = 0.8 / max(len(bars), 1)
    for index, (name, own, values) in enumerate(bars):
        axes.bar([labels.index(label) + index * width for label in own], values, width, label=name)
    axes.set_xticks([index + 0.4 - width / 2 for index in range(len(labels))], labels, fontsize=7)
    axes.legend(fontsize=7)


def draw(results: Path, output: Path) -> list[Path]:
    """Draw what has been measured; the files that were written."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    written = []

    def save(figure: Any, name: str, result: Result) -> None:
        figure.suptitle(f"{result.content['processor']}, {result.content['date'][:10]}", fontsize=9)
        figure.tight_layout()
        figure.savefig(output / name, dpi=120, metadata={"Software": None})
        pyplot.close(figure)
        written.append(output / name)

    kernels, models = newest(results, "kernels"), newest(results, "models")
    if kernels is not None:
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 4))
        for one, passes in zip(axes, (FORWARD, BACKWARD), strict=True):
            for name, lengths, tflops in attention_lines(kernels.rows, passes):
                one.plot(lengths, tflops, marker="o", label=name)
            one.set_xscale("log", base=2)
            one.set(title=f"attention, {passes}", xlabel="length", ylabel="TFLOP/s of real tokens")
            if one.lines:
                one.legend(fontsize=7)
        save(figure, "gpu-attention.png", kernels)
    for result, make, name, label in (
        (kernels, copy_bars, "gpu-rows.png", "% of the measured copy rate"),
        (models, model_bars, "gpu-inference.png", "million real tokens a second"),
    ):
        if result is not None:
            figure, one = pyplot.subplots(figsize=(11, 4))
            _draw_bars(one, make(result.rows))
            one.set(ylabel=label)
            save(figure, name, result)
    return written
