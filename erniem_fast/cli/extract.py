"""`erniem-fast extract`: what a schema names, found in texts."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..inference.schema import LANGUAGES, Node, parse_schema
from .errors import InputError
from .job import Work
from .on_files import on_files
from .options import TextColumnOption, parse_choice

ACCEPTED_SCHEMA = 'expected JSON that starts with {, [ or ", or the path of a JSON file'


@on_files("extract")
def extract_command(
    schema: Annotated[
        str,
        typer.Option(
            metavar="JSON|FILE",
            help='What to find: a name ("time"), a list of names (["time", "place"]), or names with those to ask about '
            'each of their spans ({"person": ["birthplace"]}). As JSON, or the path of a JSON file.',
            show_default=False,
        ),
    ],
    language: Annotated[
        str, typer.Option(metavar="|".join(LANGUAGES), help="Of the schema; texts may be in any language.")
    ] = "zh",
    threshold: Annotated[
        str, typer.Option(metavar="P", help="Probability that a span's start and its end must exceed.")
    ] = "0.5",
    text_column: TextColumnOption = "text",
) -> Work:
    """Find in each text of INPUT what a schema names, with a UIE model.

    Results: {NAME: [{"text": SPAN, "start": ..., "end": ..., "probability": ...}]}, in the order of the texts.

    Texts of any length are read, in windows if need be. Names that nothing was found for are absent.

    FILE is put in place as a whole at the end. A run that was stopped is gone on with by the same command.
    """
    parse_choice("--language", language, LANGUAGES)
    least = parse_threshold(threshold)
    names = read_schema(schema)
    return Work(
        task="extract",
        options={"schema": names, "language": language, "threshold": least},
        columns={"--text-column": text_column},
        fields=_fields(parse_schema(names)),
        result=dict,
        description="Extracting",
    )


def _fields(nodes: tuple[Node, ...]) -> dict[str, Any]:
    """Types of the answers to the names of a schema."""
    span = {"text": str, "start": int, "end": int, "probability": float}
    return {node.name: [span | ({"relations": _fields(node.children)} if node.children else {})] for node in nodes}


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
