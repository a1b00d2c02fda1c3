"""`erniem-fast classify`: texts, or pairs of texts, to the labels of a model."""

from typing import Annotated, Any

import typer

from ..inference.classification import ACTIVATIONS
from .job import Work
from .on_files import on_files
from .options import TextColumnOption, parse_choice, parse_count


@on_files("classify")
def classify_command(
    text_column: TextColumnOption = "text",
    text_pair_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column with the second texts of pairs.", show_default=False),
    ] = None,
    top_k: Annotated[
        str, typer.Option(metavar="K|all", help="1: the best label; K: lists of the K best labels and their scores.")
    ] = "1",
    activation: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(ACTIVATIONS),
            help="What makes scores of logits. Otherwise as config.json says, like transformers' pipeline.",
            show_default=False,
        ),
    ] = None,
) -> Work:
    """Label each text of INPUT, or each pair of texts, by a model for sequence classification.

    Results: {"label": ..., "score": ...}, in the order of the texts; with --top-k {"labels": [...], "scores": [...]}.

    Texts of more tokens than the model takes are cut, of a pair the longer one first.

    FILE is put in place as a whole at the end. A run that was stopped is gone on with by the same command.
    """
    most = None if top_k == "all" else parse_count("--top-k", top_k)
    if activation is not None:
        parse_choice("--activation", activation, ACTIVATIONS)
    columns = {"--text-column": text_column}
    if text_pair_column is not None:
        columns["--text-pair-column"] = text_pair_column
    return Work(
        task="classify",
        options={"top_k": most, "activation": activation},
        columns=columns,
        item=lambda texts: texts[0] if len(texts) == 1 else texts,
        fields={"label": str, "score": float} if most == 1 else {"labels": [str], "scores": [float]},
        result=dict if most == 1 else _lists,
        description="Classifying",
    )


def _lists(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {"labels": [one["label"] for one in found], "scores": [one["score"] for one in found]}
