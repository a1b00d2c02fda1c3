"""Tiny checkpoints of ErnieM, one for each head."""

from pathlib import Path
from typing import Any

import erniem_fast
from erniem_fast import ErnieMConfig
from helpers.golden_tokenizer import build

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "initializer_range": 0.2, "max_position_embeddings": 42,
}  # fmt: skip
TEXTS = ["The cat sat on the mat.", "Où est la gare la plus proche ?", "今日は良い天気です。", "word " * 60]
LABELS = {0: "entailment", 1: "neutral", 2: "contradiction"}
TAGS = {0: "O", 1: "B-PER", 2: "I-PER"}
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "vectors": ("ErnieMModel", {}),
    "labels": ("ErnieMForSequenceClassification", {"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}}),
    "ranks": ("ErnieMForSequenceClassification", {"num_labels": 1}),
    "tags": ("ErnieMForTokenClassification", {"id2label": TAGS, "label2id": {v: k for k, v in TAGS.items()}}),
    "answers": ("ErnieMForQuestionAnswering", {}),
    "records": ("ErnieMForInformationExtraction", {}),
}


def save_head(folder: Path, head: str) -> Path:
    """Save a checkpoint with fresh random weights.

    Args:
        folder: made.
        head: a key of `HEADS`.
    """
    cls, changes = HEADS[head]
    tokenizer = build()
    config = ErnieMConfig(vocab_size=len(tokenizer), **SIZES, **changes)
    getattr(erniem_fast, cls)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
