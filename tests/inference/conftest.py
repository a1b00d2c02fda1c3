"""A tokenizer, tiny checkpoints, and a model that is told what to find."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from helpers.extraction import MAX_TOKENS, Told, letters
from helpers.golden_tokenizer import build
from helpers.head_folders import save_head

from erniem_fast import Encoder, ErnieMConfig, information_extraction


@pytest.fixture(scope="session")
def golden_tokenizer() -> Any:
    return build()


@pytest.fixture(scope="session")
def head_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a head of `helpers.head_folders`."""
    parent = tmp_path_factory.mktemp("heads")

    def get(head: str) -> Path:
        return parent / head if (parent / head).exists() else save_head(parent / head, head)

    return get


@pytest.fixture(scope="session")
def load(head_folder: Callable[[str], Path]) -> Callable[[str], Encoder]:
    """The encoder of a head, in float32."""
    return lru_cache(lambda head: Encoder.from_pretrained(head_folder(head), dtype="float32"))


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
