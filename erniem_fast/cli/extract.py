"""`erniem-fast extract`: what a schema names, found in texts."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..inference.extraction import information_extraction
from ..inference.loading import load_config, load_head, load_tokenizer
from ..inference.schema import LANGUAGES, parse_schema
from ..modeling import ErnieMForInformationExtraction
from .errors import InputError
from .files import check_distinct, check_texts, read_texts, record_file
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

ACCEPTED_SCHEMA = 'expected JSON that starts with {, [ or ", or the path of a JSON file'


def extract_command(
    texts: TextsArgument,
    schema: Annotated[
        str,
        typer.Option(
            metavar="JSON|FILE",
            help='What to find: a name ("time"), a list of names (["time", "place"]), or names with those to ask about '
            'each of their spans ({"person": ["birthplace"]}). As JSON, or the path of a JSON file.',
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

    Writes a line of JSON a text, in order: {NAME: [{"text": SPAN, "start": ..., "end": ..., "probability": ...}]}.

    Texts of any length are read, in windows if need be. Names that nothing was found for are absent.

    FILE is written at once at the end, or not at all.
    """
    parse_choice("--language", language, LANGUAGES)
    weights = parse_dtype(dtype)
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
        head = load_head(model, ErnieMForInformationExtraction, config, weights, place)
        extract = information_extraction(head, tokenizer, batch_tokens=tokens_per_batch)
        with _naming(f"--schema {schema!r:.80}"):
            results = extract.stream(lines, names, language=language, threshold=least, progress=True)
        with _naming(f"--dtype {dtype!r}"):
            for result in results:
                file.write(result)


def parse_threshold(value: str) -> float:
    """Parse a probability below 1.

    Raises:
        InputError: the value is anything else.
    """
    try:
        threshold = float(value)
    except ValueError:
        threshold = -1.0
    if not 0 <= threshold < 1:  # nor NaN
        raise InputError(f"--threshold {value!r}: expected a number of at least 0 and below 1")
    return threshold


def read_schema(value: str) -> Any:
    """Read a schema from JSON, or from the JSON file that it names.

    Raises:
        InputError: no such file, no JSON, a name twice in one object, or no schema.
    """
    text = value.strip()
    if not text.startswith(("{", "[", '"')):
        try:
            text = Path(value).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with NUL
            reason = getattr(error, "strerror", None) or "the file is not UTF-8"
            raise InputError(f"--schema {value!r:.80}: {reason}; {ACCEPTED_SCHEMA}") from error
    try:
        schema = json.loads(text, object_pairs_hook=_without_repeats)
    except InputError as error:
        raise InputError(f"--schema {value!r:.80}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"--schema {value!r:.80}: is not JSON ({error}); {ACCEPTED_SCHEMA}") from error
    with _naming(f"--schema {value!r:.80}"):
        parse_schema(schema)
    return schema


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if repeated:
        raise InputError(f"an object holds the name {repeated[0]!r} twice; expected each name once on a level")
    return dict(pairs)


@contextmanager
def _naming(option: str) -> Iterator[None]:
    """Turn an error of the arguments into an InputError that names the option."""
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{option}: {error}") from error
