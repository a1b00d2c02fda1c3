"""`erniem-fast finetune embed`: vectors of sentences, from pairs."""

import math
from typing import Annotated

import typer

from ..training.contrastive import LOSSES
from ..training.tasks.base import Asked
from ..training.tasks.embed import TEMPERATURE, Embedding
from .errors import InputError
from .finetune import finetunes
from .options import parse_choice


@finetunes("embed", has_scores=False)
def embed_command(
    anchor_column: Annotated[str, typer.Option(metavar="NAME", help="Column with the first texts.")] = "anchor",
    positive_column: Annotated[str, typer.Option(metavar="NAME", help="Column with their partners.")] = "positive",
    negative_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column with texts that are not; otherwise negative, if TRAIN has it.",
            show_default=False,
        ),
    ] = None,
    loss: Annotated[
        str,
        typer.Option(
            metavar="|".join(LOSSES),
            help="softmax: each text is to find its partner among the batch's. hardest-negative: to be like its "
            "partner and unlike the one other text that is most like it, as ERNIE-M's authors for Tatoeba.",
        ),
    ] = "softmax",
    temperature: Annotated[float, typer.Option(metavar="T", help="By which cosines are divided.")] = TEMPERATURE,
) -> Asked:
    """Learn vectors by which a text finds its partner, such as its translation; evaluated by retrieval, both ways.

    The other pairs of a batch are what a text is told apart from: the larger --batch-tokens, the better. --accumulate
    makes no larger batch in this sense, several processes do.

    DIR is a folder of sentence-transformers: the mean of a text's tokens, scaled to length 1. It is put in place as a
    whole at the end. A run that was stopped is gone on with by the same command.
    """
    parse_choice("--loss", loss, LOSSES)
    if not 0 < temperature < math.inf:
        raise InputError(f"--temperature {temperature}: expected a number above 0")
    return Asked(
        Embedding,
        {
            "anchor_column": anchor_column, "positive_column": positive_column, "negative_column": negative_column,
            "loss": loss, "temperature": temperature,
        },
    )  # fmt: skip
