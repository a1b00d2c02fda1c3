"""text-embeddings-inference's routes (its `router/src/http` and docs/openapi.json say what they take and give)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from fastapi import APIRouter
from pydantic_core import to_json
from starlette.responses import Response, StreamingResponse

from .errors import empty
from .floats import dump_floats
from .schemas import (
    DecodeRequest,
    EmbedAllRequest,
    EmbedRequest,
    PredictRequest,
    RerankRequest,
    SimilarityParameters,
    SimilarityRequest,
    TokenizeRequest,
    Truncation,
)
from .service import Service

JSON = "application/json"
PIECE = 128 * 1024
"""Bytes of an answer that are handed over at once."""


def given(**options: Any) -> dict[str, Any]:
    """The options that a body names."""
    return {name: value for name, value in options.items() if value is not None}


def json_response(value: Any, headers: dict[str, str] | None = None) -> Response:
    """A response with a value as JSON."""
    return Response(to_json(value), media_type=JSON, headers=headers)


class Routes:
    """What each route does."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def router(self) -> APIRouter:
        """The routes under their names."""
        router = APIRouter()
        for name in ("embed", "embed_all", "predict", "rerank", "similarity", "tokenize", "decode"):
            router.add_api_route(f"/{name}", getattr(self, name), methods=["POST"])
        return router

    async def embed(self, body: EmbedRequest) -> Response:
        """Vectors of texts."""
        self.service.check_dimensions(body.dimensions)
        options = given(prompt_name=body.prompt_name, truncate_dim=body.dimensions)
        found = await self.service.run(
            "encode", listed(body.inputs), "inputs", self._side(body), normalize=body.normalize, **options
        )
        return Response(dump_floats(np.stack(found.values)), media_type=JSON, headers=found.headers)

    async def embed_all(self, body: EmbedAllRequest) -> Response:
        """Vectors of each text's tokens."""
        options = given(prompt_name=body.prompt_name)
        found = await self.service.run("token_embeddings", listed(body.inputs), "inputs", self._side(body), **options)
        return StreamingResponse(_nested(found.values), media_type=JSON, headers=found.headers)

    async def predict(self, body: PredictRequest) -> Response:
        """Labels of texts or pairs of texts, with scores, the best first."""
        several = isinstance(body.inputs, list) and not (body.inputs and isinstance(body.inputs[0], str))
        items = [_text_or_pair(item) for item in (body.inputs if several else [body.inputs])]
        options = given(activation="none" if body.raw_scores else None)
        found = await self.service.run("classify", items, "inputs", self._side(body), top_k=None, **options)
        return json_response(found.values if several else found.values[0], found.headers)

    async def rerank(self, body: RerankRequest) -> Response:
        """Places of texts by how well they answer a query, the best first."""
        if not body.query or not all(body.texts):
            raise empty("texts" if body.query else "query")
        pairs = [(body.query, text) for text in body.texts]
        options = given(activation="none" if body.raw_scores else None)
        found = await self.service.run("rerank", pairs, "texts", self._side(body), **options)
        ranks = []
        for index in sorted(range(len(pairs)), key=lambda index: -found.values[index]):
            text = {"text": body.texts[index]} if body.return_text else {}
            ranks.append({"index": index, **text, "score": found.values[index]})
        return json_response(ranks, found.headers)

    async def similarity(self, body: SimilarityRequest) -> Response:
        """Cosine of a sentence's vector with each of the others'."""
        source, sentences = body.inputs.source_sentence, body.inputs.sentences
        parameters = body.parameters or SimilarityParameters()
        if not source:
            raise empty("source_sentence")
        self.service.check_batch(sentences, "sentences")
        options = given(prompt_name=parameters.prompt_name)
        found = await self.service.run(
            "encode", [source, *sentences], "sentences", self._side(parameters), most=1 + len(sentences),
            normalize=True, **options,
        )  # fmt: skip
        vectors = np.stack(found.values)
        return Response(dump_floats(vectors[1:] @ vectors[0]), media_type=JSON, headers=found.headers)

    async def tokenize(self, body: TokenizeRequest) -> Response:
        """Tokens of texts, with their places."""
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        return json_response(await self.service.tokenize(texts, body.add_special_tokens, body.prompt_name))

    async def decode(self, body: DecodeRequest) -> Response:
        """Texts of token ids."""
        return json_response(await self.service.decode(listed(body.ids), body.skip_special_tokens))

    def _side(self, body: Truncation) -> str | None:
        return self.service.side(body.truncate, body.truncation_direction)


def listed(inputs: Any) -> list[Any]:
    """Several inputs as they are; a text, or a text's token ids, in a list."""
    several = isinstance(inputs, list) and not (inputs and isinstance(inputs[0], int))
    return inputs if several else [inputs]


def _text_or_pair(item: Any) -> Any:
    if isinstance(item, str):
        return item
    return item[0] if len(item) == 1 else tuple(item)


async def _nested(values: list[np.ndarray]) -> AsyncIterator[bytes]:
    """Write arrays as one list of JSON, in pieces: those of long texts take megabytes, and a reader may be slow."""
    for place, value in enumerate(values):
        written = (b"," if place else b"[") + dump_floats(value)
        for start in range(0, len(written), PIECE):
            yield written[start : start + PIECE]
        await asyncio.sleep(0)  # other requests first
    yield b"]"
