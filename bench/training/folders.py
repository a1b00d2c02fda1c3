"""Folders that runs begin from and leave: encoders with random weights, and logs."""

import json
from pathlib import Path
from typing import Any

import torch

from bench.engine.environment import ROOT
from erniem_fast import ErnieMConfig, ErnieMModel, ErnieMTokenizer

GOLDEN = ROOT / "tests" / "golden" / "tokenizer"


def golden_tokenizer() -> ErnieMTokenizer:
    """A vocabulary of 16,003 tokens, made of the texts of XQuAD, Tatoeba and others."""
    return ErnieMTokenizer(GOLDEN / "sentencepiece.bpe.model", GOLDEN / "vocab.txt")


def save_random(folder: Path, tokenizer: ErnieMTokenizer, **sizes: Any) -> None:
    """Save an encoder with random weights, the same each time, and its tokenizer.

    Args:
        folder: to write.
        tokenizer: of the encoder.
        sizes: further values of its configuration.
    """
    torch.manual_seed(0)
    ErnieMModel(ErnieMConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def log_of(folder: Path) -> list[dict[str, Any]]:
    """What was logged of a run, a dict for each time."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
