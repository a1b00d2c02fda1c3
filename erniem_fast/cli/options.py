"""Options that several commands share, and the parsing of their values."""

from collections.abc import Iterable
from typing import Annotated

import torch
import typer

from ..files.source import ACCEPTED
from ..inference.engine import DTYPES as ENGINE_DTYPES
from .errors import InputError

DTYPES = ("float32", "bfloat16", "float16")

InputArgument = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        help="UTF-8 .txt (or no ending, one text a line), .jsonl, .csv or .parquet, each also with .gz; - for stdin.",
        show_default=False,
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="|".join(ACCEPTED),
        help="What INPUT is, whatever its ending; stdin is txt otherwise.",
        show_default=False,
    ),
]
TextColumnOption = Annotated[str, typer.Option(metavar="NAME", help="Column with the texts of .jsonl, .csv, .parquet.")]
IdColumnOption = Annotated[
    str, typer.Option(metavar="NAME", help="Column that names a record, which goes into the result if INPUT has it.")
]
RecordsOutOption = Annotated[
    str,
    typer.Option(
        metavar="FILE", help="What to write: .jsonl (also no ending, and - for stdout), one object a line, or .parquet."
    ),
]
RestartOption = Annotated[
    bool, typer.Option("--restart", help="Begin anew, whatever a run that was stopped left in FILE.partial.")
]
ModelOption = Annotated[
    str,
    typer.Option(
        metavar="DIR|ID",
        help="Folder with config.json, the weights and the tokenizer, or the id of such a model on the Hugging Face "
        "Hub (user/name).",
        show_default=False,
    ),
]
BatchTokensOption = Annotated[
    str,
    typer.Option(
        metavar="auto|N", help="Most tokens of a batch; a longer text makes a batch alone. auto: by the memory."
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        metavar="|".join(ENGINE_DTYPES), help="What to compute in; auto: bfloat16 where that is fast, else float32."
    ),
]
DeviceOption = Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="auto: a GPU if there is one.")]


def parse_count(name: str, value: str) -> int:
    """Parse a whole number of at least 1.

    Raises:
        InputError: the value is anything else.
    """
    number = int(value) if value.isascii() and value.isdigit() and len(value) < 19 else 0
    if number < 1:
        raise InputError(f"{name} {value!r}: expected a whole number of at least 1")
    return number


def parse_batch_tokens(value: str) -> int | None:
    """Parse a number of tokens; "auto" is None.

    Raises:
        InputError: the value is anything else.
    """
    return None if value == "auto" else parse_count("--batch-tokens", value)


def parse_choice(name: str, value: str, accepted: Iterable[str]) -> str:
    """Check a value against those that an option takes.

    Raises:
        InputError: the value is none of them.
    """
    if value not in accepted:
        raise InputError(f"{name} {value!r}: expected one of {', '.join(accepted)}")
    return value


def parse_dtype(value: str) -> torch.dtype:
    """Parse the name of one of `DTYPES`.

    Raises:
        InputError: the name is another one.
    """
    dtype: torch.dtype = getattr(torch, parse_choice("--dtype", value, DTYPES))
    return dtype


def parse_device(name: str) -> torch.device:
    """Parse the name of a device that this machine has; "auto" is a GPU if there is one.

    Raises:
        InputError: there is no such device, or it is neither a CPU nor a CUDA device.
    """
    cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "cpu")
    number = name.removeprefix("cuda:")
    numbered = name != number and number.isascii() and number.isdigit()
    if name not in ("cpu", "cuda") and not numbered:
        raise InputError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N")
    if name != "cpu" and not (cuda and (not numbered or int(number) < torch.cuda.device_count())):
        there = f"{torch.cuda.device_count()} CUDA devices" if cuda else "no CUDA device"
        raise InputError(f"--device {name!r}: there is {there}; expected auto, cpu or a device that is there")
    return torch.device(name)
