"""`erniem-fast answer`: questions and contexts to answers."""

from typing import Annotated

import typer

from ..inference.question_answering import MAX_ANSWER_LEN
from .job import Work
from .on_files import on_files
from .options import parse_count

NO_ANSWER = {"score": 0.0, "start": 0, "end": 0, "answer": ""}


@on_files("answer")
def answer_command(
    question_column: Annotated[str, typer.Option(metavar="NAME", help="Column with the questions.")] = "question",
    context_column: Annotated[str, typer.Option(metavar="NAME", help="Column with their contexts.")] = "context",
    max_answer_len: Annotated[str, typer.Option(metavar="N", help="Most tokens of an answer.")] = str(MAX_ANSWER_LEN),
    handle_impossible_answer: Annotated[
        bool,
        typer.Option("--handle-impossible-answer", help="Give an empty answer where the model finds none."),
    ] = False,
) -> Work:
    """Answer each question of INPUT, a .jsonl, .csv or .parquet file, from the context beside it.

    Results: {"score": ..., "start": ..., "end": ..., "answer": ...}, in the order of the questions; start and end count
    characters of the context.

    Contexts of any length are read, in windows if need be. An empty question or context gets an empty answer.

    FILE is put in place as a whole at the end. A run that was stopped is gone on with by the same command.
    """
    return Work(
        task="answer",
        options={
            "max_answer_len": parse_count("--max-answer-len", max_answer_len),
            "handle_impossible_answer": handle_impossible_answer,
        },
        columns={"--question-column": question_column, "--context-column": context_column},
        item=lambda texts: {"question": texts[0], "context": texts[1]},
        fields={"score": float, "start": int, "end": int, "answer": str},
        result=dict,
        empty=NO_ANSWER,
        description="Answering",
    )
