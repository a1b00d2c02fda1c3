"""text-embeddings-inference's routes, and OpenAI's."""

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from helpers.fake_encoder import LABELS, MAX_TOKENS, FakeEncoder, ids_of, vector_of

LONG = "a b c d e f g h i j k l m n o p q r s t"


def post(client: TestClient, path: str, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def vectors(found: Any) -> np.ndarray:
    return np.array(found, dtype=np.float32)


def vector(text: str, **options: Any) -> np.ndarray:
    return vector_of(ids_of(text), **options)


@pytest.mark.parametrize("path", ["/embed", "/"])
def test_embed(serve: Callable[..., TestClient], path: str) -> None:
    client = serve(labels=())
    assert np.array_equal(vectors(post(client, path, inputs="one text")), [vector("one text")])
    found = post(client, path, inputs=["one text", "another"])
    assert np.array_equal(vectors(found), [vector("one text"), vector("another")])


def test_embed_takes_options(client: TestClient) -> None:
    found = post(client, "/embed", inputs=["a"], normalize=False, dimensions=3, prompt_name="query", unheard_of=1)
    assert np.array_equal(vectors(found), [vector("query: a", normalize=False, dim=3)])


def test_embed_takes_token_ids(client: TestClient) -> None:
    assert np.array_equal(vectors(post(client, "/embed", inputs=[5, 6])), [vector_of([5, 6])])
    found = post(client, "/embed", inputs=["a", [5, 6], "b"])
    assert np.array_equal(vectors(found), [vector("a"), vector_of([5, 6]), vector("b")])


@pytest.mark.parametrize(("side", "kept"), [("Right", slice(0, 14)), ("left", slice(-14, None))])
def test_long_texts_are_cut(client: TestClient, side: str, kept: slice) -> None:
    ids = ids_of(LONG)
    found = vectors(post(client, "/embed", inputs=[LONG, ids], truncation_direction=side))
    assert np.array_equal(found[0], vector_of([0, *ids[1:-1][kept], 1]))
    assert np.array_equal(found[1], vector_of(ids[:MAX_TOKENS] if side == "Right" else ids[-MAX_TOKENS:]))


def test_embed_all(client: TestClient) -> None:
    found = post(client, "/embed_all", inputs=["a b", "c"])
    for rows, text in zip(found, ("a b", "c"), strict=True):
        assert np.array_equal(vectors(rows), [vector_of([token], normalize=False) for token in ids_of(text)])


@pytest.mark.parametrize("path", ["/predict", "/"])
def test_predict(client: TestClient, path: str) -> None:
    def expected(text: str) -> list:
        scores = vector_of(ids_of(text), dim=3).tolist()
        ranked = sorted(zip(scores, LABELS, strict=True), reverse=True)
        return [{"label": label, "score": score} for score, label in ranked]

    assert post(client, path, inputs="one text") == expected("one text")
    assert post(client, path, inputs=["first", "second"]) == expected("first second")  # a pair
    assert post(client, path, inputs=[["one"], ["first", "second"]]) == [expected("one"), expected("first second")]


@pytest.mark.parametrize("path", ["/rerank", "/"])
def test_rerank(serve: Callable[..., TestClient], path: str) -> None:
    client, texts = serve(labels=("relevant",)), ["first", "second", "third", "fourth"]
    scores = [float(vector_of(ids_of(f"query {text}"), dim=3)[0]) for text in texts]
    order = sorted(range(4), key=lambda index: -scores[index])
    assert post(client, path, query="query", texts=texts) == [
        {"index": index, "score": scores[index]} for index in order
    ]
    found = post(client, path, query="query", texts=texts, return_text=True)
    assert found == [{"index": index, "text": texts[index], "score": scores[index]} for index in order]


def test_raw_scores_are_asked_of_the_engine(serve: Callable[..., TestClient]) -> None:
    client = serve(labels=("relevant",))
    asked = []
    task = client.app.state.service.encoder.task
    client.app.state.service.encoder.task = lambda name, **options: asked.append((name, options)) or task(name)
    post(client, "/predict", inputs="a", raw_scores=True)
    post(client, "/rerank", query="a", texts=["b"], raw_scores=True)
    assert asked == [("classify", {"top_k": None, "activation": "none"}), ("rerank", {"activation": "none"})]


def test_similarity(client: TestClient) -> None:
    inputs = {"source_sentence": "a", "sentences": ["b", "a", "c d"]}
    expected = [float(vector("a") @ vector(text)) for text in inputs["sentences"]]
    assert post(client, "/similarity", inputs=inputs) == pytest.approx(expected, abs=1e-6)
    found = post(client, "/similarity", inputs=inputs, parameters={"prompt_name": "query"})
    expected = [float(vector("query: a") @ vector(f"query: {text}")) for text in inputs["sentences"]]
    assert found == pytest.approx(expected, abs=1e-6)


def test_similarity_takes_a_full_batch_of_sentences(serve: Callable[..., TestClient]) -> None:
    client = serve(max_client_batch_size=2)
    assert len(post(client, "/similarity", inputs={"source_sentence": "a", "sentences": ["b", "c"]})) == 2


def test_tokenize_and_decode(client: TestClient) -> None:
    first, second = ids_of("ab cd")[1:-1]
    words = [
        {"id": first, "text": "ab", "special": False, "start": 0, "stop": 2},
        {"id": second, "text": "cd", "special": False, "start": 3, "stop": 5},
    ]
    special = [{"id": id, "text": f"<{id}>", "special": True, "start": None, "stop": None} for id in (0, 1)]
    assert post(client, "/tokenize", inputs="ab cd") == [[special[0], *words, special[1]]]
    assert post(client, "/tokenize", inputs=["ab cd"], add_special_tokens=False) == [words]
    prompted = post(client, "/tokenize", inputs="ab cd", prompt_name="query")[0]
    assert [token["text"] for token in prompted] == ["<0>", "query:", "ab", "cd", "<1>"]
    assert post(client, "/decode", ids=[0, 7, 8, 1]) == ["7 8"]
    assert post(client, "/decode", ids=[[0, 7], [8]], skip_special_tokens=False) == ["0 7", "8"]


def test_openai_embeddings(client: TestClient) -> None:
    found = post(client, "/v1/embeddings", input=["one text", [5, 6]], model="fake/model", user="somebody")
    assert [(item["object"], item["index"]) for item in found["data"]] == [("embedding", 0), ("embedding", 1)]
    assert np.array_equal(
        vectors([item["embedding"] for item in found["data"]]), [vector("one text"), vector_of([5, 6])]
    )
    assert found["object"] == "list"
    assert found["model"] == "fake/model"
    assert found["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    coded = post(client, "/v1/embeddings", input="a", encoding_format="base64", dimensions=3)
    read = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), dtype="<f4")
    assert np.array_equal(read, vector("a", dim=3))


