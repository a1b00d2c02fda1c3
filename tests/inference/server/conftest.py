"""Servers of an encoder without a model."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fastapi.testclient import TestClient
from helpers.fake_encoder import LABELS, FakeEncoder

from erniem_fast.inference.server import ServerSettings, create_app


@pytest.fixture
def serve() -> Iterator[Callable[..., TestClient]]:
    """Make a client of a running app; the encoder is `client.app.state.service.encoder`."""
    with ExitStack() as stack:
        encoders = []

        def start(labels: tuple[str, ...] = LABELS, **settings: Any) -> TestClient:
            encoder: Any = FakeEncoder(labels)
            encoders.append(encoder)
            app = create_app(encoder, ServerSettings(model_id="fake/model", **settings))
            client = stack.enter_context(TestClient(app, raise_server_exceptions=False))
            encoder.calls.clear()
            encoder.entered.clear()
            return client

        yield start
        for encoder in encoders:
            encoder.gate.set()


@pytest.fixture
def client(serve: Callable[..., TestClient]) -> TestClient:
    return serve()
