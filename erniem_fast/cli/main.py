"""The command line: `erniem-fast embed`, `verify`, `demo` and `warm-up`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
import typer
from typer.core import TyperGroup

from ..inference.embed import POOLINGS, InputError, allocate, embed, replacing, tokenize
from ..version import __version__
from .demo import demo as run_demo
from .verify import load_config, load_encoder, load_tokenizer
from .verify import verify as run_verify
from .warm_up import warm_up

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]  # click's; typer may bring a click of its own


DTYPES = ("float32", "bfloat16", "float16")


class OneLineErrors(TyperGroup):
    """Bad input is one line on stderr and exit code 2, without usage, box or traceback."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        args = sys.argv[1:] if args is None else list(args)
        extra["standalone_mode"] = False
        try:
            code = super().main(args or ["--help"], *rest, **extra)
        except (USAGE_ERROR, InputError) as error:
            message = error.format_message() if hasattr(error, "format_message") else str(error)
            typer.echo(f"Error: {' '.join(message.split())}", err=True)
            code = 2
        except torch.OutOfMemoryError:
            typer.echo("Error: the device is out of memory; try a smaller --batch-tokens or --dtype bfloat16", err=True)
            code = 1
        except (typer.Abort, KeyboardInterrupt):
            code = 130
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(cls=OneLineErrors, add_completion=False, pretty_exceptions_enable=False)

ModelOption = Annotated[
    Path,
    typer.Option(metavar="DIR", help="Folder with config.json, the weights and the tokenizer.", show_default=False),
]
DeviceOption = Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="auto: a GPU if there is one.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"erniem_fast {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """ErnieM under transformers 5, padding-free."""
    # What they would say of a checkpoint stands in our own messages.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@app.command("embed")
def embed_command(
    texts: Annotated[Path, typer.Argument(metavar="TEXTS", help="UTF-8, one text a line.", show_default=False)],
    model: ModelOption,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The .npy file to write: float32 (lines, hidden).", show_default=False)
    ],
    pooling: Annotated[
        str,
        typer.Option(
            metavar="|".join(POOLINGS),
            help="mean: of all of a text's tokens, special tokens included. "
            "cls: its first token's last hidden state (not the pooler's output).",
        ),
    ] = "mean",
    batch_tokens: Annotated[
        str, typer.Option(metavar="N", help="Most tokens of a batch; a longer text makes a batch alone.")
    ] = "8192",
    dtype: Annotated[str, typer.Option(metavar="TYPE", help=f"What to compute in: {', '.join(DTYPES)}.")] = "float32",
    device: DeviceOption = "auto",
) -> None:
    """Turn each line of TEXTS into a vector.

    Vectors stand in the order of the lines; an empty line gives zeros.

    Texts of more tokens than the model takes are cut.

    FILE is written at once at the end, or not at all.
    """
    for name, value, accepted in (("--pooling", pooling, POOLINGS), ("--dtype", dtype, DTYPES)):
        if value not in accepted:
            raise InputError(f"{name} {value!r}: expected one of {', '.join(accepted)}")
    tokens_per_batch = parse_count("--batch-tokens", batch_tokens)
    place = parse_device(device)
    if os.path.exists(out) and os.path.exists(texts) and os.path.samefile(out, texts):
        raise InputError(f"--out {str(out)!r}: is TEXTS itself; expected another file")
    with replacing(out) as temporary:
        lines = read_texts(texts)
        config = load_config(model)
        tokenizer = load_tokenizer(model, config)
        vectors = allocate(temporary, (len(lines), config.hidden_size), out)
        encoder = load_encoder(model, getattr(torch, dtype), place)
        sequences, truncated = tokenize(lines, tokenizer, config.max_tokens, progress=True)
        for indices, rows in embed(encoder, sequences, pooling, tokens_per_batch, progress=True):
            if not np.isfinite(rows).all():
                raise InputError(
                    f"--dtype {dtype!r}: some vectors are not finite; expected finite weights, "
                    f"and a dtype that holds what the model computes"
                )
            vectors[indices] = rows
        vectors.flush()
    if truncated:
        typer.echo(f"{truncated} of {len(lines)} texts were cut to {config.max_tokens} tokens", err=True)


@app.command("verify")
def verify_command(model: ModelOption, device: DeviceOption = "auto") -> None:
    """Say what a checkpoint holds, and compare the padding-free model with the reference on real text.

    Exit code 1 if they differ, or if parameters other than the pooler's have no weights.
    """
    problems = run_verify(model, parse_device(device), typer.echo)
    typer.echo()
    for line in [f"WRONG: {problem}" for problem in problems] or ["The models agree."]:
        typer.echo(line)
    if problems:
        raise typer.Exit(1)


@app.command("demo")
def demo_command(
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A real checkpoint instead of random weights.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The .npy file to write.")] = Path("demo-vectors.npy"),
    device: DeviceOption = "auto",
) -> None:
    """Encode 96 shipped documents in 23 languages by the padded reference and by the padding-free model."""
    run_demo(model, out, parse_device(device), typer.echo)


@app.command("warm-up")
def warm_up_command(
    model: ModelOption,
    dtype: Annotated[str, typer.Option(metavar="TYPE", help=f"Of the weights: {', '.join(DTYPES)}.")] = "bfloat16",
    training: Annotated[
        bool, typer.Option("--training", help="Backward and dropout, too, with and without autocast to TYPE.")
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Compile the GPU kernels that a model will need; triton keeps them on disk."""
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    place = parse_device(device)
    if place.type != "cuda":
        raise InputError(f"--device {device!r}: there is no CUDA device to compile for; a CPU needs no kernels")
    try:
        warm_up(load_config(model), place, getattr(torch, dtype), training, progress=True)
    except ValueError as error:
        raise InputError(str(error)) from error


def parse_count(name: str, value: str) -> int:
    """A whole number of at least 1.

    Raises:
        InputError: it isn't.
    """
    number = int(value) if value.isascii() and value.isdigit() and len(value) < 19 else 0
    if number < 1:
        raise InputError(f"{name} {value!r}: expected a whole number of at least 1")
    return number


def parse_device(name: str) -> torch.device:
    """A device that is there.

    Raises:
        InputError: it isn't, or it is neither a CPU nor a CUDA device.
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


def read_texts(path: Path) -> list[str]:
    r"""The lines of a UTF-8 file, without their "\n" or "\r\n" and without a byte order mark.

    Raises:
        InputError: the file can't be read, is empty, or is not UTF-8.
    """
    accepted = "expected a UTF-8 text file, one text a line"
    texts = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    texts.append(
                        line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
                    )
                except UnicodeDecodeError as error:
                    raise InputError(f"TEXTS {str(path)!r}: line {number} is not UTF-8; {accepted}") from error
    except OSError as error:
        raise InputError(f"TEXTS {str(path)!r}: {error.strerror}; {accepted}") from error
    if not texts:
        raise InputError(f"TEXTS {str(path)!r}: the file is empty; {accepted}")
    return texts


if __name__ == "__main__":
    app()
