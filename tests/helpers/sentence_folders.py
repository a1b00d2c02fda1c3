"""Folders as sentence-transformers writes them."""

import json
from pathlib import Path
from typing import Any

import torch

from erniem_fast import ErnieMConfig, ErnieMModel
from helpers.family_folders import MAX_TOKENS, SIZES, save_family
from helpers.golden_tokenizer import build


def save_encoder(folder: Path, family: str) -> Path:
    """Save a tiny encoder with random weights, of at most `MAX_TOKENS` tokens."""
    if family != "ErnieM":
        return save_family(folder, family, max_tokens=MAX_TOKENS)
    tokenizer = build()
    model = ErnieMModel(ErnieMConfig(vocab_size=len(tokenizer), max_position_embeddings=MAX_TOKENS + 2, **SIZES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def change_json(file: Path, **changes: Any) -> None:
    """Set fields of a JSON file, which need not exist; None takes one away."""
    held = json.loads(file.read_text()) if file.exists() else {}
    held = {name: value for name, value in (held | changes).items() if value is not None}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(held))
