"""GET /healthz, /readyz and /metrics: for machines that watch the service."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from service.errors import Starting
from service.metrics import joined
from service.routes.errors import error_docs
from service.schemas import Health
from service.siblings import Siblings, from_sibling
from service.state import Service, ServiceDep

router = APIRouter(tags=["operations"])


@router.get("/healthz", summary="Alive?", response_model=Health)
async def get_healthz() -> Health:
    """Whether the process lives."""
    return Health(status="ok")


@router.get("/readyz", summary="Ready for work?", response_model=Health, responses=error_docs(503))
def get_readyz(request: Request, service: ServiceDep) -> Health:
    """Whether images can be classified, now and in the next seconds, by all of its processes."""
    service.check_staying()
    if siblings := _siblings(request, service):
        for reply in siblings.tell("GET", request.url.path):
            if reply.status != 200:
                raise Starting(f"process {reply.sibling} is not ready: try again in a moment")
    return Health(status=service.phase)


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
def get_metrics(request: Request, service: ServiceDep) -> Response:
    """All series in Prometheus' text format; if there are several processes, of all of them."""
    # Not async: writing some hundred series takes long enough to be kept off the event loop.
    text = service.metrics.text()
    if siblings := _siblings(request, service):
        replies = siblings.tell("GET", request.url.path)
        texts = {reply.sibling: reply.body for reply in replies if reply.status}
        text = joined({siblings.index: text} | texts)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _siblings(request: Request, service: Service) -> Siblings | None:
    """The other processes, if there are any and it is not one of them that asks."""
    return None if from_sibling(request.scope) else service.siblings
