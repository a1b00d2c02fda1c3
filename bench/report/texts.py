"""Tables of tools whose rows are real text through whole models, for pages of docs/."""

from pathlib import Path
from typing import Any

from bench.engine.results import ResultFile

from .markdown import markdown
from .rows import Result

NOT_MEASURED = "Not measured yet: `python -m bench.tools.{}` measures."
EMBEDDERS = {
    "packed": "`erniem_fast.sentence_transformers.Transformer`",
    "sentence-transformers' own module": "sentence-transformers' own module, padding-free model",
    "the same, padded model": "sentence-transformers' own module, padded model as in 4.40.2",
}


def formats(folder: Path) -> str:
    """Part of docs/quantisation.md."""
    head = ["linear layers' weights, everything else", "error", "time to float32", "size of the model"]
    return _part(folder, "texts", "formats", head, _format)


def embedders(folder: Path) -> str:
    """Part of docs/sentence_embeddings.md."""
    return _part(folder, "texts", "sentence-transformers", ["first module", "texts/s", "time to ours"], _embedder)


def precision(folder: Path) -> str:
    """Part of docs/cpu.md."""
    file = ResultFile.newest(folder, "precision")
    if file is None:
        return NOT_MEASURED.format("precision")
    rows = [row for row in file.content["rows"] if row["provider"] != "float32"]
    head = ["text", "", "least cosine", "mean cosine", "greatest difference, of float32's greatest value",
            "times as fast as float32"]  # fmt: skip
    random = "random weights" if file.content["checkpoint"] is None else f"weights of {file.content['checkpoint']}"
    model = f"{rows[0]['layers']} layers of {rows[0]['hidden_size']}, {random}."
    return "\n\n".join(
        [
            markdown(head, map(_precision, rows)),
            f"{Result(file.path, file.content).describe('../bench/results')} {model}",
        ]
    )


def _precision(row: dict[str, Any]) -> list[str]:
    what = f"{row['texts']} {row['operation']}".replace(" the ", " of the ")
    cosines = [f"{row[name]:.5f}" for name in ("least_cosine", "mean_cosine")]
    return [what, row["provider"], *cosines, f"{row['greatest_difference']:.1%}", f"{1 / row['ratio']:.2f}"]


def zero_shot(folder: Path) -> str:
    """Part of docs/zero_shot.md."""
    head = ["96 documents, 5 labels", "pairs/s", "time to ours"]
    return _part(folder, "zero-shot", "zero-shot", head, _classifier)


def _format(row: dict[str, Any]) -> list[str]:
    size = f"{row['model_bytes'] / 2**20:,.0f} MiB"
    return [row["provider"], f"{row['relative_error']:.2%}", f"{row['ratio']:.2f}", size]


def _embedder(row: dict[str, Any]) -> list[str]:
    return [EMBEDDERS[row["provider"]], f"{row['texts'] / row['time_s']:,.0f}", f"{row['ratio']:.2f}"]


def _classifier(row: dict[str, Any]) -> list[str]:
    pairs = row["texts"] * row["labels"]
    return [row["provider"], f"{pairs / row['time_s']:,.0f}", f"{row['ratio']:.2f}"]


def _part(folder: Path, suite: str, operation: str, head: list[str], line: Any) -> str:
    file = ResultFile.newest(folder, suite)
    if file is None:
        return NOT_MEASURED.format(suite.replace("-", "_"))
    rows = [row for row in file.content["rows"] if row["operation"] == operation]
    random = "random weights and the demo's small vocabulary"
    weights = random if file.content["checkpoint"] is None else f"weights of {file.content['checkpoint']}"
    first = rows[0]
    model = f"{first['layers']} layers of {first['hidden_size']}, {weights}"
    model += f", a batch of {first['tokens']:,} tokens." if "tokens" in first else "."
    return "\n\n".join(
        [markdown(head, map(line, rows)), f"{Result(file.path, file.content).describe('../bench/results')} {model}"]
    )
