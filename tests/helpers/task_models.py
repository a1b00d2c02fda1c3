"""Small heads of every family, as transformers runs them and padding-free, with tokenizers."""

import copy
from typing import Any

import torch

from erniem_fast import padding_free
from helpers import family_folders, golden_tokenizer, pairs
from helpers.documents import TEXTS

MAX_TOKENS = 64
FAMILIES = ["ErnieM", *family_folders.FAMILIES]
SHORT = [text[:40] for text in TEXTS[::16]]
MIXED = [SHORT[0], TEXTS[7], "", SHORT[1], TEXTS[39], "a"]
"""Texts that a model takes as a whole, and longer ones."""


def make(family: str, head: str, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[Any, Any, Any]:
    """A head of transformers (of ErnieM the reference), the padding-free one with its weights, and a tokenizer."""
    if family == "ErnieM":
        tokenizer: Any = golden_tokenizer.build(model_max_length=MAX_TOKENS)
        size = {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS + 2}
        plain, fast = pairs.make(f"ErnieM{head}", dtype, noise=0.2, **size, **changes)
        return plain, fast, tokenizer
    plain, tokenizer = family_folders.build(family, head, MAX_TOKENS, **changes)
    plain = plain.to(dtype).eval()
    tokenizer.model_max_length = MAX_TOKENS
    if family == "DistilBert":  # whose own tokenizer gives no token types
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return plain, padding_free(copy.deepcopy(plain)), tokenizer


def labels(*names: str) -> dict[str, Any]:
    """Fields of a configuration."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
