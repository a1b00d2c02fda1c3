"""ONNX files of the models, by torch.export.

from erniem_fast.export import export_onnx
export_onnx(model, "model.onnx")
"""

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from .pretrained import ErnieMPreTrainedModel
from .version import __version__

OPSET = 18
"""Version of ONNX's operators: onnxruntime reads it from 1.14 on."""
INPUTS = ("input_ids", "attention_mask")
INSTALL = "pip install 'erniem_fast[export]'"
DTYPES = (torch.float32, torch.float16)
"""Dtypes that onnxruntime computes on CPUs, float16 in part by float32; it has neither bfloat16 nor float64."""
OPTIONS = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}


def export_onnx(model: Any, path: str | os.PathLike[str]) -> Path:
    """Write a model, base or head, as an ONNX file for batches of any size and length.

    Inputs are `input_ids` and `attention_mask`, int64 (batch, sequence), or (batch, choices, sequence) for multiple
    choice; outputs are those of the model by name, at padding, too. The file computes in the model's dtype, and
    computes padding, since shapes in ONNX do not depend on values. Weights of more than 2 GB go into a second file
    beside it, `path` with ".data" behind it. Files are in place as a whole at the end, or not at all.

    Args:
        model: an instance of a class in `erniem_fast` in eval mode, in float32, or float16 at that precision. Adapters
            must be merged.
        path: of the file.

    Returns:
        The path.

    Raises:
        ImportError: the packages onnx and onnxscript are missing.
        TypeError: the model is none of these classes.
        ValueError: the model is in training mode, or of a dtype that onnxruntime does not compute on CPUs.
        OSError: `path` is a folder, or in none; or the file can't be written.
    """
    check_packages()
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"path={os.fspath(path)!r}: expected the file to write, got a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path={os.fspath(path)!r}: expected a file in a folder that exists")
    if not isinstance(model, ErnieMPreTrainedModel):
        raise TypeError(f"model must be an ErnieM model, adapters merged, got {type(model).__name__}")
    if any(module.training for module in model.modules()):
        raise ValueError("model must be in eval mode, model.eval(), got one whose dropout is on")
    if model.dtype not in DTYPES:
        raise ValueError(f"model must be float32, model.float(), or float16 for an ONNX file, got {model.dtype}")
    inputs, names = _example(model)
    dims = [Dim(name, max=model.config.max_tokens) if name == "sequence" else Dim(name) for name in names]
    shapes = {name: dict(enumerate(dims)) for name in inputs}
    with torch.no_grad(), _without_notices():
        outputs = list(model(**inputs, **OPTIONS))
        traced = torch.export.export(
            model, (), {**inputs, **OPTIONS}, dynamic_shapes=shapes | dict.fromkeys(OPTIONS), strict=False
        )
        program: Any = torch.onnx.export(
            traced, dynamo=True, dynamic_shapes=shapes, input_names=list(inputs), output_names=outputs,
            opset_version=OPSET, verbose=False,
        )  # fmt: skip
    for node in program.model.graph:
        node.metadata_props.clear()  # source lines and paths of this machine
    program.model.metadata_props.update(
        {"model_type": model.config.model_type, "architecture": type(model).__name__, "erniem_fast": __version__}
    )
    return _write(program, path)


def onnx_difference(model: Any, path: str | os.PathLike[str], batches: list[dict[str, Tensor]]) -> float:
    """Largest difference between a model and its ONNX file, which onnxruntime runs on the CPU.

    Args:
        model: the model, on a CPU.
        path: of the file.
        batches: `input_ids` and `attention_mask`, any number of batches.

    Returns:
        Over all outputs, padding included, of |difference| / max(1, largest magnitude at real positions). NaN where
        either is.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch in batches:
        with torch.inference_mode():
            expected = model(**batch, **OPTIONS)
        found = session.run(list(expected), {name: batch[name].numpy() for name in INPUTS})
        for value, other in zip(expected.values(), found, strict=True):
            value, other = value.double(), torch.from_numpy(np.asarray(other)).double()
            lowest = torch.finfo(model.dtype).min
            magnitude = value.abs().masked_fill(value == lowest, 0.0).amax().clamp(min=1.0)
            differences = torch.where(value == other, 0.0, (value - other).abs()) / magnitude
            largest = max(largest, differences.amax().item(), key=lambda x: (x != x, x))
    return largest


def check_packages() -> None:
    """Raise an ImportError where the packages are missing that the export needs."""
    if missing := [package for package in ("onnx", "onnxscript") if find_spec(package) is None]:
        raise ImportError(f"ONNX export needs the package {' and '.join(missing)}: {INSTALL}")


def _example(model: Any) -> tuple[dict[str, Tensor], list[str]]:
    """A batch to trace with, and the names of its dimensions; sizes above 1, which torch.export takes for variable."""
    names = ["batch", "choices", "sequence"] if "MultipleChoice" in type(model).__name__ else ["batch", "sequence"]
    ids = torch.zeros([2] * len(names), dtype=torch.int64, device=model.device)
    return dict(zip(INPUTS, (ids, torch.ones_like(ids)), strict=True)), names


@contextmanager
def _without_notices() -> Iterator[None]:
    """Keep torch.onnx from telling what concerns itself: operators of torchvision, a dimension named twice."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="# The axis name")
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
            yield
    finally:
        logger.setLevel(level)


def _write(program: Any, path: Path) -> Path:
    with tempfile.TemporaryDirectory(prefix=".erniem-fast-", dir=path.parent) as folder:
        # The file names its weights: it must have its own name already.
        program.save(os.fspath(Path(folder) / path.name))
        written = sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name)
        for file in written:  # the weights first
            os.replace(file, path.parent / file.name)
        if len(written) == 1:  # those of a file that was replaced
            path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    return path
