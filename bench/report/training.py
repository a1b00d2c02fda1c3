"""Training runs: a table of what each reached, and a figure with the curves of all."""

import json
from pathlib import Path
from typing import Any

from bench.engine.registry import OURS
from bench.training.results import shown

from .markdown import markdown
from .rows import Result

RUNS = {
    "languages": "20 languages told apart, from scratch",
    "xquad": "64 questions by heart",
    "pretraining": "objectives of pre-training",
    "distilled-languages": "half of the layers, distilled",
    "overhead": "a step of base size",
}
"""Titles of runs, in order, by the part of their files' names behind `training-`; others follow under their names."""
PREFIX = "training-"
CHART = "training.svg"
COLOURS = ("#2f9e64", "#4f7cd1", "#c2703a", "#9a62b5", "#7d8590")
TEXT = "#7d8590"
LOSS = "loss"


def found(folder: Path) -> dict[str, Result]:
    """The newest result of each run by its title, dry runs excluded."""
    newest: dict[str, Result] = {}
    for path in sorted(folder.glob(f"{PREFIX}*-????-??-??.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not content["tiny"]:
            newest[content["suite"].removeprefix(PREFIX)] = Result(path, content)
    order = [name for name in RUNS if name in newest] + [name for name in newest if name not in RUNS]
    return {RUNS.get(name, name): newest[name] for name in order}


def training_tables(folder: Path) -> str:
    """Part of docs/benchmarks.md: what the runs reached, and where the figures are from."""
    results = found(folder)
    if not results:
        return ""
    lines = []
    for title, result in results.items():
        for what, figure in result.content["figures"].items():
            bar, met = _bar(figure)
            lines.append([title, what, shown(figure["value"], figure["unit"]), bar, met])
    table = markdown(["run", "what", "measured", "bar", "met"], lines)
    sources = [f"{title}: {result.describe('../bench/results')}" for title, result in results.items()]
    has_curves = any(result.content["curves"] for result in results.values())
    plot = f"![Losses and metrics of the training runs, by step](images/{CHART})" if has_curves else ""
    return "\n\n".join(filter(None, ["### training runs", table, plot, *sources]))


def _bar(figure: dict[str, Any]) -> tuple[str, str]:
    value, unit, least, most = (figure[name] for name in ("value", "unit", "at_least", "at_most"))
    bars = [f"at {word} {shown(bar, unit)}" for word, bar in (("least", least), ("most", most)) if bar is not None]
    if not bars:
        return "", ""
    met = (least is None or value >= least) and (most is None or value <= most)
    return " and ".join(bars), "yes" if met else "no"


def draw_training(folder: Path, output: Path) -> list[Path]:
    """Draw the curves, a line of panels for each run, losses left and metrics right: the same bytes for the same files.

    Returns:
        The file that was written, or nothing where no run has curves.
    """
    results = {title: result for title, result in found(folder).items() if result.content["curves"]}
    if not results:
        return []
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    settings = {
        "svg.hashsalt": OURS, "svg.fonttype": "none", "font.size": 9, "text.color": TEXT, "axes.labelcolor": TEXT,
        "xtick.color": TEXT, "ytick.color": TEXT, "axes.edgecolor": TEXT,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure, axes = pyplot.subplots(len(results), 2, figsize=(8, 2.2 * len(results)), squeeze=False)
        for line, (title, result) in zip(axes, results.items(), strict=True):
            curves: dict[str, Any] = result.content["curves"]
            losses = {one: points for one, points in curves.items() if one.startswith(LOSS)}
            metrics = {one: points for one, points in curves.items() if one not in losses}
            for panel, chosen in zip(line, (losses, metrics), strict=True):
                _panel(panel, chosen)
            line[0].set_title(title, loc="left", fontweight="bold")
        figure.tight_layout()
        path = output / CHART
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return [path]


def _panel(panel: Any, curves: dict[str, list[list[float]]]) -> None:
    if not curves:
        panel.set_visible(False)
        return
    for index, (name, points) in enumerate(curves.items()):
        steps, values = zip(*points, strict=True)
        panel.plot(steps, values, label=name, color=COLOURS[index % len(COLOURS)], linewidth=1.2)
    panel.legend(frameon=False, fontsize=8)
    panel.set_xlabel("step")
    panel.spines[["top", "right"]].set_visible(False)
