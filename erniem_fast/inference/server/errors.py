"""Errors of requests: statuses, and the JSON that clients of text-embeddings-inference and of OpenAI know.

| status | error_type | when |
|---|---|---|
| 400 | Empty | no text at all |
| 413 | Validation | too many texts, tokens or bytes |
| 422 | Validation, Tokenizer | wrong types or values; a text that can't be tokenized |
| 424 | Backend | the model failed, or has no head for the route |
| 429 | Overloaded | too many requests in work |
| 503 | Unhealthy | the server starts or stops |
"""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

logger = logging.getLogger(__name__)

OPENAI_PREFIX = "/v1/"
FORMS = ("text", "ids", "batch", "pair", "pairs")
"""Tags in `schemas` that a place in a body must not name."""
TYPES = {401: "Unauthorized", 429: "Overloaded", 503: "Unhealthy", 424: "Backend", 400: "Validation", 500: "Backend"}
OPENAI_CODES = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}


class RequestError(Exception):
    """A request that gets no result.

    Args:
        status: of HTTP.
        error_type: text-embeddings-inference's name of the kind.
        message: one line for the client.
        retry_after: seconds after which to try again.
        code: OpenAI's name of the kind, where it has one of its own.
    """

    def __init__(
        self, status: int, error_type: str, message: str, retry_after: int | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.retry_after = retry_after
        self.code = code


def empty(argument: str) -> RequestError:
    """The error of an input without a text."""
    return RequestError(400, "Empty", f"`{argument}` cannot be empty")


def too_large(message: str) -> RequestError:
    """The error of too many texts, tokens or bytes."""
    return RequestError(413, "Validation", message)


def invalid(message: str) -> RequestError:
    """The error of a wrong value."""
    return RequestError(422, "Validation", message)


def backend(message: str) -> RequestError:
    """The error of a model that failed, or that can't do what a route needs."""
    return RequestError(424, "Backend", message)


def stopping() -> RequestError:
    """The error of a server that takes no more requests."""
    return RequestError(503, "Unhealthy", "the server stops", retry_after=1)


def answer(error: RequestError, path: str, close: bool = False) -> JSONResponse:
    """The response to a request that failed.

    Args:
        error: why.
        path: of the request; it decides whose JSON the client knows.
        close: end the connection.
    """
    status, body = error.status, _body(error, path)
    if path.startswith(OPENAI_PREFIX) and status == 422:
        status = 400  # what OpenAI gives for wrong types and values
    headers = {"Connection": "close"} if close else {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status, headers)


def _body(error: RequestError, path: str) -> dict[str, Any]:
    if not path.startswith(OPENAI_PREFIX):
        return {"error": str(error), "error_type": error.error_type}
    kind = "server_error" if error.status in (424, 500, 503) else "invalid_request_error"
    code = error.code or OPENAI_CODES.get(error.status)
    return {"error": {"message": str(error), "type": kind, "param": None, "code": code}}


def add_handlers(app: FastAPI) -> None:
    """Answer every exception of a route in one of the two forms."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestError)
        return answer(error, request.url.path)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        kind = TYPES.get(error.status_code, "Validation")
        message = error.detail
        if error.status_code in (404, 405):
            problem = "no such route" if error.status_code == 404 else "another method is expected"
            message = f"{request.method} {request.url.path}: {problem}"
        elif error.status_code == 400:
            message = "the body can't be read: it is not UTF-8, nested too deeply, or holds a number that is too long"
        response = answer(RequestError(error.status_code, kind, message), request.url.path)
        response.headers.update(error.headers or {})
        return response

    async def validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            problem = RequestError(400, "Validation", f"the body is not JSON: {first['ctx']['error']}")
        else:
            problem = invalid(f"{_place(first['loc'])}: {first['msg']}")
        return answer(problem, request.url.path)

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return answer(RequestError(500, "Backend", "internal error; the server's log has more"), request.url.path)

    app.add_exception_handler(RequestError, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(Exception, unknown)


def _place(location: Sequence[int | str]) -> str:
    """Where in the body a value is wrong: `inputs[3]`."""
    name = ""
    for part in location[1:]:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part not in FORMS:
            name += f".{part}" if name else part
    return name or "body"
