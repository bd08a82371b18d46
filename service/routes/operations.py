"""GET /healthz, /readyz and /metrics: for machines that watch the service."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from service.errors import Starting
from service.routes.errors import error_docs
from service.schemas import Health
from service.siblings import Answer, from_sibling
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
    for answer in _others(request, service):
        if answer.status != 200:
            raise Starting(f"process {answer.sibling} is not ready: try again in a moment")
    return Health(status=service.phase)


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
def get_metrics(request: Request, service: ServiceDep) -> Response:
    """All series in Prometheus' text format; if there are several processes, of all of them."""
    # Not async: writing some hundred series takes long enough to be kept off the event loop.
    texts = {answer.sibling: answer.body for answer in _others(request, service) if answer.status}
    if service.siblings is None or from_sibling(request.scope):
        text = service.metrics.text()
    else:
        text = service.metrics.text_of_all(service.siblings.index, texts)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _others(request: Request, service: Service) -> list[Answer]:
    """What the other processes say to the same request, unless it is they who ask."""
    if service.siblings is None or from_sibling(request.scope):
        return []
    return list(service.siblings.tell("GET", request.url.path))