def test_openai_models(serve: Callable[..., TestClient]) -> None:
    client = serve(served_model_name="nickname")
    listed = client.get("/v1/models").json()["data"]
    assert [card["id"] for card in listed] == ["nickname"]
    assert client.get("/v1/models/nickname").json() == listed[0]
    assert client.get("/v1/models/fake/model").json() == listed[0]
    assert client.get("/v1/models/gpt-9").status_code == 404
    for name in ("nickname", "fake/model"):
        assert post(client, "/v1/embeddings", input="a", model=name)["model"] == "nickname"


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ((), {"embedding": {"pooling": "mean"}}),
        (("relevant",), {"reranker": {"id2label": {"0": "relevant"}, "label2id": {"relevant": 0}}}),
        (("no", "yes"), {"classifier": {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}}),
    ],
)
def test_info(serve: Callable[..., TestClient], labels: tuple[str, ...], kind: dict) -> None:
    info = serve(labels=labels, max_client_batch_size=7).get("/info").json()
    assert info["model_type"] == kind
    assert info["model_id"] == "fake/model"
    assert info["max_input_length"] == MAX_TOKENS
    assert info["max_client_batch_size"] == 7
    assert info["prompts"] == ["query"]


def test_the_page_and_the_documentation(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert client.get("/docs").status_code == 200
    assert "/embed" in client.get("/openapi.json").json()["paths"]


def test_texts_of_a_request_share_a_call(client: TestClient) -> None:
    post(client, "/embed", inputs=["a", "b", "c"])
    encoder: FakeEncoder = client.app.state.service.encoder
    assert encoder.calls == [[ids_of("a"), ids_of("b"), ids_of("c")]]


def test_metrics(client: TestClient) -> None:
    post(client, "/embed", inputs=["a b", "c"])
    client.post("/embed", json={})
    client.get("/nowhere")
    lines = client.get("/metrics").text.splitlines()
    for line in (
        'te_request_count{route="/embed",status="200"} 1.0',
        'te_request_count{route="/embed",status="422"} 1.0',
        'te_request_count{route="other",status="404"} 1.0',
        'te_request_duration_count{route="/embed"} 2.0',
        "te_request_tokenization_duration_count 1.0",
        "te_request_queue_duration_count 1.0",
        "te_request_inference_duration_count 1.0",
        "te_request_input_length_count 2.0",
        "te_request_input_length_sum 7.0",
        "te_batch_next_size_sum 2.0",
        "te_batch_next_tokens_sum 7.0",
        "te_queue_size 0.0",
    ):
        assert line in lines, line
