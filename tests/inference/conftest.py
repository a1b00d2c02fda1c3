"""A tokenizer, and a model that is told what to find."""

from typing import Any

import pytest
from helpers.extraction import MAX_TOKENS, Told, letters
from helpers.golden_tokenizer import build

from erniem_fast import ErnieMConfig, information_extraction


@pytest.fixture(scope="session")
def golden_tokenizer() -> Any:
    return build()


@pytest.fixture
def tell(golden_tokenizer: Any) -> Any:
    """Make an extractor from prompts and the answers to find: a text, or a text and two probabilities."""
    config = ErnieMConfig(
        vocab_size=len(golden_tokenizer), max_position_embeddings=MAX_TOKENS + 2, hidden_size=8, num_hidden_layers=1,
        num_attention_heads=1, intermediate_size=8,
    )  # fmt: skip
    model = Told(config).eval()

    def make_extractor(told: dict[str, list]) -> Any:
        model.tokenizer, model.prompts = golden_tokenizer, []
        model.told = {
            letters(prompt): [part if isinstance(part, tuple) else (part, 0.875, 0.75) for part in parts]
            for prompt, parts in told.items()
        }
        return information_extraction(model, golden_tokenizer)

    return make_extractor
