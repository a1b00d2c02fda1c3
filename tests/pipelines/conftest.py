"""What the tests of transformers' pipelines share."""

import pytest
from helpers import golden_tokenizer, pairs
from helpers.documents import document
from transformers import pipeline


@pytest.fixture(scope="session")
def tokenizer():
    return golden_tokenizer.build()


@pytest.fixture(scope="session")
def long_text(tokenizer):
    """A document of 4,000 tokens."""
    return document(tokenizer)


@pytest.fixture
def make_pipeline(tokenizer):
    """A pipeline of a fresh fast model, and the reference model with the same weights, both float64."""

    def make(task, head, labels=("LABEL_0", "LABEL_1"), **options):
        names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        plain, fast = pairs.make(
            head, vocab_size=len(tokenizer), max_position_embeddings=514, initializer_range=0.3, noise=0.3, **names
        )
        return pipeline(task, model=fast, tokenizer=tokenizer, device="cpu", **options), plain

    return make
