"""The server as an ASGI app: text-embeddings-inference's routes, OpenAI's, the page, probes and metrics.

app = create_app(Encoder.from_pretrained("DIR"), ServerSettings(model_id="DIR"))
uvicorn.run(app, port=8080)
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, Response

from ...version import __version__
from ..encoder_process import EncoderProcess
from ..engine import Encoder
from .errors import add_handlers, stopping
from .guard import Guard, Traffic
from .info import info
from .metrics import Metrics
from .openai import make_openai_router
from .pipelines import make_pipeline_router
from .routes import Routes
from .service import Service
from .settings import ServerSettings

PAGE = Path(__file__).with_name("page.html")
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def create_app(encoder: Encoder | EncoderProcess, settings: ServerSettings) -> FastAPI:
    """Make the app of a checkpoint. The model runs in a thread of its own from the first request on.

    Args:
        encoder: the checkpoint; the app alone may use it. One in a process of its own answers more requests.
        settings: limits.

    Returns:
        An app whose `state.traffic` counts the requests in work, and refuses new ones once `draining` is set.
    """
    metrics, traffic = Metrics(), Traffic()
    service = Service(encoder, settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.warm_up()
        yield
        service.close()

    app = FastAPI(
        title="erniem_fast", version=__version__, lifespan=lifespan, docs_url="/docs", redoc_url=None,
        description="text-embeddings-inference's and OpenAI's routes for encoders",
    )  # fmt: skip
    app.state.traffic, app.state.service = traffic, service
    add_handlers(app)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE, media_type="text/html")

    @app.get("/ping", include_in_schema=False)
    @app.get("/health")
    async def health() -> Response:
        """200 while the server takes requests, else 503."""
        if traffic.draining:
            raise stopping()
        return Response()

    @app.get("/metrics")
    async def read_metrics() -> Response:
        """What Prometheus reads."""
        return Response(metrics.render(), media_type=METRICS_TYPE)

    @app.get("/info")
    async def read_info() -> dict[str, Any]:
        """The model and the limits."""
        return info(service)

    routes = Routes(service)
    paths = {getattr(route, "path", "") for route in app.routes}
    for router in (routes.router(), make_openai_router(service), make_pipeline_router(service, routes)):
        app.include_router(router)
        paths |= {getattr(route, "path", "") for route in router.routes}
    app.add_middleware(
        Guard, settings=settings, metrics=metrics, traffic=traffic, routes=frozenset(paths),
        backlog_seconds=lambda: service.batcher.backlog_seconds,
    )  # fmt: skip
    if settings.cors_allow_origin:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_allow_origin, allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )  # fmt: skip
    return app
