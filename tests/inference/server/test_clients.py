"""Other people's clients, over a real connection."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from helpers.fake_encoder import FakeEncoder, ids_of, vector_of
from helpers.live_server import live_server
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

TEXTS = ["one text", "another", "今日は"]
EXPECTED = np.stack([vector_of(ids_of(text)) for text in TEXTS])


@pytest.fixture
def live() -> Iterator[tuple[str, Any]]:
    with live_server(FakeEncoder(labels=()), api_key="secret") as found:
        yield found


def test_openai(live: tuple[str, Any]) -> None:
    client = openai.OpenAI(base_url=f"{live[0]}/v1", api_key="secret", max_retries=0)
    assert [card.id for card in client.models.list()] == ["fake/model"]
    for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        found = client.embeddings.create(model="fake/model", input=TEXTS, **options)
        assert found.usage.total_tokens == sum(len(ids_of(text)) for text in TEXTS)
        vectors = [item.embedding for item in found.data]
        if options.get("encoding_format") != "base64":
            assert np.array_equal(np.array(vectors, np.float32), EXPECTED)
    ids = [ids_of(text) for text in TEXTS]
    found = client.embeddings.create(model="fake/model", input=ids, dimensions=4)
    assert np.array_equal(
        np.array([item.embedding for item in found.data], np.float32), [vector_of(row, dim=4) for row in ids]
    )
    for error, asked in (
        (openai.NotFoundError, {"model": "gpt-9", "input": "a"}),
        (openai.BadRequestError, {"model": "fake/model", "input": []}),
        (openai.APIStatusError, {"model": "fake/model", "input": "boom"}),
    ):
        with pytest.raises(error) as raised:
            client.embeddings.create(**asked)
        assert raised.value.body["message"]
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{live[0]}/v1", api_key="wrong").models.list()
    assert len(client.embeddings.create(model="fake/model", input="next").data) == 1


def test_inference_client(live: tuple[str, Any]) -> None:
    client = InferenceClient(model=live[0], token="secret")
    assert np.array_equal(client.feature_extraction(TEXTS), EXPECTED)
    raw = client.feature_extraction("a", normalize=False, prompt_name="query", truncate=True)
    assert np.array_equal(raw, [vector_of(ids_of("query: a"), normalize=False)])
    scores = client.sentence_similarity(TEXTS[0], TEXTS[1:])
    assert scores == pytest.approx((EXPECTED[1:] @ EXPECTED[0]).tolist(), abs=1e-6)
    with pytest.raises(HfHubHTTPError, match="413"):
        client.feature_extraction(["a"] * 33)
