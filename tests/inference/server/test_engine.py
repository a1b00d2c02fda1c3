"""The server on checkpoints: what it gives equals what the engine gives, for every task."""

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from helpers.head_folders import TEXTS
from helpers.live_server import live_server
from huggingface_hub import InferenceClient

from erniem_fast import Encoder
from erniem_fast.inference.server import ServerSettings, create_app


@pytest.fixture
def serve(load: Callable[[str], Encoder]) -> Iterator[Callable[[str], Any]]:
    """A function that posts to a server of a head."""
    clients: dict[str, TestClient] = {}

    def post(head: str, path: str, **body: Any) -> Any:
        if head not in clients:
            clients[head] = TestClient(create_app(load(head), ServerSettings(head)))
            clients[head].__enter__()
        response = clients[head].post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    yield post
    for client in clients.values():
        client.__exit__(None, None, None)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.array(found), np.array(expected), atol=1e-5, rtol=0)


def test_vectors(serve: Callable[..., Any], load: Callable[[str], Encoder]) -> None:
    encoder = load("vectors")
    close(serve("vectors", "/", inputs=TEXTS), encoder.encode(TEXTS, normalize=True))
    raw = serve("vectors", "/embed", inputs=TEXTS, normalize=False, dimensions=5, truncation_direction="Left")
    close(raw, encoder.encode(TEXTS, normalize=False, truncate_dim=5, truncation="left"))
    ids = [encoder.tokenizer(text)["input_ids"] for text in TEXTS[:3]]
    close(serve("vectors", "/embed", inputs=ids), encoder.encode(TEXTS[:3], normalize=True))
    found = serve("vectors", "/v1/embeddings", input=TEXTS)
    close([item["embedding"] for item in found["data"]], encoder.encode(TEXTS, normalize=True))
    assert found["usage"]["prompt_tokens"] == sum(map(len, ids)) + encoder.max_tokens
    for rows, states in zip(
        serve("vectors", "/embed_all", inputs=TEXTS), encoder.stream(TEXTS, "token_embeddings"), strict=True
    ):
        close(rows, states)


def test_tokens(serve: Callable[..., Any], load: Callable[[str], Encoder]) -> None:
    tokenizer = load("vectors").tokenizer
    for text in TEXTS:
        (tokens,) = serve("vectors", "/tokenize", inputs=text)
        assert [token["id"] for token in tokens] == tokenizer(text)["input_ids"]
        assert [token["special"] for token in tokens] == [True, *[False] * (len(tokens) - 2), True]
        for token in tokens[1:-1]:
            assert token["text"] == text[token["start"] : token["stop"]]
        assert "".join(token["text"] for token in tokens[1:-1]) == text.replace(" ", "")
    ids = tokenizer(TEXTS[0])["input_ids"]
    assert serve("vectors", "/decode", ids=ids) == [tokenizer.decode(ids, skip_special_tokens=True)]


def test_labels(serve: Callable[..., Any], load: Callable[[str], Encoder]) -> None:
    encoder = load("labels")
    for raw, activation in ((False, None), (True, "none")):
        found = serve("labels", "/", inputs=[[text] for text in TEXTS] + [TEXTS[:2]], raw_scores=raw)
        expected = encoder.classify([*TEXTS, tuple(TEXTS[:2])], top_k=None, activation=activation)
        for row, wanted in zip(found, expected, strict=True):
            assert [one["label"] for one in row] == [one["label"] for one in wanted]
            close([one["score"] for one in row], [one["score"] for one in wanted])


def test_ranks(serve: Callable[..., Any], load: Callable[[str], Encoder]) -> None:
    for path in ("/", "/rerank"):
        found = serve("ranks", path, query=TEXTS[0], texts=TEXTS)
        expected = load("ranks").rerank(TEXTS[0], TEXTS)
        assert [one["index"] for one in found] == [one["index"] for one in expected]
        close([one["score"] for one in found], [one["score"] for one in expected])


@pytest.mark.slow
def test_a_server_that_must_not_cut(load: Callable[[str], Encoder]) -> None:
    with TestClient(create_app(load("ranks"), ServerSettings("ranks", auto_truncate=False))) as client:
        assert client.post("/embed", json={"inputs": TEXTS[:3]}).status_code == 200
        assert client.post("/rerank", json={"query": TEXTS[0], "texts": TEXTS[:3]}).status_code == 200
        assert client.post("/embed", json={"inputs": TEXTS}).status_code == 413
        assert client.post("/rerank", json={"query": TEXTS[0], "texts": TEXTS}).status_code == 413


