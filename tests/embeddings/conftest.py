"""Small checkpoints, texts and sentence pairs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.embedders import NO_DROPOUT, embedder, padded
from helpers.paths import GOLDEN_TOKENIZER, ROOT
from sentence_transformers import CrossEncoder

import erniem_fast
from erniem_fast import ErnieMConfig, ErnieMTokenizer
from erniem_fast.sentence_transformers import Transformer

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "initializer_range": 0.2,
}  # fmt: skip
Save = Callable[..., str]
"""Saves a checkpoint of a class, "ErnieMModel" by default, with other configuration; returns its folder."""


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Save:
    tokenizer = ErnieMTokenizer(GOLDEN_TOKENIZER / "sentencepiece.bpe.model", GOLDEN_TOKENIZER / "vocab.txt")

    def make(name: str = "ErnieMModel", **changes: Any) -> str:
        folder = tmp_path_factory.mktemp(name)
        config = ErnieMConfig(vocab_size=len(tokenizer), **SIZES, **changes)
        getattr(erniem_fast, name)(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture(scope="session")
def folder(save: Save) -> str:
    """A base model without dropout."""
    return save(**NO_DROPOUT)


@pytest.fixture(scope="session")
def classifier(save: Save) -> str:
    """A sequence classifier of three labels without dropout."""
    return save("ErnieMForSequenceClassification", id2label={0: "no", 1: "maybe", 2: "yes"}, **NO_DROPOUT)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Documents of 1 to 500 tokens in 23 languages."""
    lines = (ROOT / "erniem_fast" / "demo_data" / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="session")
def pairs() -> dict[str, list[str]]:
    """Sentences and their translations."""
    lines = (Path(__file__).parent / "pairs.tsv").read_text(encoding="utf-8").splitlines()
    _, sentences, translations = zip(*(line.split("\t") for line in lines), strict=True)
    return {"anchor": list(sentences), "positive": list(translations)}


@pytest.fixture
def both(folder: str) -> tuple[Any, Any]:
    """A packed SentenceTransformer and a padded one, of the same weights."""
    return embedder(Transformer(folder)), embedder(padded(folder))


@pytest.fixture
def both_classifiers(classifier: str) -> tuple[Any, Any]:
    """A packed CrossEncoder and a padded one, of the same weights."""
    packed = Transformer(classifier, transformer_task="sequence-classification")
    other = padded(classifier, "ErnieMForSequenceClassification")
    one, two = (CrossEncoder(modules=[module], device="cpu").eval() for module in (packed, other))
    return one, two
