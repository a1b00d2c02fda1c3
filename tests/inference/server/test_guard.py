"""What every request passes."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from helpers.fake_encoder import ids_of
from helpers.processes import PATIENCE

JSON = [(b"content-type", b"application/json")]


class Client:
    """A client of an app, by hand: it sends what it likes, when it likes."""

    def __init__(self, path: str = "/embed", body: bytes = b'{"inputs": "mine"}', **headers: str) -> None:
        pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        self.scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": JSON + pairs,
            "client": ("test", 1), "server": ("test", 2),
        }  # fmt: skip
        self.messages: asyncio.Queue[dict] = asyncio.Queue()
        self.body = body
        self.answers: list[dict] = []

    def send_body(self) -> None:
        self.messages.put_nowait({"type": "http.request", "body": self.body, "more_body": False})

    def hang_up(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})

    async def answer(self, message: dict) -> None:
        self.answers.append(message)

    @property
    def status(self) -> int:
        return self.answers[0]["status"]

    def start(self, app: Any) -> asyncio.Task:
        return asyncio.ensure_future(app(self.scope, self.messages.get, self.answer))


def in_background(client: TestClient, text: str, answers: list) -> threading.Thread:
    """Send a request from another thread, and wait until the model has it."""
    encoder = client.app.state.service.encoder
    encoder.gate.clear()
    encoder.entered.clear()
    thread = threading.Thread(target=lambda: answers.append(client.post("/embed", json={"inputs": text})))
    thread.start()
    assert encoder.entered.wait(PATIENCE)
    return thread


def test_one_request_too_many_is_told_when_to_come_back(serve: Callable[..., TestClient]) -> None:
    client, answers = serve(max_concurrent_requests=1), []
    thread = in_background(client, "first", answers)
    refused = client.post("/embed", json={"inputs": "second"})
    assert refused.status_code == 429
    assert refused.json() == {"error": "the model is overloaded", "error_type": "Overloaded"}
    assert int(refused.headers["retry-after"]) >= 1
    openai = client.post("/v1/embeddings", json={"input": "second"})
    assert openai.status_code == 429
    assert openai.json()["error"]["code"] == "rate_limit_exceeded"
    assert client.get("/health").status_code == 200
    client.app.state.service.encoder.gate.set()
    thread.join(PATIENCE)
    assert [answer.status_code for answer in answers] == [200]
    assert client.post("/embed", json={"inputs": "third"}).status_code == 200
    assert "te_requests_in_work 0.0" in client.get("/metrics").text


def test_draining_finishes_what_is_in_work(client: TestClient) -> None:
    answers: list = []
    thread = in_background(client, "first", answers)
    client.app.state.traffic.draining = True
    for response in (client.get("/health"), client.post("/embed", json={"inputs": "second"}), client.get("/info")):
        assert response.status_code == 503
        assert response.json()["error_type"] == "Unhealthy"
    assert client.app.state.traffic.in_work == 1
    client.app.state.service.encoder.gate.set()
    thread.join(PATIENCE)
    assert [answer.status_code for answer in answers] == [200]
    assert client.app.state.traffic.in_work == 0


@pytest.mark.parametrize("arrived", [True, False])
def test_what_a_stop_ends_is_told_so(serve: Callable[..., TestClient], arrived: bool) -> None:
    app = serve().app
    app.state.service.encoder.gate.clear()

    async def run() -> Client:
        asking = Client()
        task = asking.start(app)
        if arrived:
            asking.send_body()
        while not app.state.traffic.in_work:
            await asyncio.sleep(0.001)
        app.state.traffic.draining = True
        task.cancel()  # as uvicorn does when the time is over
        await task
        return asking

    found = asyncio.run(run())
    app.state.service.encoder.gate.set()
    assert found.status == 503
    assert b"the server stops" in found.answers[1]["body"]
    assert app.state.traffic.in_work == 0


@pytest.mark.parametrize("header", [None, "secret", "Bearer wrong", "Bearer ", "Basic secret", "Bearer sécret"])
def test_a_wrong_key_is_refused(serve: Callable[..., TestClient], header: str | None) -> None:
    client = serve(api_key="secret")
    headers = {} if header is None else {"authorization": header.encode()}
    for path in ("/embed", "/v1/embeddings", "/"):
        response = client.post(path, json={"inputs": "a", "input": "a"}, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
    assert client.get("/info", headers=headers).status_code == 401
    assert client.post("/v1/embeddings", json={}, headers=headers).json()["error"]["code"] == "invalid_api_key"
    assert client.app.state.service.encoder.calls == []


@pytest.mark.parametrize("header", ["Bearer secret", "bearer secret"])
def test_the_right_key_is_taken(serve: Callable[..., TestClient], header: str) -> None:
    client = serve(api_key="secret")
    assert client.post("/embed", json={"inputs": "a"}, headers={"authorization": header}).status_code == 200
    for path in ("/", "/health", "/ping", "/metrics"):
        assert client.get(path).status_code == 200


def test_other_sites_may_read_only_where_told(serve: Callable[..., TestClient]) -> None:
    site = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in serve().options("/embed", headers=site).headers
    client = serve(cors_allow_origin=("https://a.example",), api_key="secret")
    assert client.options("/embed", headers=site).headers["access-control-allow-origin"] == "https://a.example"
    other = client.options("/embed", headers=site | {"origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


def test_a_client_that_hangs_up_is_not_computed(client: TestClient) -> None:
    answers: list = []
    thread = in_background(client, "first", answers)
    app, encoder = client.app, client.app.state.service.encoder

    async def leave() -> Client:
        guest = Client()
        request = guest.start(app)
        guest.send_body()
        while not app.state.service.batcher.queue_size:
            await asyncio.sleep(0.001)
        guest.hang_up()
        await asyncio.wait_for(request, PATIENCE)
        return guest

    assert asyncio.run(leave()).answers == []
    encoder.gate.set()
    thread.join(PATIENCE)
    assert client.post("/embed", json={"inputs": "next"}).status_code == 200
    assert encoder.calls == [[ids_of("first")], [ids_of("next")]]
    assert 'te_request_count{route="/embed",status="499"} 1.0' in client.get("/metrics").text
    assert app.state.traffic.in_work == 0


def test_a_client_that_hangs_up_while_sending(client: TestClient) -> None:
    async def leave() -> Client:
        guest = Client()
        request = guest.start(client.app)
        guest.messages.put_nowait({"type": "http.request", "body": b'{"inp', "more_body": True})
        guest.hang_up()
        await asyncio.wait_for(request, PATIENCE)
        return guest

    assert asyncio.run(leave()).answers == []
    assert client.app.state.service.encoder.calls == []
    assert client.app.state.traffic.in_work == 0


def test_a_slow_sender_is_cut_off(serve: Callable[..., TestClient]) -> None:
    client = serve(read_seconds=0.05)

    async def dawdle() -> Client:
        guest = Client()
        request = guest.start(client.app)
        guest.messages.put_nowait({"type": "http.request", "body": b'{"inp', "more_body": True})
        await asyncio.wait_for(request, PATIENCE)
        return guest

    guest = asyncio.run(dawdle())
    assert guest.status == 408
    assert (b"connection", b"close") in guest.answers[0]["headers"]
    assert client.app.state.traffic.in_work == 0


def test_a_slow_reader_is_left(serve: Callable[..., TestClient]) -> None:
    client = serve(write_seconds=0.05)

    async def dawdle() -> None:
        guest = Client()

        async def never(message: dict) -> None:
            await asyncio.Event().wait()

        guest.answer = never  # type: ignore[method-assign]
        request = guest.start(client.app)
        guest.send_body()
        await asyncio.wait_for(request, PATIENCE)

    asyncio.run(dawdle())
    assert client.app.state.traffic.in_work == 0
    assert client.post("/embed", json={"inputs": "next"}).status_code == 200


def test_a_body_without_end_is_not_held(client: TestClient) -> None:
    async def pour() -> tuple[Client, int]:
        guest, sent = Client(), 0
        request = guest.start(client.app)
        while not request.done():
            guest.messages.put_nowait({"type": "http.request", "body": b" " * 1_000_000, "more_body": True})
            sent += 1
            await asyncio.sleep(0)
        return guest, sent

    guest, sent = asyncio.run(pour())
    assert guest.status == 413
    assert sent < 100
    assert (b"connection", b"close") in guest.answers[0]["headers"]
