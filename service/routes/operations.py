"""GET /healthz, /readyz and /metrics: for machines that watch the service."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response

from service.errors import Starting
from service.metrics import joined
from service.routes.errors import error_docs
from service.schemas import Health
from service.siblings import Reply, from_sibling
from service.state import Service, ServiceDep

router = APIRouter(tags=["operations"])

# Less than the 5 s after which Prometheus and Docker give up, as they are set up here: a process
# that says nothing must not cost what the others say.
_WAIT_S = 2.0


@router.get("/healthz", summary="Alive?", response_model=Health)
async def get_healthz() -> Health:
    """Whether the process lives."""
    return Health(status="ok")


@router.get("/readyz", summary="Ready for work?", response_model=Health, responses=error_docs(503))
async def get_readyz(request: Request, service: ServiceDep) -> Health:
    """Whether images can be classified, now and in the next seconds, by all of its processes."""
    service.check_staying()
    for reply in await _others(request, service):
        if reply.status != 200:
            raise Starting(f"process {reply.sibling} is not ready: try again in a moment")
    return Health(status=service.phase)


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def get_metrics(request: Request, service: ServiceDep) -> Response:
    """All series in Prometheus' text format; if there are several processes, of all of them."""
    # Writing some hundred series takes long enough to be kept off the event loop.
    text = await run_in_threadpool(service.metrics.text)
    if replies := await _others(request, service):
        assert service.siblings
        # What one of them cannot tell, it tells when it is asked again.
        texts = {reply.sibling: reply.body for reply in replies if reply.status == 200}
        text = joined({service.siblings.index: text} | texts)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


async def _others(request: Request, service: Service) -> list[Reply]:
    """What the other processes say, if there are any and it is none of them that asks."""
    siblings, path = service.siblings, request.url.path
    if siblings is None or from_sibling(request.scope):
        return []
    if path not in service.asking:
        told = asyncio.to_thread(lambda: list(siblings.tell("GET", path, timeout_s=_WAIT_S)))
        service.asking[path] = asyncio.create_task(told)
        service.asking[path].add_done_callback(lambda _: service.asking.pop(path))
    return await asyncio.shield(service.asking[path])
