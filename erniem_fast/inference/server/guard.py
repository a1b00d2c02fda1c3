"""What every request passes: key, number of requests in work, size and speed of its body, a client that hangs up.

Plain ASGI, outside of the app: a body over the limit is never held, and no route needs to know.
"""

import asyncio
import hmac
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import RequestError, answer, stopping, too_large
from .metrics import Metrics
from .settings import ServerSettings

PUBLIC = frozenset(["/", "/health", "/ping", "/metrics", "/docs", "/openapi.json"])
"""Paths that are read without a key, even while the server stops: probes, and the page, which holds no data."""
HUNG_UP = 499
"""nginx's status of requests whose client is gone; only the metrics see it."""
LINGER_BYTES = 32_000_000
"""So much of a body over the limit is read and dropped: most clients look for an answer only after sending it all."""


@dataclass
class Traffic:
    """Requests of a server.

    Attributes:
        in_work: those that are not answered yet.
        draining: new ones are refused.
    """

    in_work: int = 0
    draining: bool = False


class Guard:
    """Lets requests through to the app.

    Args:
        app: what answers.
        settings: limits.
        metrics: where requests are counted.
        traffic: kept up to date, and read.
        routes: paths that the app has; all others count as one.
        backlog_seconds: gives the time that the model will take for what waits.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        metrics: Metrics,
        traffic: Traffic,
        routes: frozenset[str],
        backlog_seconds: Callable[[], float],
    ) -> None:
        self.app, self.settings, self.metrics, self.traffic = app, settings, metrics, traffic
        self.routes, self.backlog_seconds = routes, backlog_seconds
        self._key = None if settings.api_key is None else settings.api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), HUNG_UP

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            async with asyncio.timeout(self.settings.write_seconds):
                await send(message)

        try:
            if scope["path"] in PUBLIC and scope["method"] in ("GET", "HEAD"):
                await self.app(scope, receive, watched_send)
            else:
                await self._work(scope, receive, watched_send)
        except RequestError as error:
            await answer(error, scope["path"], close=error.status in (408, 413))(scope, receive, watched_send)
        except asyncio.CancelledError:
            # The server stops, and the time for requests in work is over.
            if not self.traffic.draining:
                raise
            if status == HUNG_UP:  # no answer has begun
                await answer(stopping(), scope["path"], close=True)(scope, receive, watched_send)
        except TimeoutError:
            # The reader takes nothing; without the rest of its answer the server closes the connection.
            status = HUNG_UP
        except Exception:
            status = 500
            raise
        finally:
            route = scope["path"] if scope["path"] in self.routes else "other"
            self.metrics.observe_request(route, status, time.perf_counter() - started)

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check(dict(scope["headers"]))
        self.traffic.in_work += 1
        self.metrics.requests_in_work.set(self.traffic.in_work)
        try:
            body = await self._body(scope, receive)
            if body is not None:
                await self._until_gone(scope, receive, send, body)
        finally:
            self.traffic.in_work -= 1
            self.metrics.requests_in_work.set(self.traffic.in_work)

    def _check(self, headers: dict[bytes, bytes]) -> None:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if self._key is not None and not (scheme.lower() == b"bearer" and hmac.compare_digest(given, self._key)):
            raise RequestError(401, "Unauthorized", "expected the header `Authorization: Bearer KEY` with the API key")
        if self.traffic.draining:
            raise stopping()
        if self.traffic.in_work >= self.settings.max_concurrent_requests:
            wait = max(1, math.ceil(self.backlog_seconds()))
            raise RequestError(429, "Overloaded", "the model is overloaded", retry_after=wait)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Read a body; None where the client hangs up.

        Raises:
            RequestError: it is too long, too slow, or no JSON by its type.
        """
        limit, body, size = self.settings.payload_limit, bytearray(), 0
        try:
            async with asyncio.timeout(self.settings.read_seconds):
                more = True
                while more and size <= LINGER_BYTES + limit:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    size += len(chunk)
                    if size <= limit:
                        body += chunk
        except TimeoutError:
            raise RequestError(408, "Validation", "the body did not arrive in time") from None
        if size > limit:
            raise too_large(f"the body has more than {limit} bytes")
        content_type = dict(scope["headers"]).get(b"content-type", b"").split(b";")[0].strip().lower()
        if body and content_type != b"application/json":
            raise RequestError(415, "Validation", "expected the header `Content-Type: application/json`")
        return bytes(body)

    async def _until_gone(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        """Run the app on a body, and cancel it if the client hangs up."""
        answered = False
        gone = asyncio.ensure_future(_hang_up(receive))
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            if first:
                return first.pop()
            await asyncio.shield(gone)
            return {"type": "http.disconnect"}

        async def send_and_see(message: Message) -> None:
            nonlocal answered
            # Before it is sent: that ends the connection, too.
            answered = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        async def run() -> None:
            await self.app(scope, replay, send_and_see)

        work = asyncio.ensure_future(run())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answered and not work.done():
                work.cancel()
            with suppress(asyncio.CancelledError):
                await work
        finally:
            gone.cancel()
            work.cancel()


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
