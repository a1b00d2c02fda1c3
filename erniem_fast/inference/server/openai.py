"""OpenAI's routes: `/v1/embeddings` and `/v1/models`."""

import base64
import time
from typing import Any

import numpy as np
from fastapi import APIRouter
from pydantic_core import to_json
from starlette.responses import Response

from .errors import RequestError
from .floats import dump_floats
from .routes import JSON, given, listed
from .schemas import EmbeddingsRequest
from .service import Service


def make_openai_router(service: Service) -> APIRouter:
    """The routes under `/v1/`."""
    router, created = APIRouter(prefix="/v1"), int(time.time())
    name = service.settings.model_name
    card = {"id": name, "object": "model", "created": created, "owned_by": "erniem_fast"}

    def check_model(asked: str | None) -> None:
        if asked not in (None, name, service.settings.model_id):
            message = f"the model {asked!r} does not exist; this server has {name!r}"
            raise RequestError(404, "Validation", message, code="model_not_found")

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The model of this server."""
        return {"object": "list", "data": [card]}

    @router.get("/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        """The model of a name."""
        check_model(model)
        return card

    @router.post("/embeddings")
    async def embeddings(body: EmbeddingsRequest) -> Response:
        """Vectors of length 1 of texts, or of their token ids."""
        check_model(body.model)
        service.check_dimensions(body.dimensions)
        options = given(truncate_dim=body.dimensions)
        side = service.side(None, "right")
        found = await service.run("encode", listed(body.input), "input", side, normalize=True, **options)
        write = _base64 if body.encoding_format == "base64" else dump_floats
        data = b",".join(
            b'{"object":"embedding","index":%d,"embedding":%b}' % (index, write(vector))
            for index, vector in enumerate(found.values)
        )
        usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (found.tokens, found.tokens)
        content = b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (data, to_json(name), usage)
        return Response(content, media_type=JSON, headers=found.headers)

    return router


def _base64(vector: np.ndarray) -> bytes:
    return b'"%b"' % base64.b64encode(vector.astype("<f4").tobytes())
