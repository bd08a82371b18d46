"""GET /healthz, /readyz and /metrics: for machines that watch the service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from service.errors import Draining, ServiceError, Starting
from service.metrics import Metrics, joined
from service.routes.errors import error_docs
from service.schemas import Health
from service.siblings import Reply, Siblings, from_sibling
from service.state import Service, ServiceDep

router = APIRouter(tags=["operations"])

T = TypeVar("T")

# Less than the 5 s after which Prometheus and Docker give up, as they are set up here: a process
# that says nothing must not cost what the others say.
_WAIT_S = 2.0
_READY, _METRICS = "/readyz", "/metrics"


@router.get("/healthz", summary="Alive?", response_model=Health)
async def get_healthz() -> Health:
    """Whether the process lives."""
    return Health(status="ok")


@router.get(_READY, summary="Ready for work?", response_model=Health, responses=error_docs(503))
async def get_readyz(request: Request, service: ServiceDep) -> Health:
    """Whether images can be classified, now and in the next seconds, by all of its processes."""
    await check_all_staying(request, service)
    return Health(status=service.phase)


@router.get(_METRICS, summary="Prometheus metrics", response_class=PlainTextResponse)
async def get_metrics(request: Request, service: ServiceDep) -> Response:
    """All series in Prometheus' text format; if there are several processes, of all of them."""
    # Writing some hundred series takes long enough to be kept off the event loop.
    if siblings := _others(request, service):
        text = await _shared(service, _METRICS, partial(_of_all, service.metrics, siblings))
    else:
        text = await asyncio.to_thread(service.metrics.text)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


async def check_all_staying(request: Request, service: Service) -> None:
    """Refuse unless this process and all others are ready, now and in the next seconds.

    Raises:
        Starting, Draining: one of them is not.
    """
    service.check_staying()
    if siblings := _others(request, service):
        for reply in await _shared(service, _READY, partial(_asked, siblings, _READY)):
            if reply.status != 200:
                raise _not_ready(reply)


def _others(request: Request, service: Service) -> Siblings | None:
    """The other processes, if there are any and it is none of them that asks."""
    return None if from_sibling(request.scope) else service.siblings


async def _shared(service: Service, path: str, find: Callable[[], T]) -> T:
    """What is found out on a thread, once for all who want to know it meanwhile."""
    if path not in service.asking:
        service.asking[path] = asyncio.create_task(asyncio.to_thread(find))
        service.asking[path].add_done_callback(lambda _: service.asking.pop(path))
    found: T = await asyncio.shield(service.asking[path])
    return found


def _asked(siblings: Siblings, path: str) -> list[Reply]:
    return siblings.tell("GET", path, timeout_s=_WAIT_S)


def _of_all(metrics: Metrics, siblings: Siblings) -> bytes:
    """The series of all processes; what one of them cannot tell, it tells when asked again."""
    told = {one.sibling: one.body for one in _asked(siblings, _METRICS) if one.status == 200}
    return joined({siblings.index: metrics.text()} | told)


def _not_ready(reply: Reply) -> ServiceError:
    if reply.said("code") == Draining.code:
        return Draining(f"process {reply.sibling} is stopping: ask another one, or again later")
    return Starting(f"process {reply.sibling} is not ready: try again in a moment")
