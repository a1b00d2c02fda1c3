"""`erniem-fast extract`: what a schema names, found in texts."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..inference.extraction import information_extraction
from ..inference.schema import LANGUAGES
from ..modeling import ErnieMForInformationExtraction
from .errors import InputError
from .files import check_distinct, check_texts, read_texts, record_file
from .loading import load_config, load_head, load_tokenizer
from .options import (
    DTYPES,
    BatchTokensOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    TextsArgument,
    parse_count,
    parse_device,
)

ACCEPTED_SCHEMA = 'expected JSON that starts with {, [ or ", or the path of a JSON file'


def extract_command(
    texts: TextsArgument,
    schema: Annotated[
        str,
        typer.Option(
            metavar="JSON|FILE",
            help='What to find: a name ("time"), a list of names (["time", "place"]), or names to ask about each name '
            '({"person": ["birthplace"]}), as JSON or in a JSON file. "name[a,b]" chooses an option.',
            show_default=False,
        ),
    ],
    model: ModelOption,
    language: Annotated[
        str, typer.Option(metavar="|".join(LANGUAGES), help="Of the schema; texts may be in any language.")
    ] = "zh",
    threshold: Annotated[
        str, typer.Option(metavar="P", help="Probability that a span's start and its end must exceed.")
    ] = "0.5",
    out: Annotated[str, typer.Option(metavar="FILE", help="The .jsonl file to write, or - for stdout.")] = "-",
    batch_tokens: BatchTokensOption = "8192",
    dtype: DtypeOption = "float32",
    device: DeviceOption = "auto",
) -> None:
    """Find in each line of TEXTS what a schema names, with a UIE model.

    A line of FILE is a JSON object for each line of TEXTS: from names to answers, each with text, start, end (places in
    the line, in characters), probability and, where the schema goes on, relations.

    Texts of any length are read in windows.

    FILE is written at once at the end, or not at all.
    """
    for name, value, accepted in (("--language", language, LANGUAGES), ("--dtype", dtype, DTYPES)):
        if value not in accepted:
            raise InputError(f"{name} {value!r}: expected one of {', '.join(accepted)}")
    least = parse_threshold(threshold)
    tokens_per_batch = parse_count("--batch-tokens", batch_tokens)
    place = parse_device(device)
    names = read_schema(schema)
    check_texts(texts)
    check_distinct(texts, out)
    with record_file(out) as file:
        lines = read_texts(texts)
        config = load_config(model)
        tokenizer = load_tokenizer(model, config)
        head = load_head(model, ErnieMForInformationExtraction, config, getattr(torch, dtype), place)
        extractor = information_extraction(head, tokenizer)
        try:
            results = extractor.stream(
                lines, names, language=language, threshold=least, batch_tokens=tokens_per_batch, progress=True
            )
            for result in results:
                file.write(result)
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            raise InputError(f"--schema {schema!r:.200}: {error}") from error
