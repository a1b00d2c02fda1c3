"""`erniem-fast finetune qa` and `erniem-fast finetune extract`: spans of texts."""

from typing import Annotated

import typer

from ..inference.question_answering import MAX_ANSWER_LEN
from ..inference.schema import LANGUAGES
from ..training.tasks.base import Asked
from ..training.tasks.extract import STRIDE, Extraction
from ..training.tasks.question_answering import QuestionAnswering
from .extract import read_schema
from .finetune import finetunes
from .options import parse_choice


@finetunes("qa")
def qa_command(
    stride: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Tokens of a context that two windows share. Otherwise the preset's, or 128, or half of those that "
            "the question leaves.",
            show_default=False,
        ),
    ] = None,
    max_answer_len: Annotated[
        int, typer.Option(metavar="N", min=1, help="Most tokens of an answer, in the evaluation.")
    ] = MAX_ANSWER_LEN,
) -> Asked:
    """Learn answers to questions, as spans of a context; evaluated by SQuAD's exact match and F1, and by exact spans.

    TRAIN is .json in the form of SQuAD 1.1 or 2.0, or .jsonl or .parquet with question, context and answers. Without
    answers a question is one that the context does not answer.

    Contexts of any length are read in windows of --max-length tokens, 384 unless told otherwise, as `erniem-fast
    answer` reads them.

    DIR is put in place as a whole at the end. A run that was stopped is gone on with by the same command.
    """
    return Asked(QuestionAnswering, {"stride": stride, "max_answer_len": max_answer_len})


@finetunes("extract")
def extract_command(
    schema: Annotated[
        str | None,
        typer.Option(
            metavar="JSON|FILE",
            help="Names that are asked about in every line with text and result; those that a text has no answer for "
            "teach to find nothing. Otherwise only names with answers are asked about.",
            show_default=False,
        ),
    ] = None,
    language: Annotated[
        str, typer.Option(metavar="|".join(LANGUAGES), help="Of the names; texts may be in any language.")
    ] = LANGUAGES[0],
    stride: Annotated[
        int, typer.Option(metavar="N", min=0, help="Tokens that two windows of a text share at least.")
    ] = STRIDE,
) -> Asked:
    """Learn what names and prompts ask for in texts, with a UIE model of ErnieM; evaluated by F1 of exact spans.

    TRAIN is .jsonl or .parquet, with content, prompt and result_list, as PaddleNLP's; or with text and result, as
    `erniem-fast extract` gives it.

    Texts of any length are read in windows of --max-length tokens.

    DIR is put in place as a whole at the end. A run that was stopped is gone on with by the same command.
    """
    parse_choice("--language", language, LANGUAGES)
    names = None if schema is None else read_schema(schema)
    return Asked(Extraction, {"schema": names, "language": language, "stride": stride})
