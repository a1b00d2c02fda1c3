"""`erniem-fast convert`: a Paddle checkpoint as a folder that transformers loads."""

from typing import Annotated

import typer

from .. import paddle
from .errors import InputError
from .folders import whole_folder

ACCEPTED = "expected a folder of ERNIE-M or ERNIE as PaddleNLP or ERNIE's repository lays it out"


def convert_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="Folder with a .pdparams file, config.json, model_config.json or ernie_config.json, vocab.txt, and "
            "sentencepiece.bpe.model of ERNIE-M.",
            show_default=False,
        ),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The folder to write, new or empty.", show_default=False)],
) -> None:
    """Turn a checkpoint of PaddleNLP or of ERNIE's repository into a folder with config.json and safetensors.

    It is ERNIE-M with any head or UIE-M, or ERNIE 1.0, 2.0, 3.0, Tiny or Gram zh, which transformers alone loads.
    Nothing that the .pdparams file asks to run is run. OUT is written at once at the end, or not at all.
    """
    with whole_folder("OUT", out) as folder:
        try:
            loaded = paddle.load(source, progress=True)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split()).removeprefix(f"{source!r} ")
            raise InputError(f"IN {source!r}: {reason} ({ACCEPTED})") from error
        loaded.save(folder)
    model, config = loaded.model, loaded.model.config
    name = type(model).__name__
    source_name = "" if loaded.architecture == name else f" of {loaded.architecture}"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tokens = "no tokenizer" if loaded.tokenizer is None else f"{len(loaded.tokenizer):,} tokens"
    typer.echo(
        f"{out}: {name}{source_name}: {config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"{parameters:,} parameters in {str(model.dtype).removeprefix('torch.')}, {tokens}"
    )
    if loaded.dropped:
        typer.echo(f"{', '.join(loaded.dropped)}: left out, {name} does not read it")
    if loaded.kept:
        typer.echo(f"{', '.join(loaded.kept)}: kept, though {name} does not read it: the encoder by itself does")
    if loaded.tokenizer is None:
        typer.echo("its tokenizer cuts words by a list of its own, then by SentencePiece: transformers has none such")
