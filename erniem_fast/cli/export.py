"""`erniem-fast export`: a checkpoint as a folder for onnxruntime."""

from importlib.util import find_spec
from typing import Annotated, Any

import torch
import typer

from .. import modeling
from ..export import check_packages, export_onnx, onnx_difference
from ..inference.loading import CheckpointError, load_config, load_encoder, load_head, load_tokenizer
from ..inference.progress import progress_bar
from ..inference.texts import TextTokens
from .errors import InputError
from .folders import whole_folder
from .options import ModelOption
from .verify import HEADS, TOLERANCE, pad, sample

CPU = torch.device("cpu")


def export_command(
    model: ModelOption,
    onnx: Annotated[str, typer.Option(metavar="DIR", help="The folder to write, new or empty.", show_default=False)],
) -> None:
    """Write a checkpoint as ONNX: model.onnx, config.json and the tokenizer's files.

    The model is the class that config.json names, in float32. Batch and length are free.

    Where onnxruntime is installed, the file is compared with the model on real text.

    DIR is written at once at the end, or not at all.
    """
    try:
        check_packages()
    except ImportError as error:
        raise InputError(str(error)) from error
    with whole_folder("--onnx", onnx) as folder:
        config = load_config(model)
        tokenizer = load_tokenizer(model, config)
        network = _load(model, config)
        report = "onnxruntime is not installed: the file has not been run"
        with progress_bar(2, "Exporting", " steps", True) as bar:
            file = export_onnx(network, folder / "model.onnx")
            network.config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            bar.update()
            if find_spec("onnxruntime"):
                difference = onnx_difference(network, file, _batches(network, tokenizer))
                report = f"largest difference from the model, by onnxruntime on real text: {difference:.1e}"
                if not difference <= TOLERANCE:
                    raise InputError(f"--model {model!r}: {report}; expected at most {TOLERANCE:.0e}")
            bar.update()
    typer.echo(f"{onnx}: {type(network).__name__}; {report}")


def _load(name: str, config: Any) -> Any:
    """The model that config.json names, the encoder if it names none; without a pooler where the weights lack it."""
    named = next(iter(config.architectures or []), "")
    if named in HEADS:
        return load_head(name, getattr(modeling, named), config, torch.float32, CPU)
    try:
        return load_encoder(name, torch.float32, CPU, pooler=True)
    except CheckpointError:
        return load_encoder(name, torch.float32, CPU)


def _batches(network: Any, tokenizer: Any) -> list[dict[str, torch.Tensor]]:
    """Real text as the file may get it: padded on the right, on the left, and one text alone."""
    config = network.config
    texts = [text for _, text in sample()[:12]]
    rows = TextTokens(tokenizer, config.max_tokens).tokenize(texts)
    sequences = sorted((row.ids for row in rows), key=len)
    right = pad(sequences[:5], config.pad_token_id, CPU)
    shifts = (right[1] == 0).sum(1).tolist()
    left = [torch.stack([row.roll(shift) for row, shift in zip(rows, shifts, strict=True)]) for rows in right]
    batches = [right, (left[0], left[1])]
    if not hasattr(network, "lm_head"):  # whose logits are 250,002 a token
        batches.append(pad(sequences[-1:], config.pad_token_id, CPU))
    if "MultipleChoice" in type(network).__name__:
        batches = [(ids[None], mask[None]) for ids, mask in batches]
    return [{"input_ids": ids, "attention_mask": mask} for ids, mask in batches]
