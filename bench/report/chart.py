"""Charts of the newest results: README's of a CPU, and three of a GPU where there are results; needs matplotlib."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.engine.registry import OURS

from .goals import ROW_OPERATIONS
from .rows import newest
from .tables import PEERS, SHAPES

BAR, PEER_BAR, TEXT = "#2f9e64", "#8f9aa6", "#7d8590"
"""Colours that are readable on white and on black."""
LABELS = {"padding-free": OURS} | PEERS
Panels = dict[str, list[tuple[str, float, str]]]
"""Bars by title: label, length, text behind it."""


def inference(rows: list[dict[str, Any]]) -> Panels:
    """Real tokens a second on real lengths, a panel for each model and shape, the fastest first."""
    panels: Panels = {}
    for row in sorted(rows, key=lambda row: -row["real_tokens_per_s"]):
        if row["operation"] == "inference" and row["shape"] in SHAPES and row["provider"] in LABELS:
            slower = "" if row["provider"] == "padding-free" else f"  ({row['ratio']:.1f}x the time)"
            bar = LABELS[row["provider"]], row["real_tokens_per_s"], f"{row['real_tokens_per_s']:,.0f} tokens/s{slower}"
            panels.setdefault(f"{SHAPES[row['shape']]}, {row['layers']} layers", []).append(bar)
    return panels


def rates(field: str, scale: float, unit: str, *operations: str) -> Callable[[list[dict[str, Any]]], Panels]:
    """Bars of a field of operations on 64 k tokens, a panel for each shape and pass."""

    def make(rows: list[dict[str, Any]]) -> Panels:
        panels: Panels = {}
        for row in rows:
            if row["operation"] in operations and row["shape"].endswith("-64k"):
                title = f"{row['operation']}, {row['shape']}, {row['passes']}{', dropout' if row['dropout_p'] else ''}"
                bar = row["provider"], scale * row[field], f"{scale * row[field]:.0f} {unit}"
                panels.setdefault(title, []).append(bar)
        return panels

    return make


CHARTS = (
    ("cpu.svg", "cpu", inference),
    ("gpu-models.svg", "models", inference),
    ("gpu-attention.svg", "kernels", rates("tflops", 1, "TFLOP/s", "attention")),
    ("gpu-rows.svg", "kernels", rates("share_of_copy_rate", 100, "% of the copy rate", *ROW_OPERATIONS)),
)


def draw(results: Path, output: Path) -> list[Path]:
    """Draw what has been measured, the same bytes for the same result; the files that were written."""
    written = []
    for name, part, make in CHARTS:
        found = newest(results, part)
        if found is not None and (panels := make(found.rows.rows)):
            _draw(panels, output / name)
            written.append(output / name)
    return written


def _draw(panels: Panels, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    heights = [len(bars) for bars in panels.values()]
    widest = max(length for bars in panels.values() for _, length, _ in bars)
    settings = {"svg.hashsalt": OURS, "svg.fonttype": "none", "text.color": TEXT, "ytick.color": TEXT, "font.size": 11}
    with matplotlib.rc_context(settings):
        size = (8, 0.42 * sum(heights) + 0.6 * len(heights))
        ratios = {"height_ratios": heights}
        figure, axes = pyplot.subplots(len(panels), 1, figsize=size, sharex=True, squeeze=False, gridspec_kw=ratios)
        for one, (title, bars) in zip(axes[:, 0], panels.items(), strict=True):
            colours = [BAR if label == OURS else PEER_BAR for label, *_ in bars]
            one.barh([label for label, *_ in bars], [length for _, length, _ in bars], 0.72, color=colours)
            for index, (_, length, text) in enumerate(bars):
                one.text(length + widest / 100, index, text, va="center", fontsize=10)
            one.set_title(title, loc="left", fontsize=11, fontweight="bold")
            one.set_xlim(0, 1.45 * widest)
            one.invert_yaxis()
            one.tick_params(length=0)
            one.xaxis.set_visible(False)
            one.spines[:].set_visible(False)
        figure.tight_layout()
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
