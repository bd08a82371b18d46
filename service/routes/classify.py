"""POST /classify."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from service.classifier import classify, resolve
from service.errors import FormatNotAllowed, ServiceError
from service.multipart import file_parts
from service.routes.bodies import read_body
from service.routes.errors import error_body, error_docs
from service.schemas import Classification, Classifications, ClassifyQuery, ErrorBody
from service.state import Service, ServiceDep

router = APIRouter(tags=["classify"])

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_PARTS = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "array", "items": _BINARY["schema"]}},
    }
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One image as the whole body, of whatever content type, or several as parts "
        "named `file`: JPEG, PNG, WebP, GIF or BMP.",
        "content": {"application/octet-stream": _BINARY, "multipart/form-data": _PARTS},
    }
}


@router.post(
    "/classify",
    summary="Classify images within a budget",
    response_model=Classification | Classifications,
    responses=error_docs(400, 413, 415, 422, 429, 503),
    openapi_extra=_BODY,
)
async def post_classify(
    request: Request, query: Annotated[ClassifyQuery, Query()], service: ServiceDep
) -> Classification | Classifications:
    """Classify one image, or the images of a multipart body, within a budget."""
    call = resolve(service, query, request.state.request_id, request.state.started)
    content_type = _content_type(request)
    with service.inflight.hold() as held:
        body = await read_body(request, service.settings.max_body_bytes, held)
        if content_type.lower().startswith("multipart/"):
            held.add(len(body))  # its parts are copies
            parts = await asyncio.get_running_loop().run_in_executor(
                service.decoders, file_parts, body, content_type, service.settings.max_parts
            )
            results = await classify(service, call, parts)
            return Classifications(results=[_part(service, result) for result in results])
        (result,) = await classify(service, call, [body])
        if isinstance(result, ServiceError):
            raise result
        return result


def _part(service: Service, result: Classification | ServiceError) -> Classification | ErrorBody:
    if isinstance(result, ServiceError):
        service.metrics.rejected.labels(result.code).inc()
        return error_body(result)
    return result


def _content_type(request: Request) -> str:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise FormatNotAllowed(f"content encoding {encoding!r} is not read: send it as it is")
    return request.headers.get("content-type", "")
