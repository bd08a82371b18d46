"""/v2/repository: models come and go as Triton's clients ask for it."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service.errors import BadRequest, Forbidden, NotOffered
from service.protocol.infer import read_object
from service.protocol.specs import VERSION
from service.registry import bundle_names
from service.routes.bodies import no_query, read_body
from service.routes.errors import PROTOCOL, busy_docs
from service.schemas import ProtocolErrorBody
from service.state import Service, ServiceDep

router = APIRouter(
    prefix=f"{PROTOCOL}/repository",
    tags=["Open Inference Protocol v2"],
    responses={"4XX": {"model": ProtocolErrorBody}},
    dependencies=[Depends(no_query)],
)

_BODY_BYTES = 4096
# What a client always sends; no model depends on another.
_UNLOAD_PARAMETERS = ("unload_dependents",)
# What a change may end in: not all processes may follow.
_OF_CHANGES: dict[int | str, dict[str, Any]] = {
    500: {"model": ProtocolErrorBody},
    503: busy_docs(ProtocolErrorBody),
}


def _body(**fields: dict[str, Any]) -> dict[str, Any]:
    """The documentation of a body that may be left out."""
    schema = {"type": "object", "properties": fields}
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


def _parameters(*known: str) -> dict[str, Any]:
    properties: dict[str, Any] = {name: {} for name in known}
    return {"type": "object", "properties": properties, "additionalProperties": False}


@router.post(
    "/index",
    summary="All models and their state",
    openapi_extra=_body(ready={"type": "boolean"}),
)
async def post_index(request: Request, service: ServiceDep) -> list[dict[str, str]]:
    """All models, served or on disk; with `{"ready": true}` only those that are ready."""
    only_ready = (await _object(request)).get("ready", False)
    if not isinstance(only_ready, bool):
        raise BadRequest("ready must be true or false")
    on_disk = await asyncio.to_thread(bundle_names, service.settings.bundles)
    states = dict.fromkeys(on_disk.values(), "UNAVAILABLE") | _states(service)
    return [
        {
            "name": name,
            "version": VERSION,
            "state": state,
            "reason": "not loaded" if state == "UNAVAILABLE" else "",
        }
        for name, state in sorted(states.items())
        if state == "READY" or not only_ready
    ]


async def _own_pages_only(request: Request, service: ServiceDep) -> None:
    """A page of another site can send a plain POST, and unlike a PUT its browser asks nobody.

    A browser says so by either header, by the first only where it trusts the connection.
    """
    site, origin = (request.headers.get(name) for name in ("sec-fetch-site", "origin"))
    host = request.headers.get("host")
    foreign = site in ("cross-site", "same-site") or (
        origin is not None and origin.partition("://")[2] != host
    )
    named = service.settings.cors_origins
    if foreign and "*" not in named and origin not in named:
        raise Forbidden(
            "a page of another site may not load or unload models: name it in RNP_CORS_ORIGINS, "
            "or send PUT or DELETE /models from elsewhere"
        )


_GUARDED = [Depends(_own_pages_only)]


@router.post(
    "/models/{name}/load",
    summary="Load or replace a model",
    dependencies=_GUARDED,
    response_class=Response,
    responses=_OF_CHANGES,
    openapi_extra=_body(parameters=_parameters()),
)
async def post_load(name: str, request: Request, service: ServiceDep) -> Response:
    """Serve the bundle of this name that lies in the bundles' directory; see `PUT /models`."""
    await _check_parameters(request, ())
    await service.load(name)
    return Response()


@router.post(
    "/models/{name}/unload",
    summary="Unload a model",
    dependencies=_GUARDED,
    response_class=Response,
    responses=_OF_CHANGES,
    openapi_extra=_body(parameters=_parameters(*_UNLOAD_PARAMETERS)),
)
async def post_unload(name: str, request: Request, service: ServiceDep) -> Response:
    """Serve a model no more; see `DELETE /models`."""
    await _check_parameters(request, _UNLOAD_PARAMETERS)
    await service.unload(name)
    return Response()


def _states(service: Service) -> dict[str, str]:
    loader = service.loader
    state = "UNLOADING" if service.phase == "draining" else "READY"
    return {
        **dict.fromkeys(loader.unloading, "UNLOADING"),
        **dict.fromkeys(loader.loading, "LOADING"),
        **dict.fromkeys(loader.served, state),
    }


async def _object(request: Request) -> dict[str, Any]:
    body = await read_body(request, _BODY_BYTES)
    return read_object(body) if body else {}


async def _check_parameters(request: Request, known: tuple[str, ...]) -> None:
    parameters = (await _object(request)).get("parameters", {})
    if not isinstance(parameters, dict):
        raise BadRequest("parameters must be a JSON object")
    for name in parameters:
        if name not in known:
            raise NotOffered(
                f"{name} is not offered: a bundle is loaded as it lies in the bundles' directory"
            )
