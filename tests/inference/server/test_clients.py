"""Other people's clients, over a real connection."""

import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import openai
import pytest
from helpers.fake_encoder import FakeEncoder, ids_of, vector_of
from helpers.live_server import live_server
from helpers.processes import PATIENCE, wait_until
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

TEXTS = ["one text", "another", "今日は"]
END = b"\r\n0\r\n\r\n"
EXPECTED = np.stack([vector_of(ids_of(text)) for text in TEXTS])


@pytest.fixture
def live() -> Iterator[tuple[str, Any]]:
    with live_server(FakeEncoder(labels=()), api_key="secret") as found:
        yield found


@pytest.fixture
def live_encoder() -> Iterator[tuple[str, Any, Any]]:
    """Address, app and encoder of a server."""
    encoder = FakeEncoder()
    with live_server(encoder, read_seconds=PATIENCE, write_seconds=0.3) as (url, app):
        yield url, app, encoder
        encoder.gate.set()


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


class Caller:
    """A client on a bare connection."""

    def __init__(self, url: str, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        host, port = url.removeprefix("http://").split(":")
        self.socket.connect((host, int(port)))

    def ask(self, path: str, body: Any, part: int | None = None) -> None:
        """Send a request, or the first bytes of its body."""
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
        self.socket.sendall(head.encode() + b"\r\n\r\n" + content[:part])

    def read(self, slow_seconds: float = 0.0) -> bool:
        """Read until an answer in chunks ends, or the connection: True if the answer did. Slowly, for so long."""
        last, until = b"", time.monotonic() + slow_seconds
        with suppress(ConnectionError):
            while not last.endswith(END) and (piece := self.socket.recv(1_000_000)):
                last = (last + piece)[-len(END) :]
                if time.monotonic() < until:
                    time.sleep(0.01)
        return last.endswith(END)


def embed(url: str, text: str) -> int:
    content = json.dumps({"inputs": text}).encode()
    request = urllib.request.Request(f"{url}/embed", content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        return response.status


def test_a_caller_that_hangs_up(live_encoder: tuple[str, Any, Any]) -> None:
    url, app, encoder = live_encoder
    encoder.gate.clear()
    encoder.calls.clear()
    with ThreadPoolExecutor(1) as thread:
        encoder.entered.clear()
        first = thread.submit(embed, url, "first")
        assert encoder.entered.wait(PATIENCE)
        gone = Caller(url)
        gone.ask("/embed", {"inputs": "gone"})
        wait_until(lambda: app.state.service.batcher.queue_size)
        gone.socket.close()
        wait_until(lambda: app.state.traffic.in_work == 1)
        encoder.gate.set()
        assert first.result(PATIENCE) == 200
    assert embed(url, "next") == 200
    assert encoder.calls == [[ids_of("first")], [ids_of("next")]]


def test_a_caller_that_leaves_in_the_middle_of_its_body(live_encoder: tuple[str, Any, Any]) -> None:
    url, app, _ = live_encoder
    caller = Caller(url)
    caller.ask("/embed", {"inputs": "a"}, part=5)
    wait_until(lambda: app.state.traffic.in_work)
    caller.socket.close()
    wait_until(lambda: not app.state.traffic.in_work)
    assert embed(url, "next") == 200


def test_a_caller_that_never_reads(live_encoder: tuple[str, Any, Any]) -> None:
    url, app, encoder = live_encoder
    encoder.width = 200_000
    encoder.entered.clear()
    caller = Caller(url, receive_buffer=4096)
    caller.ask("/embed_all", {"inputs": "a b c"})
    assert encoder.entered.wait(PATIENCE)
    assert embed(url, "next") == 200
    wait_until(lambda: not app.state.traffic.in_work)
    assert not caller.read()


@pytest.mark.slow
def test_a_caller_that_reads_slowly_gets_its_answer() -> None:
    """It takes each piece in time, and longer for all of them than for a piece it may."""
    encoder, seconds = FakeEncoder(), 3.0
    encoder.width = 200_000
    with live_server(encoder, write_seconds=seconds) as (url, app):
        caller = Caller(url, receive_buffer=4096)
        caller.ask("/embed_all", {"inputs": "a b c"})
        begun = time.monotonic()
        assert embed(url, "next") == 200
        assert caller.read(2 * seconds)
        assert time.monotonic() > begun + seconds
        wait_until(lambda: not app.state.traffic.in_work)


def test_each_of_many_callers_gets_its_own(live_encoder: tuple[str, Any, Any]) -> None:
    url, _, encoder = live_encoder
    count = 64
    encoder.calls.clear()

    def ask(number: int) -> bool:
        content = json.dumps({"inputs": [f"caller {number}", "shared"]}).encode()
        request = urllib.request.Request(f"{url}/embed", content, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            found = np.array(json.loads(response.read()), np.float32)
        return np.array_equal(found, [vector_of(ids_of(f"caller {number}")), vector_of(ids_of("shared"))])

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(ask, range(count)))
    assert sum(map(len, encoder.calls)) == 2 * count
