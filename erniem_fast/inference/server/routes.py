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
)
from .service import Service

JSON = "application/json"


def given(**options: Any) -> dict[str, Any]:
    """The options that a body names."""
    return {name: value for name, value in options.items() if value is not None}


def make_router(service: Service) -> APIRouter:
    """The routes that compute."""
    router = APIRouter()

    @router.post("/embed")
    async def embed(body: EmbedRequest) -> Response:
        """Vectors of texts."""
        service.check_dimensions(body.dimensions)
        items = body.inputs if is_batch(body.inputs) else [body.inputs]
        side = service.side(body.truncate, body.truncation_direction)
        found = await service.run(
            "encode",
            items,
            "inputs",
            side,
            normalize=body.normalize,
            **given(prompt_name=body.prompt_name, truncate_dim=body.dimensions),
        )
        return Response(dump_floats(np.stack(found.values)), media_type=JSON, headers=found.headers)

    @router.post("/embed_all")
    async def embed_all(body: EmbedAllRequest) -> Response:
        """Vectors of each text's tokens."""
        items = body.inputs if is_batch(body.inputs) else [body.inputs]
        side = service.side(body.truncate, body.truncation_direction)
        options = given(prompt_name=body.prompt_name)
        found = await service.run("token_embeddings", items, "inputs", side, **options)
        return StreamingResponse(_nested(found.values), media_type=JSON, headers=found.headers)

    @router.post("/predict")
    async def predict(body: PredictRequest) -> Response:
        """Labels of texts or pairs of texts, with scores, the best first."""
        several = isinstance(body.inputs, list) and not (body.inputs and isinstance(body.inputs[0], str))
        items = [_text_or_pair(item) for item in (body.inputs if several else [body.inputs])]
        side = service.side(body.truncate, body.truncation_direction)
        options = given(activation="none" if body.raw_scores else None)
        found = await service.run("classify", items, "inputs", side, top_k=None, **options)
        return Response(to_json(found.values if several else found.values[0]), media_type=JSON, headers=found.headers)

    @router.post("/rerank")
    async def rerank(body: RerankRequest) -> Response:
        """Places of texts by how well they answer a query, the best first."""
        if not body.query or not all(body.texts):
            raise empty("texts" if body.query else "query")
        side = service.side(body.truncate, body.truncation_direction)
        options = given(activation="none" if body.raw_scores else None)
        pairs = [(body.query, text) for text in body.texts]
        found = await service.run("rerank", pairs, "texts", side, **options)
        ranks = []
        for index in sorted(range(len(pairs)), key=lambda index: -found.values[index]):
            text = {"text": body.texts[index]} if body.return_text else {}
            ranks.append({"index": index, **text, "score": found.values[index]})
        return Response(to_json(ranks), media_type=JSON, headers=found.headers)

    @router.post("/similarity")
    async def similarity(body: SimilarityRequest) -> Response:
        """Cosine of a sentence's vector with each of the others'."""
        sentences, parameters = body.inputs, body.parameters or SimilarityParameters()
        if not sentences.source_sentence:
            raise empty("source_sentence")
        service.check_batch(sentences.sentences, "sentences")
        side = service.side(parameters.truncate, parameters.truncation_direction)
        texts = [sentences.source_sentence, *sentences.sentences]
        found = await service.run(
            "encode",
            texts,
            "sentences",
            side,
            most=len(texts),
            normalize=True,
            **given(prompt_name=parameters.prompt_name),
        )
        vectors = np.stack(found.values)
        return Response(dump_floats(vectors[1:] @ vectors[0]), media_type=JSON, headers=found.headers)

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Response:
        """Tokens of texts, with their places."""
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        tokens = await service.tokenize(texts, body.add_special_tokens, body.prompt_name)
        return Response(to_json(tokens), media_type=JSON)

    @router.post("/decode")
    async def decode(body: DecodeRequest) -> Response:
        """Texts of token ids."""
        rows: Any = [body.ids] if body.ids and isinstance(body.ids[0], int) else body.ids
        return Response(to_json(await service.decode(rows, body.skip_special_tokens)), media_type=JSON)

    aliased: dict[str, Any] = {"/embed": embed, "/predict": predict, "/rerank": rerank}
    router.add_api_route("/", aliased[service.main_route], methods=["POST"])
    return router


def is_batch(inputs: Any) -> bool:
    """True for several inputs, False for a text or a text's token ids."""
    return isinstance(inputs, list) and not (inputs and isinstance(inputs[0], int))


def _text_or_pair(item: Any) -> Any:
    if isinstance(item, str):
        return item
    return item[0] if len(item) == 1 else tuple(item)


async def _nested(values: list[np.ndarray]) -> AsyncIterator[bytes]:
    """Write arrays as one list of JSON, one at a time: those of long texts take megabytes each."""
    for place, value in enumerate(values):
        yield (b"," if place else b"[") + dump_floats(value)
        await asyncio.sleep(0)  # other requests first
    yield b"]"
