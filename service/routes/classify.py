"""POST /classify."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.types import Receive, Scope, Send

from service.classifier import Call, classify, in_time, resolve
from service.errors import BadParameter, FormatNotAllowed, ServiceError
from service.multipart import file_parts
from service.presence import while_connected
from service.routes.bodies import read_body
from service.routes.errors import error_body, error_docs
from service.schemas import Classification, Classifications, ClassifyQuery, ErrorBody
from service.state import Service


class _Direct(APIRoute):
    """A route whose endpoint takes the request and returns the response: as it is described in the
    documentation, but without the framework's reading and solving of parameters."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        # What it raises is turned into an answer around all routes; around each is once too often.
        self.app = self._serve

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: Response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


router = APIRouter(tags=["classify"], route_class=_Direct)

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_PARTS = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "array", "items": _BINARY["schema"]}},
    }
}
_ANSWER = TypeAdapter(Classification)
_QUERY = ClassifyQuery.model_json_schema()["properties"]
_DOCS: dict[str, Any] = {
    "parameters": [
        {
            "name": name,
            "in": "query",
            "description": schema.get("description", ""),
            "schema": {key: value for key, value in schema.items() if key != "description"},
        }
        for name, schema in _QUERY.items()
    ],
    "requestBody": {
        "required": True,
        "description": "One image as the whole body, of whatever content type, or several as parts "
        "named `file`: JPEG, PNG, WebP, GIF or BMP.",
        "content": {"application/octet-stream": _BINARY, "multipart/form-data": _PARTS},
    },
}


@router.post(
    "/classify",
    summary="Classify images within a budget",
    response_model=Classification | Classifications,
    responses=error_docs(400, 408, 413, 415, 422, 429, 503, 504),
    openapi_extra=_DOCS,
)
async def post_classify(request: Request) -> Response:
    """Classify one image, or the images of a multipart body, within a budget."""
    service: Service = request.app.state.service
    query = _query(request)
    service.check_ready()
    model = service.model(query.model)
    # Not a dependency that yields, which would take a tenth of the time of a small request.
    with model.uses:
        call = resolve(model, query, request.state.request_id, request.state.started)
        return await _answer(request, call, service)


async def _answer(request: Request, call: Call, service: Service) -> Response:
    content_type = _content_type(request)
    with service.inflight.hold() as held:
        async with in_time(call.asked):
            body = await read_body(request, service.settings.max_body_bytes, held)
            images = [body]
            if several := content_type.lower().startswith("multipart/"):
                held.add(len(body))  # its parts are copies
                images = await asyncio.get_running_loop().run_in_executor(
                    service.decoders, file_parts, body, content_type, service.settings.max_parts
                )
        results = await while_connected(request.scope, classify(service, call, images))
    if several:
        answer = Classifications(results=[_part(service, result) for result in results])
        return _json(answer.model_dump_json())
    (result,) = results
    if isinstance(result, ServiceError):
        raise result
    return _json(_ANSWER.dump_json(result))


def _query(request: Request) -> ClassifyQuery:
    """The query, checked."""
    pairs = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    query = dict(pairs)
    if len(query) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadParameter(f"{twice[:80]!r} is given more than once: give it once")
    try:
        return ClassifyQuery.model_validate(query)
    except ValidationError as error:
        errors = [{**one, "loc": ("query", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(errors) from error


def _json(answer: str | bytes) -> Response:
    return Response(answer, media_type="application/json")


def _part(service: Service, result: Classification | ServiceError) -> Classification | ErrorBody:
    if isinstance(result, ServiceError):
        service.metrics.rejected.labels(result.code).inc()
        return error_body(result)
    return result


def _content_type(request: Request) -> str:
    encoding = request.headers.get("content-encoding", "")
    if encoding.strip().lower() not in ("", "identity"):
        raise FormatNotAllowed(f"content encoding {encoding!r} is not read: send it as it is")
    return request.headers.get("content-type", "")
