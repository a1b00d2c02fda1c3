"""Charts of the newest results: README's of a CPU, and three of a GPU where there are results; needs matplotlib."""

from pathlib import Path
from typing import Any

from bench.engine.registry import OURS

from .goals import MIX, ROW_OPERATIONS
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


def attention(rows: list[dict[str, Any]]) -> Panels:
    """TFLOP/s at 64 k tokens of one length, without dropout."""
    panels: Panels = {}
    for row in rows:
        if row["operation"] == "attention" and row["shape"].endswith("-64k") and not row["dropout_p"]:
            bar = row["provider"], row["tflops"], f"{row['tflops']:.0f} TFLOP/s"
            panels.setdefault(f"{row['shape']}, {row['passes']}", []).append(bar)
    return panels


def row_operations(rows: list[dict[str, Any]]) -> Panels:
    """Shares of the copy rate at 64 k tokens."""
    panels: Panels = {}
    for row in rows:
        if row["operation"] in ROW_OPERATIONS and row["shape"] == MIX:
            share = 100 * row["share_of_copy_rate"]
            title = f"{row['operation']}, {row['passes']}{', dropout' if row['dropout_p'] else ''}"
            panels.setdefault(title, []).append((row["provider"], share, f"{share:.0f} % of the copy rate"))
    return panels


CHARTS = (
    ("cpu.svg", "cpu", inference), ("gpu-inference.svg", "models", inference),
    ("gpu-attention.svg", "kernels", attention), ("gpu-rows.svg", "kernels", row_operations),
)  # fmt: skip


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
