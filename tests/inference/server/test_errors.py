"""Bad requests get the status that the peers' users know, and the next request works."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

JSON = {"content-type": "application/json"}
LONG = "a b c d e f g h i j k l m n o p q r s t"
PAIR = {"source_sentence": "a", "sentences": ["b"]}


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "message"),
    [
        ("/embed", {"inputs": []}, 400, "Empty", "`inputs` cannot be empty"),
        ("/embed", {"inputs": ""}, 400, "Empty", "`inputs`"),
        ("/embed", {"inputs": ["a", ""]}, 400, "Empty", "`inputs`"),
        ("/embed", {"inputs": ["a", []]}, 400, "Empty", "`inputs`"),
        ("/embed_all", {"inputs": []}, 400, "Empty", "`inputs`"),
        ("/predict", {"inputs": []}, 400, "Empty", "`inputs`"),
        ("/predict", {"inputs": [""]}, 400, "Empty", "`inputs`"),
        ("/similarity", {"inputs": PAIR | {"sentences": []}}, 400, "Empty", "`sentences`"),
        ("/similarity", {"inputs": PAIR | {"source_sentence": ""}}, 400, "Empty", "`source_sentence`"),
        ("/tokenize", {"inputs": []}, 400, "Empty", "`inputs`"),
        ("/decode", {"ids": []}, 400, "Empty", "`ids`"),
        ("/embed", {"inputs": ["a"] * 10_000}, 413, "Validation", "batch size 10000 > maximum allowed batch size 32"),
        ("/predict", {"inputs": [["a"]] * 33}, 413, "Validation", "batch size 33"),
        ("/similarity", {"inputs": PAIR | {"sentences": ["a"] * 33}}, 413, "Validation", "batch size 33"),
        ("/tokenize", {"inputs": ["a"] * 33}, 413, "Validation", "batch size 33"),
        ("/decode", {"ids": [[1]] * 33}, 413, "Validation", "batch size 33"),
        ("/embed", {"inputs": "a" * 10_000_000}, 413, "Validation", "more than 2000000 bytes"),
        ("/embed", {"inputs": ["a", LONG], "truncate": False}, 413, "Validation", "16 tokens each, got 1 with more"),
        ("/predict", {"inputs": LONG, "truncate": False}, 413, "Validation", "16 tokens each, got 1 with more"),
        ("/predict", {"inputs": LONG, "truncation_direction": "Left"}, 422, "Validation", "must be Right"),
        ("/embed", {"inputs": [[3] * 17], "truncate": False}, 413, "Validation", "at most 16 tokens, got 17"),
        ("/embed", {"inputs": "unknown " + LONG, "truncate": False}, 422, "Tokenizer", "inputs[0] can't be tokenized"),
        ("/embed", {"inputs": ["a", "unknown"]}, 422, "Tokenizer", "inputs[1] can't be tokenized"),
        ("/embed", {}, 422, "Validation", "inputs: Field required"),
        ("/embed", [1], 422, "Validation", "body:"),
        ("/embed", {"inputs": None}, 422, "Validation", "inputs: expected a string"),
        ("/embed", {"inputs": {"a": "b"}}, 422, "Validation", "inputs: expected a string"),
        ("/embed", {"inputs": ["a", 3]}, 422, "Validation", "inputs[1]: expected a string"),
        ("/embed", {"inputs": [3, "a"]}, 422, "Validation", "inputs[1]: Input should be a valid integer"),
        ("/embed", {"inputs": [3, -1]}, 422, "Validation", "inputs[1]"),
        ("/embed", {"inputs": [3, 1000]}, 422, "Validation", "token ids below 1000, got 1000"),
        ("/embed", {"inputs": "a", "normalize": "yes"}, 422, "Validation", "normalize: Input should be a valid bool"),
        ("/embed", {"inputs": "a", "dimensions": 0}, 422, "Validation", "dimensions"),
        ("/embed", {"inputs": "a", "dimensions": 9}, 422, "Validation", "dimensions must be at most 8, got 9"),
        ("/embed", {"inputs": "a", "prompt_name": "nope"}, 422, "Validation", "prompt_name must be one of"),
        ("/embed", {"inputs": "a", "truncation_direction": "up"}, 422, "Validation", "truncation_direction"),
        ("/predict", {"inputs": ["a", "b", "c"]}, 422, "Validation", "inputs: List should have at most 2 items"),
        ("/predict", {"inputs": [["a"], []]}, 422, "Validation", "inputs[1]"),
        ("/tokenize", {"inputs": "a", "prompt_name": "nope"}, 422, "Validation", "prompt_name"),
        ("/decode", {"ids": [1000]}, 422, "Validation", "token ids below 1000"),
        ("/embed", {"inputs": [[3], "a", "unknown"]}, 422, "Tokenizer", "inputs[2] can't be tokenized"),
        ("/embed", {"inputs": ["a", "boom"]}, 424, "Backend", "the model failed: the device is on fire"),
        ("/embed_all", {"inputs": "boom"}, 424, "Backend", "on fire"),
        ("/predict", {"inputs": "boom"}, 424, "Backend", "on fire"),
        ("/rerank", {"query": "a", "texts": ["b"]}, 424, "Backend", "rerank needs another head"),
        ("/nowhere", {}, 404, "Validation", "POST /nowhere: no such route"),
        ("/info", {}, 405, "Validation", "POST /info: another method is expected"),
    ],
)  # fmt: skip
def test_bad_bodies(client: TestClient, path: str, body: Any, status: int, kind: str, message: str) -> None:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    found = response.json()
    assert found["error_type"] == kind
    assert message in found["error"]
    assert client.post("/embed", json={"inputs": "next"}).status_code == 200


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 422, "body: Field required"),
        (b"{", 400, "the body is not JSON"),
        (b'{"inputs": "a"', 400, "the body is not JSON"),
        (b'{"inputs": "\xff\xfe"}', 400, "the body can't be read: it is not UTF-8"),
        (b"[" * 100_000, 400, "body"),
        (b'{"inputs": [%b]}' % (b"9" * 10_000), 400, "body"),
        (b'{"inputs": NaN}', 422, "inputs"),
        (rb'{"inputs": "\ud800"}', 422, "surrogate"),
    ],
)
def test_bytes_that_are_no_body(client: TestClient, content: bytes, status: int, message: str) -> None:
    response = client.post("/embed", content=content, headers=JSON)
    assert response.status_code == status, response.text
    assert message in response.json()["error"]
    assert client.post("/embed", json={"inputs": "next"}).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_other_types_of_content(client: TestClient, kind: str) -> None:
    response = client.post("/embed", content=b'{"inputs": "a"}', headers={"content-type": kind})
    assert response.status_code == 415
    assert client.post(
        "/embed", content=b'{"inputs": "a"}', headers={"content-type": "Application/JSON; charset=utf-8"}
    )


def test_a_reranker_wants_a_query_and_texts(serve: Callable[..., TestClient]) -> None:
    client = serve(labels=("relevant",))
    for body in ({"query": "", "texts": ["a"]}, {"query": "a", "texts": []}, {"query": "a", "texts": [""]}):
        assert client.post("/rerank", json=body).status_code == 400
    assert client.post("/rerank", json={"query": "a", "texts": ["b"] * 33}).status_code == 413
    assert client.post("/rerank", json={"query": "a", "texts": "b"}).status_code == 422


def test_a_model_without_a_head_says_what_it_is(serve: Callable[..., TestClient]) -> None:
    response = serve(labels=()).post("/predict", json={"inputs": "a"})
    assert response.status_code == 424
    assert "FakeModel" in response.json()["error"]


def test_long_texts_are_refused_where_the_server_says_so(serve: Callable[..., TestClient]) -> None:
    client = serve(auto_truncate=False)
    assert client.post("/embed", json={"inputs": LONG}).status_code == 413
    assert client.post("/embed", json={"inputs": LONG, "truncate": True}).status_code == 200
    assert client.post("/v1/embeddings", json={"input": LONG}).status_code == 413


@pytest.mark.parametrize(
    ("body", "status", "code", "kind"),
    [
        ({"input": "a", "model": "gpt-9"}, 404, "model_not_found", "invalid_request_error"),
        ({"input": 3}, 400, None, "invalid_request_error"),
        ({"input": []}, 400, None, "invalid_request_error"),
        ({"input": "a", "encoding_format": "hex"}, 400, None, "invalid_request_error"),
        ({"input": "a", "dimensions": 9}, 400, None, "invalid_request_error"),
        ({"input": ["a"] * 33}, 413, None, "invalid_request_error"),
        ({"input": "boom"}, 424, None, "server_error"),
    ],
)
def test_openai_errors(client: TestClient, body: dict, status: int, code: str | None, kind: str) -> None:
    response = client.post("/v1/embeddings", json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["message"]
    assert (error["type"], error["code"], error["param"]) == (kind, code, None)


def test_an_error_of_ours_is_500(client: TestClient) -> None:
    client.app.state.service.lacking = None
    response = client.get("/info")
    assert response.status_code == 500
    assert "NoneType" not in response.text
    assert 'te_request_count{route="/info",status="500"} 1.0' in client.get("/metrics").text
