"""The command line: `erniem-fast embed`, `verify`, `demo` and `warm-up`."""

from typing import Annotated

import numpy as np
import torch
import transformers
import typer
from huggingface_hub import constants
from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]

from ..inference.embed import embed, tokenize
from ..inference.pooling import POOLINGS
from ..version import __version__
from .demo import demo as run_demo
from .errors import InputError, OneLineErrors, say_on_stderr
from .files import STANDARD_STREAM, check_distinct, check_texts, read_texts, vector_file
from .loading import load_config, load_encoder, load_tokenizer
from .verify import verify as run_verify
from .warm_up import warm_up

DTYPES = ("float32", "bfloat16", "float16")

app = typer.Typer(cls=OneLineErrors, add_completion=False, pretty_exceptions_enable=False)

ModelOption = Annotated[
    str,
    typer.Option(
        metavar="DIR|ID",
        help="Folder with config.json, the weights and the tokenizer, or the id of such a model on the Hugging Face "
        "Hub (user/name).",
        show_default=False,
    ),
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
    # The commands report problems of a checkpoint themselves.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not constants.HF_HUB_DISABLE_PROGRESS_BARS:
        enable_progress_bars()  # of downloads, which the line above disables, too


@app.command("embed")
def embed_command(
    texts: Annotated[
        str,
        typer.Argument(
            metavar="TEXTS", help="UTF-8, one text a line: .txt or no ending, or - for stdin.", show_default=False
        ),
    ],
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
    batch_tokens: Annotated[
        str, typer.Option(metavar="N", help="Most tokens of a batch; a longer text makes a batch alone.")
    ] = "8192",
    dtype: Annotated[str, typer.Option(metavar="TYPE", help=f"What to compute in: {', '.join(DTYPES)}.")] = "float32",
    device: DeviceOption = "auto",
) -> None:
    """Turn each line of TEXTS into a vector.

    Vectors come in the order of the lines; an empty line gives zeros.

    Texts of more tokens than the model takes are cut.

    FILE is written at once at the end, or not at all.
    """
    for name, value, accepted in (("--pooling", pooling, tuple(POOLINGS)), ("--dtype", dtype, DTYPES)):
        if value not in accepted:
            raise InputError(f"{name} {value!r}: expected one of {', '.join(accepted)}")
    tokens_per_batch = parse_count("--batch-tokens", batch_tokens)
    place = parse_device(device)
    check_texts(texts)
    check_distinct(texts, out)
    with vector_file(out) as file:
        lines = read_texts(texts)
        config = load_config(model)
        tokenizer = load_tokenizer(model, config)
        file.allocate(len(lines), config.hidden_size)
        encoder = load_encoder(model, getattr(torch, dtype), place, POOLINGS[pooling].reads_pooler)
        sequences, truncated = tokenize(lines, tokenizer, config.max_tokens, progress=True)
        for indices, vectors in embed(encoder, sequences, pooling, tokens_per_batch, progress=True):
            if not np.isfinite(vectors).all():
                raise InputError(
                    f"--dtype {dtype!r}: some vectors are not finite; expected finite weights, "
                    f"and a dtype that holds what the model computes"
                )
            file.write(indices, vectors)
    if truncated:
        say_on_stderr(f"{truncated} of {len(lines)} texts were cut to {config.max_tokens} tokens")


@app.command("verify")
def verify_command(model: ModelOption, device: DeviceOption = "auto") -> None:
    """Say what a checkpoint holds, and compare the padding-free model with the reference on real text.

    Exit code 1 if they differ, or if parameters other than the pooler's have no weights, or weights no parameters.
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
        str | None,
        typer.Option(metavar="DIR|ID", help="A real checkpoint instead of random weights.", show_default=False),
    ] = None,
    out: Annotated[
        str, typer.Option(metavar="FILE", help="The .npy file to write, or - for stdout.")
    ] = "demo-vectors.npy",
    device: DeviceOption = "auto",
) -> None:
    """Encode 96 shipped documents in 23 languages by the padded reference and by the padding-free model."""
    say = say_on_stderr if out == STANDARD_STREAM else typer.echo
    run_demo(model, out, parse_device(device), say)


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
    """Parse a whole number of at least 1.

    Raises:
        InputError: the value is anything else.
    """
    number = int(value) if value.isascii() and value.isdigit() and len(value) < 19 else 0
    if number < 1:
        raise InputError(f"{name} {value!r}: expected a whole number of at least 1")
    return number


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


if __name__ == "__main__":
    app()
