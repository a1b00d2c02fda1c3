"""`erniem-fast embed`: texts to vectors."""

from typing import Annotated

import numpy as np
import typer

from ..files.formats import VECTOR, VECTOR_FORMATS
from ..inference.pooling import POOLINGS
from .job import Work
from .on_files import on_files
from .options import TextColumnOption, parse_choice, parse_count


@on_files("embed")
def embed_command(
    out: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="What to write: .npy (also no ending, and - for stdout) or .safetensors, float32 (texts, dim); .jsonl "
            "or .parquet with the column embedding.",
            show_default=False,
        ),
    ],
    text_column: TextColumnOption = "text",
    pooling: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(POOLINGS),
            help=" ".join(f"{name}: {pooling.description}." for name, pooling in POOLINGS.items())
            + " Otherwise what a sentence-transformers folder says, or mean.",
            show_default=False,
        ),
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Scale vectors to length 1. Otherwise what the folder says.",
            show_default=False,
        ),
    ] = None,
    truncate_dim: Annotated[
        str | None, typer.Option(metavar="N", help="Keep the first N numbers of each vector.", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Put before each text, such as 'query: '.", show_default=False)
    ] = None,
    prompt_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="One of the folder's prompts.", show_default=False)
    ] = None,
) -> Work:
    """Turn each text of INPUT into a vector.

    Vectors come in the order of the texts; an empty text gives zeros.

    Texts of more tokens than the model takes are cut.

    FILE is put in place as a whole at the end. A run that was stopped is gone on with by the same command.
    """
    if pooling is not None:
        parse_choice("--pooling", pooling, POOLINGS)
    options = {
        "pooling": pooling,
        "normalize": normalize,
        "truncate_dim": None if truncate_dim is None else parse_count("--truncate-dim", truncate_dim),
        "prompt": prompt,
        "prompt_name": prompt_name,
    }
    return Work(
        task="encode",
        options=options,
        columns={"--text-column": text_column},
        fields={VECTOR: np.ndarray},
        result=lambda vector: {VECTOR: vector},
        description="Encoding",
        formats=VECTOR_FORMATS,
    )
