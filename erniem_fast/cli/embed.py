"""`erniem-fast embed`: texts to vectors."""

from typing import Annotated

import numpy as np
import typer

from ..inference.embed import embed, tokenize
from ..inference.loading import load_config, load_encoder, load_tokenizer
from ..inference.pooling import POOLINGS
from .errors import InputError, say_on_stderr
from .files import check_distinct, check_texts, read_texts, vector_file
from .options import (
    BatchTokensOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    TextsArgument,
    parse_choice,
    parse_count,
    parse_device,
    parse_dtype,
)


def embed_command(
    texts: TextsArgument,
    model: ModelOption,
    out: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="The .npy file to write, or - for stdout: float32 (lines, hidden).", show_default=False
        ),
    ],
    pooling: Annotated[
        str,
        typer.Option(
            metavar="|".join(POOLINGS),
            help=" ".join(f"{name}: {pooling.description}." for name, pooling in POOLINGS.items()),
        ),
    ] = "mean",
    batch_tokens: BatchTokensOption = "8192",
    dtype: DtypeOption = "float32",
    device: DeviceOption = "auto",
) -> None:
    """Turn each line of TEXTS into a vector.

    Vectors come in the order of the lines; an empty line gives zeros.

    Texts of more tokens than the model takes are cut.

    FILE is written at once at the end, or not at all.
    """
    parse_choice("--pooling", pooling, POOLINGS)
    weights = parse_dtype(dtype)
    tokens_per_batch = parse_count("--batch-tokens", batch_tokens)
    place = parse_device(device)
    check_texts(texts)
    check_distinct(texts, out)
    with vector_file(out) as file:
        lines = read_texts(texts)
        config = load_config(model, any_family=True)
        tokenizer = load_tokenizer(model, config)
        file.allocate(len(lines), config.hidden_size)
        encoder = load_encoder(model, weights, place, POOLINGS[pooling].reads_pooler, config)
        most = encoder.limits.max_tokens
        sequences, truncated = tokenize(lines, tokenizer, most, progress=True)
        for indices, vectors in embed(encoder, sequences, pooling, tokens_per_batch, progress=True):
            if not np.isfinite(vectors).all():
                raise InputError(
                    f"--dtype {dtype!r}: some vectors are not finite; expected finite weights, "
                    f"and a dtype that holds what the model computes"
                )
            file.write(indices, vectors)
    if truncated:
        say_on_stderr(f"{truncated} of {len(lines)} texts were cut to {most} tokens")
