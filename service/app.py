"""The app: settings and an engine in, an ASGI application out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from service.engines.base import Engine
from service.everywhere import Everywhere
from service.middleware import QUIET, Heads, Observer
from service.routes import budget, classify, docs, models, operations, repository, v2
from service.routes.errors import add_error_handlers
from service.security.headers import SecurityHeaders
from service.security.wiring import add_security
from service.settings import Settings, load_settings
from service.siblings import Siblings
from service.state import Service
from service.tracing import Tracing, create_tracer

_DESCRIPTION = "An image classifier that spends only the compute an image needs."


def create_app(
    settings: Settings | None = None,
    engine: Engine | None = None,
    siblings: Siblings | None = None,
) -> FastAPI:
    """Make an app; nothing is shared with another one in the same process.

    Args:
        settings: absent, they are read from the environment.
        engine: runs the default bundle in place of the engine that the settings choose.
        siblings: the other processes of the service, if there are any.

    Raises:
        SettingsError: a setting is unknown or not allowed.
        BundleError: a bundle cannot be served.
    """
    service = Service(settings or load_settings(), engine, siblings)
    app = FastAPI(
        title="Runtime neural pruning",
        description=_DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # What is traced, `service.tracing` decides; else it is looked for in every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.service = service
    routers = [part.router for part in (classify, budget, models, repository, v2, operations, docs)]
    for router in routers:
        # Included as a whole, a router looks for changes of its routes in every request.
        app.router.routes.extend(router.routes)
    docs.mount_static(app)
    add_error_handlers(app)
    if siblings:
        app.add_middleware(Everywhere, siblings=siblings, metrics=service.metrics)
    routes = [route for router in routers for route in router.routes]
    add_security(app, service.settings, service.metrics, routes)
    app.add_middleware(Heads)
    app.add_middleware(Observer, metrics=service.metrics, leaving=lambda: service.leaving)
    app.state.tracer = create_tracer(service.settings)
    if app.state.tracer:
        app.add_middleware(Tracing, tracer=app.state.tracer, quiet=QUIET)
    app.add_middleware(SecurityHeaders)
    service.metrics.start_routes(route.path for route in routes)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    service.start()
    try:
        yield
    finally:
        await service.close()
        if app.state.tracer:
            await asyncio.to_thread(app.state.tracer.close)
