"""/v2: the Open Inference Protocol, as KServe and Triton speak it over HTTP."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.responses import Response

from service.classifier import Answered, Call, answer_images, resolve
from service.encodings import accepted_encoding, deflate, inflate
from service.errors import BadRequest, NotOffered, ServiceError, UnknownModel
from service.inflight import Holding
from service.presence import while_connected
from service.protocol.describe import (
    model_config,
    model_metadata,
    model_statistics,
    server_metadata,
)
from service.protocol.infer import InferRequest, read_request
from service.protocol.outputs import write_answer
from service.protocol.specs import VERSION
from service.registry import ServedModel
from service.routes.bodies import no_query, read_body
from service.routes.errors import PROTOCOL, busy_docs
from service.routes.operations import check_all_staying
from service.routes.v2_docs import (
    INFER_BODY,
    InferAnswer,
    Live,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
    Statistics,
)
from service.schemas import ClassifyQuery, ProtocolErrorBody
from service.state import Service, ServiceDep

router = APIRouter(
    prefix=PROTOCOL,
    tags=["Open Inference Protocol v2"],
    # All refusals have one form. "4XX" also keeps the framework from documenting its own.
    responses={"4XX": {"model": ProtocolErrorBody}, 503: busy_docs(ProtocolErrorBody)},
)

_JSON_BYTES = "Inference-Header-Content-Length"
_ONE, _VERSIONED = "/models/{name}", "/models/{name}/versions/{version}"
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "An inference request as JSON, which its tensors as bytes may follow.",
        "content": {"application/json": {"schema": INFER_BODY}},
    }
}


async def _served(request: Request, service: ServiceDep, name: str) -> ServedModel:
    return _find(request, service, name)


def _find(request: Request, service: Service, name: str) -> ServedModel:
    """The model that a path names, of whose versions there is one."""
    service.check_ready()
    model = service.model(name)
    version = request.path_params.get("version", VERSION)
    if version != VERSION:
        raise UnknownModel(f"{name} has no version {version!r}: its only one is {VERSION}")
    return model


ModelDep = Annotated[ServedModel, Depends(_served)]


@router.get("", summary="Server metadata", response_model=ServerMetadata)
async def get_server() -> dict[str, Any]:
    """Name, version and the extensions of the protocol that are offered."""
    return server_metadata()


@router.get("/health/live", summary="Alive?", response_model=Live)
async def get_live() -> dict[str, bool]:
    """Whether the process lives."""
    return {"live": True}


@router.get("/health/ready", summary="Ready for work?", response_model=Ready)
async def get_ready(request: Request, service: ServiceDep) -> dict[str, bool]:
    """Whether images can be classified, now and in the next seconds, by all of its processes."""
    await check_all_staying(request, service)
    return {"ready": True}


# Before the route of a model, for whose name "stats" would be taken.
@router.get("/models/stats", summary="Statistics of all models", response_model=Statistics)
async def get_all_statistics(service: ServiceDep) -> dict[str, Any]:
    """What every model did since it was loaded."""
    service.check_ready()
    return _statistics(*service.models.values())


@router.get(_ONE, summary="Model metadata", response_model=ModelMetadata)
@router.get(_VERSIONED, include_in_schema=False)
async def get_model(model: ModelDep) -> dict[str, Any]:
    """A model's inputs, of which a request sends one, and its outputs."""
    return model_metadata(model)


@router.get(f"{_ONE}/ready", summary="Model ready?", response_model=ModelReady)
@router.get(f"{_VERSIONED}/ready", include_in_schema=False)
async def get_model_ready(request: Request, model: ModelDep, service: ServiceDep) -> dict[str, Any]:
    """Whether a model can be asked, now and in the next seconds, of any of the processes."""
    await check_all_staying(request, service)
    return {"name": model.card.name, "ready": True}


@router.get(f"{_ONE}/config", summary="Model configuration", response_model=ModelConfig)
@router.get(f"{_VERSIONED}/config", include_in_schema=False)
async def get_model_config(model: ModelDep, service: ServiceDep) -> dict[str, Any]:
    """A model's inputs and outputs as Triton configures them, and how to preprocess."""
    return model_config(model, service.settings.max_parts)


