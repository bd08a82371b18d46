"""GET /healthz, /readyz and /metrics: for machines that watch the service."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from service.routes.errors import error_docs
from service.schemas import Health
from service.state import ServiceDep

router = APIRouter(tags=["operations"])


@router.get("/healthz", summary="Alive?", response_model=Health)
async def get_healthz() -> Health:
    """Whether the process lives."""
    return Health(status="ok")


@router.get("/readyz", summary="Ready for work?", response_model=Health, responses=error_docs(503))
async def get_readyz(service: ServiceDep) -> Health:
    """Whether images can be classified, now and in the next seconds."""
    service.check_staying()
    return Health(status=service.phase)


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
def get_metrics(service: ServiceDep) -> Response:
    """All series in Prometheus' text format."""
    # Not async: writing some hundred series takes long enough to be kept off the event loop.
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
