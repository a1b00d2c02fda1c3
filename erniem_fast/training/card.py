"""The model card of a fine-tuned model: figures, data, hyper-parameters and versions."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..inference.loading import HUB_ID
from ..version import __version__

PACKAGES = ("torch", "transformers", "accelerate")
TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "ForInformationExtraction": "token-classification",
    "Model": "feature-extraction",
}
"""The Hub's names of what heads do."""


def model_card(
    name: str, head: str, base: str, data: Mapping[str, str], figures: Mapping[str, float],
    settings: Mapping[str, Any], about: Mapping[str, Any],
) -> str:  # fmt: skip
    """The card as Markdown, with the Hub's metadata.

    Args:
        name: of the model.
        head: end of the name of its class.
        base: folder or id of the checkpoint that it began from.
        data: files by what they served for: "training", "evaluation".
        figures: of the evaluation, by metric.
        settings: hyper-parameters by option.
        about: further rows: steps, examples, parameters.
    """
    task = TASKS[head]
    evaluated = data.get("evaluation")
    results = [
        EvalResult(
            task_type=task, dataset_type="local", dataset_name=Path(evaluated).name, metric_type=metric,
            metric_value=round(value, 6),
        )
        for metric, value in figures.items()
    ] if evaluated else []  # fmt: skip
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=task if task != "multiple-choice" else None,
        base_model=base if HUB_ID.fullmatch(base) and not Path(base).exists() else None,
        tags=["erniem-fast"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    versions = {"python": platform.python_version(), "erniem_fast": __version__}
    versions |= {package: version(package) for package in PACKAGES}
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {name}\n\nFine-tuned from `{base}` by `erniem-fast finetune`.",
    ]
    if figures:
        rows = {metric: f"{value:.4f}" for metric, value in figures.items()}
        parts.append(f"## Figures\n\nOn `{evaluated}`:\n\n" + _table("metric", rows))
    parts.append("## Data\n\n" + _table("for", {key: f"`{value}`" for key, value in data.items()}))
    parts.append("## Training\n\n" + _table("setting", {**settings, **about}))
    parts.append("## Versions\n\n" + _table("package", versions))
    return str(ModelCard("\n\n".join(parts) + "\n"))


def _table(first: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| {first} | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items())]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", r"\|")
