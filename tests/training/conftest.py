"""Small data, a small checkpoint, and runs on them."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import GOLDEN_TOKENIZER
from helpers.small_models import save_checkpoint

from erniem_fast import ErnieMTokenizer

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 66,
}  # fmt: skip
WORDS = {"animal": ["cat", "dog", "Hund", "chat"], "colour": ["red", "blau", "rouge", "青"]}


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save an ErnieM with fresh random weights, and the stand-in tokenizer."""
    tokenizer = ErnieMTokenizer(GOLDEN_TOKENIZER / "sentencepiece.bpe.model", GOLDEN_TOKENIZER / "vocab.txt")

    def save(name: str = "ErnieMModel", **changes: Any) -> Path:
        return save_checkpoint(tmp_path_factory.mktemp("model"), tokenizer, name, **SIZES | changes)

    return save


@pytest.fixture(scope="session")
def checkpoint(save_model: Callable[..., Path]) -> Path:
    """An encoder without a head."""
    return save_model()


@pytest.fixture
def examples(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of texts of one kind of words each, and the kind as their label."""

    def write(name: str, count: int, **more: Any) -> Path:
        draw, path = random.Random(), tmp_path / name
        with path.open("w", encoding="utf-8") as file:
            for _ in range(count):
                label = draw.choice(list(WORDS))
                text = " ".join(draw.choices(WORDS[label], k=draw.randint(1, 12)))
                file.write(json.dumps({"text": text, "label": label, **more}, ensure_ascii=False) + "\n")
        return path

    return write
