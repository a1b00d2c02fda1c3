"""The command line `erniem-fast`; commands with much to say have files of their own."""

from typing import Annotated

import transformers
import typer
from huggingface_hub import constants
from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]

from ..files.atomic import STANDARD_STREAM
from ..inference.loading import load_config
from ..version import __version__
from . import finetune_embed, finetune_multiple_choice, finetune_spans, finetune_tag  # noqa: F401  (they add commands)
from .answer import answer_command
from .classify import classify_command
from .convert import convert_command
from .demo import demo as run_demo
from .embed import embed_command
from .errors import InputError, OneLineErrors, say_on_stderr
from .export import export_command
from .extract import extract_command
from .finetune import app as finetune_app
from .options import DTYPES, DeviceOption, ModelOption, parse_device, parse_dtype
from .pretrain import pretrain_command
from .serve import serve_command
from .tag import tag_command
from .verify import verify as run_verify
from .warm_up import warm_up
from .zero_shot import zero_shot_command

app = typer.Typer(cls=OneLineErrors, add_completion=False, pretty_exceptions_enable=False)


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
    """ErnieM under transformers 5, and other encoders, padding-free."""
    # The commands report problems of a checkpoint themselves.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not constants.HF_HUB_DISABLE_PROGRESS_BARS:
        enable_progress_bars()  # of downloads, which the line above disables, too


app.command("embed")(embed_command)
app.command("classify")(classify_command)
app.command("zero-shot")(zero_shot_command)
app.command("tag")(tag_command)
app.command("answer")(answer_command)
app.command("extract")(extract_command)
app.command("export")(export_command)
app.command("convert")(convert_command)
app.command("pretrain")(pretrain_command)
app.command("serve")(serve_command)
app.add_typer(finetune_app, name="finetune")


@app.command("verify")
def verify_command(model: ModelOption, device: DeviceOption = "auto") -> None:
    """Say what a checkpoint holds, and compare the padding-free model with the padded one on real text.

    The padded one is our reference for ErnieM, and transformers' own model for every other family.

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
    weights = parse_dtype(dtype)
    place = parse_device(device)
    if place.type != "cuda":
        raise InputError(f"--device {device!r}: there is no CUDA device to compile for; a CPU needs no kernels")
    try:
        warm_up(load_config(model, any_family=True), place, weights, training, progress=True)
    except ValueError as error:
        raise InputError(str(error)) from error


if __name__ == "__main__":
    app()
