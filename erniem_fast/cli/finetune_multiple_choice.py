"""`erniem-fast finetune multiple-choice`: the right one of several texts."""

from typing import Annotated

import typer

from ..training.tasks.base import Asked
from ..training.tasks.multiple_choice import MultipleChoice
from .finetune import finetunes


@finetunes("multiple-choice")
def multiple_choice_command(
    context_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column with contexts; otherwise context or sent1.", show_default=False),
    ] = None,
    question_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Column with questions; otherwise question, text or sent2.", show_default=False
        ),
    ] = None,
    choices_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column with lists of choices; otherwise choices, or choice0, choice1, ...",
            show_default=False,
        ),
    ] = None,
    label_column: Annotated[
        str, typer.Option(metavar="NAME", help="Column with the right choice: its number, from 0, or its text.")
    ] = "label",
) -> Asked:
    """Learn which of several choices is right; evaluated by accuracy.

    A record has a context, a question, or both, and its choices as a list or in columns choice0, choice1, ... or
    ending0, ending1, ..., as SWAG's have. All records have equally many. A column that an option names must be there.

    Texts of more tokens than --max-length are cut, and counted.

    DIR is put in place as a whole at the end. A run that was stopped is gone on with by the same command.
    """
    return Asked(
        MultipleChoice,
        {
            "context_column": context_column, "question_column": question_column, "choices_column": choices_column,
            "label_column": label_column,
        },
    )  # fmt: skip
