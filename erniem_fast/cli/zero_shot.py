"""`erniem-fast zero-shot`: texts to labels chosen on the command line."""

from typing import Annotated

import typer

from ..inference.arguments import list_texts
from ..inference.zero_shot import HYPOTHESIS_TEMPLATE, fill_template, split_labels
from .errors import InputError
from .job import Work, naming_options
from .on_files import on_files
from .options import TextColumnOption


@on_files("zero-shot")
def zero_shot_command(
    labels: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Labels between commas.", show_default=False)
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL", help="One label, which may hold commas; can be repeated.", show_default=False),
    ] = None,
    hypothesis_template: Annotated[
        str, typer.Option(metavar="TEXT", help="The hypothesis, in any language, with {} in the place of the label.")
    ] = HYPOTHESIS_TEMPLATE,
    multi_label: Annotated[
        bool, typer.Option("--multi-label", help="Any number of labels may fit: each is scored by itself.")
    ] = False,
    text_column: TextColumnOption = "text",
) -> Work:
    """Say which of the labels fits each text of INPUT.

    Results: {"sequence": TEXT, "labels": [BEST, ...], "scores": [...]}, in the order of the texts.

    An empty text gets no labels. Texts of more tokens than the model takes are cut.

    FILE is put in place as a whole at the end. A run that was stopped is gone on with by the same command.
    """
    names = (split_labels(labels) if labels is not None else []) + (label or [])
    if not names:
        raise InputError("--labels: expected at least one label, with --labels A,B,... or --label LABEL")
    with naming_options():
        fill_template(hypothesis_template, list_texts("candidate_labels", names))
    return Work(
        task="zero_shot",
        options={
            "candidate_labels": names,
            "hypothesis_template": hypothesis_template,
            "multi_label": multi_label,
        },
        columns={"--text-column": text_column},
        fields={"sequence": str, "labels": [str], "scores": [float]},
        result=dict,
        description="Classifying",
        cut="were cut to leave room for the hypotheses",
    )
