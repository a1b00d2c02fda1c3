"""`erniem-fast convert`: a checkpoint of PaddleNLP's as a folder that transformers loads."""

from typing import Annotated

import typer

from .. import paddle
from .errors import InputError
from .folders import whole_folder


def convert_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="Folder with a .pdparams file, config.json or model_config.json, vocab.txt and "
            "sentencepiece.bpe.model.",
            show_default=False,
        ),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The folder to write, new or empty.", show_default=False)],
) -> None:
    """Turn a PaddleNLP checkpoint, ERNIE-M with any head or UIE-M, into a folder with config.json and safetensors.

    Nothing that the .pdparams file asks to run is run. OUT is written at once at the end, or not at all.
    """
    with whole_folder("OUT", out) as folder:
        try:
            loaded = paddle.load(source, progress=True)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"IN {source!r}: {reason}; expected a folder as PaddleNLP saves ERNIE-M") from error
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    model, config = loaded.model, loaded.model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    typer.echo(
        f"{out}: {type(model).__name__} of {loaded.architecture}: {config.num_hidden_layers} layers of width "
        f"{config.hidden_size}, {parameters:,} parameters in {str(model.dtype).removeprefix('torch.')}, "
        f"{len(loaded.tokenizer):,} tokens"
    )
    if loaded.dropped:
        typer.echo(f"{', '.join(loaded.dropped)}: left out, {type(model).__name__} has no pooler")
