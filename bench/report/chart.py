"""README's chart: real tokens a second on a CPU, ours and the peers'; needs matplotlib."""

from pathlib import Path
from typing import Any

from .rows import Rows, newest
from .tables import PEERS, SHAPES

NAME = "cpu.svg"
OURS, OTHERS, TEXT = "#2f9e64", "#8f9aa6", "#7d8590"
"""Colours that are readable on white and on black."""


def bars(rows: Rows, shape: str) -> list[tuple[str, float, float]]:
    """(label, real tokens a second, time over ours) of ours and the peers, the fastest first."""
    labels = {"padding-free": "erniem_fast"} | PEERS
    found = [row for row in rows.rows if row["operation"] == "inference" and row["shape"] == shape]
    chosen = [row for row in found if row["provider"] in labels]
    ordered = sorted(chosen, key=lambda row: -row["real_tokens_per_s"])
    return [(labels[row["provider"]], row["real_tokens_per_s"], row["ratio"]) for row in ordered]


def draw(results: Path, output: Path) -> Path | None:
    """Draw the newest result of a CPU; the file, the same bytes for the same result, or None without a result."""
    found = newest(results, "cpu")
    if found is None:
        return None
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    panels = {title: chosen for shape, title in SHAPES.items() if (chosen := bars(found.rows, shape))}
    settings: dict[str, Any] = {
        "svg.hashsalt": "erniem_fast", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11,
        "text.color": TEXT, "axes.labelcolor": TEXT, "ytick.color": TEXT,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        heights = [len(chosen) for chosen in panels.values()]
        size = (8, 0.42 * sum(heights) + 0.6 * len(heights))
        figure, axes = pyplot.subplots(
            len(panels), 1, figsize=size, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
        )
        widest = max(rate for chosen in panels.values() for _, rate, _ in chosen)
        for one, (title, chosen) in zip(axes[:, 0], panels.items(), strict=True):
            colours = [OURS if label == "erniem_fast" else OTHERS for label, *_ in chosen]
            one.barh([label for label, *_ in chosen], [rate for _, rate, _ in chosen], 0.72, color=colours)
            for index, (label, rate, ratio) in enumerate(chosen):
                slower = "" if label == "erniem_fast" else f"  ({ratio:.1f}x the time)"
                one.text(rate + widest / 100, index, f"{rate:,.0f} tokens/s{slower}", va="center", fontsize=10)
            one.set_title(title, loc="left", fontsize=11, fontweight="bold")
            one.set_xlim(0, 1.45 * widest)
            one.invert_yaxis()
            one.tick_params(length=0)
            one.xaxis.set_visible(False)
            one.spines[:].set_visible(False)
        figure.tight_layout()
        path = output / NAME
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return path
