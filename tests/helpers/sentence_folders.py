"""Folders as sentence-transformers writes them, and what their settings make of texts on packed rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from erniem_fast import ErnieMConfig, ErnieMModel, PackedBatch
from erniem_fast.inference.pooling import pool
from erniem_fast.inference.settings import lowercase, prompt_length, read_settings
from erniem_fast.padding_free import padding_free
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


def vectors_of(folder: Path, texts: list[str], prompt: str = "") -> np.ndarray:
    """Vectors of texts by the folder's settings, the packed encoder and our poolings."""
    settings = read_settings(str(folder))
    place = folder / settings.model_folder
    model = padding_free(AutoModel.from_pretrained(place)).eval()
    tokenizer = AutoTokenizer.from_pretrained(place)
    most = min(settings.max_seq_length or model.limits.max_tokens, model.limits.max_tokens)
    if settings.lowercase:
        lowercase(tokenizer)
    rows = tokenizer([prompt + text for text in texts], truncation=True, max_length=most)["input_ids"]
    batch = PackedBatch.from_sequences(rows, first_position=model.limits.first_position)
    skip = None
    if not settings.include_prompt:
        skip = torch.full((len(texts),), prompt_length(tokenizer, prompt, most))
    with torch.inference_mode():
        output = model(batch, return_packed=True)
        vectors = pool(batch, output.last_hidden_state, output.pooler_output, settings.pooling, skip)
        for module in settings.modules:
            vectors = module(vectors)
    return vectors[:, : settings.truncate_dim].numpy()