@router.get(f"{_ONE}/stats", summary="Statistics of a model", response_model=Statistics)
@router.get(f"{_VERSIONED}/stats", include_in_schema=False)
async def get_model_statistics(model: ModelDep) -> dict[str, Any]:
    """What a model did since it was loaded."""
    return _statistics(model)


@router.post(
    f"{_ONE}/infer",
    summary="Classify images",
    response_model=InferAnswer,
    responses={429: busy_docs(ProtocolErrorBody), 504: {"model": ProtocolErrorBody}},
    openapi_extra=_BODY,
)
@router.post(f"{_VERSIONED}/infer", include_in_schema=False)
async def post_infer(request: Request, name: str, service: ServiceDep) -> Response:
    """Classify encoded images, or preprocessed ones, within the parameters `budget`, `cap` and
    `deadline_ms`."""
    await no_query(request)
    model = _find(request, service, name)
    with model.uses, service.inflight.hold() as held:
        return await _infer(request, model, service, held)


async def _infer(request: Request, model: ServedModel, service: Service, held: Holding) -> Response:
    body = await read_body(request, service.settings.max_body_bytes, held)
    loop = asyncio.get_running_loop()
    wanted = await loop.run_in_executor(
        service.decoders, _read, request, body, model, service, held
    )
    state = request.state
    call = resolve(model, _query(model, wanted), state.request_id, state.started)
    work = answer_images(service, call, wanted.images)
    answered = _all_answered(await while_connected(request.scope, work))
    return await loop.run_in_executor(service.decoders, _write, request, wanted, call, answered)


def _read(
    request: Request, body: bytes, model: ServedModel, service: Service, held: Holding
) -> InferRequest:
    max_bytes, max_images = service.settings.max_body_bytes, service.settings.max_parts
    content = inflate(body, request.headers.get("content-encoding", ""), max_bytes)
    held.add(len(content))  # inflated or not: the images of the request are copies
    return read_request(content, _json_bytes(request), model.card, max_images)


def _json_bytes(request: Request) -> int | None:
    text = request.headers.get(_JSON_BYTES)
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,18}", text):
        raise BadRequest(f"{_JSON_BYTES} is {text[:20]!r}: it must be a number of bytes")
    return int(text)


def _query(model: ServedModel, wanted: InferRequest) -> ClassifyQuery:
    """Budget, cap and deadline, in the ranges and with the refusals of /classify."""
    try:
        return ClassifyQuery.model_validate({"model": model.card.name, **wanted.limits})
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def _all_answered(results: list[Answered | ServiceError]) -> list[Answered]:
    """All results, as the protocol has no answer with a gap: one refused image refuses all."""
    for number, result in enumerate(results):
        if isinstance(result, ServiceError):
            raise type(result)(f"image {number}: {result}") if len(results) > 1 else result
    return [result for result in results if isinstance(result, Answered)]


def _write(
    request: Request, wanted: InferRequest, call: Call, answered: list[Answered]
) -> Response:
    answers = [one.answer for one in answered]
    body, json_bytes = write_answer(wanted, call.model, answers)
    headers = {} if json_bytes is None else {_JSON_BYTES: str(json_bytes)}
    encoding = accepted_encoding(request.headers.get("accept-encoding", ""))
    if encoding:
        body, headers["Content-Encoding"] = deflate(body, encoding), encoding
    kind = "application/json" if json_bytes is None else "application/octet-stream"
    return Response(body, headers=headers, media_type=kind)


def _statistics(*models: ServedModel) -> dict[str, Any]:
    return {"model_stats": [model_statistics(model) for model in models]}


async def _refuse(request: Request) -> None:
    raise NotOffered(
        f"{request.scope['path']} is not offered: of the protocol's extensions there are those "
        f"that {PROTOCOL} lists; tensors travel in the body"
    )


for _path in (
    "/systemsharedmemory/{rest:path}",
    "/cudasharedmemory/{rest:path}",
    "/trace/setting",
    f"{_ONE}/trace/setting",
    "/logging",
    f"{_ONE}/generate",
    f"{_ONE}/generate_stream",
):
    router.add_api_route(_path, _refuse, methods=["GET", "POST"], include_in_schema=False)
