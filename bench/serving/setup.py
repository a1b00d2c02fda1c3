"""What the command line says about the machine that serves: texts, the peers' Python; and what is installed."""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sentencepiece as spm
import torch
from transformers import XLMRobertaTokenizerFast

from bench.engine.registry import Needs
from bench.engine.shapes import Setting, Shape
from erniem_fast.inference.precision import auto_dtype

from .corpus import corpus

PACKAGES = ("openvino", "onnxruntime", "sentence-transformers", "optimum-intel", "optimum-onnx", "tokenizers")
VERSIONS = """
import json
from importlib.metadata import distributions
print(json.dumps({one.name: one.version for one in distributions()}))
"""


@dataclass
class Setup:
    """Options of the part; `bench.run` sets them.

    Attributes:
        texts: folder that holds `xquad` and `tatoeba`; None: the texts of the checkout, repeated.
        peer_python: Python whose environment holds sentence-transformers' onnx and openvino backends, or None.
    """

    texts: Path | None = None
    peer_python: str | None = None


SETUP = Setup()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the part."""
    group = parser.add_argument_group("serving")
    group.add_argument(
        "--texts", type=_texts, metavar="DIR", help="folder with xquad/xquad.*.json and tatoeba/tatoeba.*"
    )
    group.add_argument(
        "--peer-python", type=_python, metavar="FILE",
        help="Python of an environment with sentence-transformers[onnx,openvino]",
    )  # fmt: skip


def _texts(name: str) -> Path:
    try:
        corpus(Path(name))
    except FileNotFoundError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(name)


def _python(name: str) -> str:
    if shutil.which(name) is None:
        raise argparse.ArgumentTypeError(f"{name!r} is not a program; expected one such as peers/bin/python")
    return name


def describe() -> dict[str, Any]:
    """What the part's figures depend on beside the machine: texts, and versions of the peers' packages.

    Those of the environment of their own are named "peers' ...".
    """
    versions = {name: found for name, found in _versions(sys.executable).items() if name in PACKAGES}
    if SETUP.peer_python is not None:
        theirs = _versions(SETUP.peer_python)
        versions |= {f"peers' {name}": theirs.get(name) for name in ("torch", "transformers", *PACKAGES)}
    return {"texts": corpus(SETUP.texts).source, "versions": dict.fromkeys(PACKAGES) | versions}


def _versions(python: str) -> dict[str, str | None]:
    done = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True)
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


def needs_package(name: str, further: Needs | None = None) -> Needs:
    """Condition of a provider: the package is installed, and whatever else it needs."""

    def needs(shape: Shape, setting: Setting) -> str | None:
        if find_spec(name) is None:
            return f"{name} is not installed"
        return None if further is None else further(shape, setting)

    return needs


def multiplies_bfloat16() -> bool:
    """True if `dtype="auto"` takes bfloat16 on this processor."""
    return auto_dtype(torch.device("cpu")) == torch.bfloat16


def needs_matrix_units(shape: Shape, setting: Setting) -> str | None:
    """Reason why a case in bfloat16 is left out, or None."""
    if setting.dtype == torch.bfloat16 and not multiplies_bfloat16():
        return "the processor has no matrix units for bfloat16"
    return None


def needs_float32(shape: Shape, setting: Setting) -> str | None:
    """Reason why a provider that computes in float32 alone is left out, or None."""
    return None if setting.dtype == torch.float32 else "is measured in float32 only"


def rust_tokenizer(processor: spm.SentencePieceProcessor) -> XLMRobertaTokenizerFast:
    """XLM-R's tokenizer with the pieces of a SentencePiece model, but without its normaliser, which saves it time."""
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(3, processor.get_piece_size())]
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    return XLMRobertaTokenizerFast(vocab=[*special, *pieces, ("<mask>", 0.0)])
