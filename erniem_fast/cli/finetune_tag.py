"""`erniem-fast finetune tag`: tags of words, or entities of texts."""

from typing import Annotated

import typer

from ..inference.tagging import STRIDE
from ..training.tasks.base import Asked
from ..training.tasks.tag import Tagging
from .errors import InputError
from .finetune import finetunes


@finetunes("tag")
def tag_command(
    word_column: Annotated[
        str | None,
        typer.Option(
            metavar="N|NAME",
            help="Column of words: in CoNLL its number, otherwise 1 (CoNLL-U: 2); else its name, otherwise tokens.",
            show_default=False,
        ),
    ] = None,
    tag_column: Annotated[
        str | None,
        typer.Option(
            metavar="N|NAME",
            help="Column of tags: in CoNLL its number, otherwise the last (CoNLL-U: 4); else its name, otherwise tags "
            "or ner_tags.",
            show_default=False,
        ),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column with texts instead of words, otherwise text.", show_default=False),
    ] = None,
    entities_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help='Column with their entities, otherwise entities: [{"start", "end", "label"}, ...].',
            show_default=False,
        ),
    ] = None,
    tag_names: Annotated[
        str | None,
        typer.Option(metavar="O,B-PER,...", help="Names of tags that are numbers, from 0.", show_default=False),
    ] = None,
    stride: Annotated[
        int, typer.Option(metavar="N", min=0, help="Tokens that windows of a long sentence share.")
    ] = STRIDE,
) -> Asked:
    """Learn tags of words; evaluated by precision, recall and F1 of entities, as seqeval counts them.

    TRAIN is CoNLL (.conll, .txt, .tsv, .bio, .iob, .iob2: a word a line, its tag last, a blank line behind a sentence),
    CoNLL-U (.conllu), or .jsonl or .parquet: lists of words and of tags, or texts with entities.

    Tags of entities in any scheme become IOB2; others, such as parts of speech, count word by word.

    Sentences of more than --max-length tokens are read in windows.

    DIR is put in place as a whole at the end. A run that was stopped is gone on with by the same command.
    """
    names = None if tag_names is None else tag_names.split(",")
    if names is not None and (not all(names) or len(set(names)) < len(names)):
        raise InputError(f"--tag-names {tag_names!r}: expected different names, separated by commas")
    return Asked(
        Tagging,
        {
            "word_column": word_column, "tag_column": tag_column, "text_column": text_column,
            "entities_column": entities_column, "tag_names": names, "stride": stride,
        },
    )  # fmt: skip