@pytest.mark.slow
def test_a_server_that_must_not_cut_for_inference_client_either(load: Callable[[str], Encoder]) -> None:
    with TestClient(create_app(load("labels"), ServerSettings("labels", auto_truncate=False))) as client:
        for parameters in ({"top_k": 1}, {"candidate_labels": ["sport"]}):
            assert client.post("/", json={"inputs": TEXTS[0], "parameters": parameters}).status_code == 200
            response = client.post("/", json={"inputs": TEXTS, "parameters": parameters})
            assert response.status_code == 413
            assert "must have at most" in response.json()["error"]


def test_more_labels_than_a_call_takes(load: Callable[[str], Encoder]) -> None:
    with TestClient(create_app(load("labels"), ServerSettings("labels", max_batch_tokens=100))) as client:
        body: dict[str, Any] = {"inputs": "a", "parameters": {"candidate_labels": ["b"]}}
        assert client.post("/", json=body).status_code == 200
        body["parameters"]["candidate_labels"] = [str(number) for number in range(100)]
        response = client.post("/", json=body)
        assert response.status_code == 413
        assert "expected at most 100" in response.json()["error"]
        body["parameters"]["candidate_labels"] = []
        assert client.post("/", json=body).status_code == 400
        body["parameters"]["candidate_labels"] = [3]
        response = client.post("/", json=body)
        assert response.status_code == 422
        assert "parameters.candidate_labels" in response.json()["error"]


@pytest.mark.parametrize(
    ("labels", "template", "status"),
    [
        (["b"], "{:>3000000000}", 422),
        (["b"], "{0.__class__}", 422),
        (["b"] * 20000, "{}", 413),
        ([str(number) for number in range(1000)], "{} " + "a" * 10000, 413),
        ("b" * 10000, "{0}" * 1000, 413),
    ],
    ids=["a width", "an attribute", "many labels", "a long template", "a long label in many places"],
)
def test_hypotheses_of_gigabytes_are_never_written(
    load: Callable[[str], Encoder], labels: Any, template: str, status: int
) -> None:
    with TestClient(create_app(load("labels"), ServerSettings("labels"))) as client:
        parameters = {"candidate_labels": labels, "hypothesis_template": template}
        tracemalloc.start()
        response = client.post("/", json={"inputs": "a", "parameters": parameters})
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert response.status_code == status, response.text
        assert response.json()["error"].split()[0] in ("candidate_labels", "hypothesis_template")
        assert most < 5_000_000


def test_inference_client_knows_every_task(load: Callable[[str], Encoder]) -> None:
    question, context = "Where did the cat sit?", TEXTS[0]
    with live_server(load("labels")) as (url, _):
        client = InferenceClient(model=url)
        expected = load("labels").classify(context, top_k=None)
        found = client.text_classification(context)
        assert [one.label for one in found] == [one["label"] for one in expected]
        close([one.score for one in found], [one["score"] for one in expected])
        assert len(client.text_classification(context, top_k=2, function_to_apply="none")) == 2
        zero = load("labels").zero_shot(context, ["sport", "pets"], multi_label=True, hypothesis_template="It is {}.")
        found = client.zero_shot_classification(
            context, ["sport", "pets"], multi_label=True, hypothesis_template="It is {}."
        )
        assert [one.label for one in found] == zero["labels"]
        close([one.score for one in found], zero["scores"])
    with live_server(load("tags")) as (url, _):
        client = InferenceClient(model=url)
        for strategy in ("none", "simple"):
            expected = load("tags").tag(context, aggregation_strategy=strategy)
            found = client.token_classification(context, aggregation_strategy=strategy)
            assert [(one.start, one.end, one.word) for one in found] == [
                (one["start"], one["end"], one["word"]) for one in expected
            ]
        names = {one["entity_group"] for one in load("tags").tag(context)}
        assert client.token_classification(context, ignore_labels=sorted(names)) == []
    with live_server(load("answers")) as (url, _):
        expected = load("answers").answer(question, context)
        found = InferenceClient(model=url).question_answering(question=question, context=context)
        assert (found.answer, found.start, found.end) == (expected["answer"], expected["start"], expected["end"])
        assert found.score == pytest.approx(expected["score"], abs=1e-5)
    with live_server(load("vectors")) as (url, _):
        client = InferenceClient(model=url)
        close(client.feature_extraction(TEXTS), load("vectors").encode(TEXTS, normalize=True))
        assert len(client.sentence_similarity(context, TEXTS)) == len(TEXTS)


def test_information_is_extracted_by_a_schema(serve: Callable[..., Any], load: Callable[[str], Encoder]) -> None:
    schema = ["animal", {"place": ["owner"]}]
    expected = load("records").extract(TEXTS[:2], schema, threshold=0.4)
    found = serve("records", "/", inputs=TEXTS[:2], parameters={"schema": schema, "threshold": 0.4})
    assert [sorted(one) for one in found] == [sorted(one) for one in expected]
