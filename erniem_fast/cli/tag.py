"""`erniem-fast tag`: the entities of texts."""

from typing import Annotated, Any

import typer

from ..inference.tagging import STRATEGIES
from .job import Work
from .on_files import on_files
from .options import TextColumnOption, parse_choice, parse_count

WHERE = {"score": float, "word": str, "start": int, "end": int}


@on_files("tag")
def tag_command(
    aggregation_strategy: Annotated[
        str, typer.Option(metavar="|".join(STRATEGIES), help="How tokens make entities, as in transformers' pipeline.")
    ] = "simple",
    stride: Annotated[
        str | None,
        typer.Option(metavar="N", help="Tokens that windows of a long text share.", show_default=False),
    ] = None,
    text_column: TextColumnOption = "text",
) -> Work:
    """Find the entities in each text of INPUT by a model for token classification.

    Results: {"entities": [{"entity_group": ..., "score": ..., "word": ..., "start": ..., "end": ...}, ...]},
    in the order of the texts; start and end count characters.

    Texts of any length are read, in windows if need be.

    FILE is put in place as a whole at the end. A run that was stopped is gone on with by the same command.
    """
    parse_choice("--aggregation-strategy", aggregation_strategy, STRATEGIES)
    kind: dict[str, Any] = {"entity": str, "index": int} if aggregation_strategy == "none" else {"entity_group": str}
    return Work(
        task="tag",
        options={
            "aggregation_strategy": aggregation_strategy,
            "stride": None if stride is None else parse_count("--stride", stride),
        },
        columns={"--text-column": text_column},
        fields={"entities": [kind | WHERE]},
        result=lambda entities: {"entities": entities},
        description="Tagging",
    )
