"""A model of one layer, for tests of what runs it, and checkpoints with fresh random weights."""

from pathlib import Path
from typing import Any

import torch

import erniem_fast
from erniem_fast import ErnieMConfig, ErnieMModel, ErnieMTokenizer

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip


def small_model() -> ErnieMModel:
    """With fresh random weights, in eval mode."""
    return ErnieMModel(ErnieMConfig(**SIZES), add_pooling_layer=False).eval()


def save_checkpoint(folder: Path, tokenizer: ErnieMTokenizer, name: str = "ErnieMModel", **sizes: Any) -> Path:
    """Save an ErnieM with fresh random weights, none of them zero, and its tokenizer into a folder."""
    model = getattr(erniem_fast, name)(ErnieMConfig(**({"vocab_size": len(tokenizer)} | sizes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
