"""What the command line says about the machine that serves: texts, the peers' Python; and what is installed."""

import argparse
import json
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import sentencepiece as spm
import torch
from transformers import XLMRobertaTokenizerFast

from bench.engine.registry import Needs
from bench.engine.shapes import Setting, Shape

PACKAGES = ("openvino", "onnxruntime", "sentence-transformers", "optimum-intel", "optimum-onnx", "tokenizers")
VERSIONS = """
import json, platform
from importlib.metadata import PackageNotFoundError, version
def of(name):
    try: return version(name)
    except PackageNotFoundError: return None
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
    group.add_argument("--texts", type=Path, metavar="DIR", help="folder with xquad/xquad.*.json and tatoeba/tatoeba.*")
    group.add_argument(
        "--peer-python", metavar="FILE", help="Python of an environment with sentence-transformers[onnx,openvino]"
    )


def versions() -> dict[str, str | None]:
    """Versions of the peers' packages, here and, named "peers' ...", in the environment of their own."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    if SETUP.peer_python is not None:
        names = ("torch", "transformers", *PACKAGES)
        code = f"{VERSIONS}print(json.dumps({{name: of(name) for name in {names!r}}}))"
        done = subprocess.run([SETUP.peer_python, "-c", code], capture_output=True, text=True, check=True)
        found |= {f"peers' {name}": value for name, value in json.loads(done.stdout).items()}
    return found


def needs_package(name: str, further: Needs | None = None) -> Needs:
    """Condition of a provider: the package is installed, and whatever else it needs."""

    def needs(shape: Shape, setting: Setting) -> str | None:
        if find_spec(name) is None:
            return f"{name} is not installed"
        return None if further is None else further(shape, setting)

    return needs


@cache
def multiplies_bfloat16() -> bool:
    """True if the processor has matrix units for bfloat16."""
    return torch.cpu._is_amx_tile_supported()


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
