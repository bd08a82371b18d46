"""Every error as the same body: a sentence and a code word; under /v2 as its protocol says."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from service.errors import (
    BadParameter,
    BodyTooLarge,
    BodyTooSlow,
    ClientGone,
    MethodNotAllowed,
    NotFound,
    ServiceError,
    UnknownModel,
)
from service.metrics import Metrics
from service.notes import note_refusal
from service.schemas import AutoBudget, BundlePath, ClassifyQuery, ErrorBody, FixedBudget

# Where the Open Inference Protocol lives.
PROTOCOL = "/v2"

_SHOWN_INPUT = 80
# What a client sent is part of the sentence, and may be long.
_MOST_CHARACTERS = 1000

# A framework that reads a body lets only its own exceptions through.
_OF_BODIES: dict[int, type[ServiceError]] = {
    408: BodyTooSlow,
    413: BodyTooLarge,
    499: ClientGone,
}

# By where they are, a budget by its mode.
_KNOWN_FIELDS: dict[str, type[BaseModel]] = {
    "query": ClassifyQuery,
    "fixed": FixedBudget,
    "auto": AutoBudget,
    "body": BundlePath,
}


def error_body(error: ServiceError) -> ErrorBody:
    """What a refusal says."""
    return ErrorBody(error=_sentence_of(error), code=error.code)


def error_response(error: ServiceError, path: str) -> JSONResponse:
    """A refusal as the response to a request for `path`."""
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if path == PROTOCOL or path.startswith(f"{PROTOCOL}/"):
        return JSONResponse({"error": _sentence_of(error)}, _protocol_status(error), headers)
    return JSONResponse(error_body(error).model_dump(), error.status, headers)


def refused(error: ServiceError, path: str, metrics: Metrics) -> Response:
    """The response to a request for `path` that is refused, noted and counted."""
    note_refusal(error.code)
    metrics.rejected.labels(error.code).inc()
    return error_response(error, path)


def _sentence_of(error: ServiceError) -> str:
    # Half of a surrogate pair, which JSON can hold, is no text that could be sent.
    sentence = str(error).encode("utf-8", "replace").decode()
    if len(sentence) <= _MOST_CHARACTERS:
        return sentence
    return f"{sentence[: _MOST_CHARACTERS - 1]}…"


def _protocol_status(error: ServiceError) -> int:
    if isinstance(error, UnknownModel):
        return 404
    return 400 if error.status == 422 else error.status


def error_docs(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, for its documentation."""
    return {
        status: busy_docs(ErrorBody) if status in (429, 503) else {"model": ErrorBody}
        for status in statuses
    }


def busy_docs(body: type[BaseModel]) -> dict[str, Any]:
    """The documentation of a refusal that does not last."""
    wait = {"description": "seconds to wait before trying again", "schema": {"type": "integer"}}
    return {"model": body, "headers": {"Retry-After": wait}}


def add_error_handlers(app: FastAPI) -> None:
    """Let `app` answer every error in this form, its framework's own included."""

    async def refuse(request: Request, error: Exception) -> Response:
        refusal = _refusal(request, error)
        response = refused(refusal, request.scope["path"], app.state.service.metrics)
        if isinstance(refusal, MethodNotAllowed):
            response.headers["Allow"] = ", ".join(_methods(request))
        return response

    for kind in (ServiceError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, refuse)


def _refusal(request: Request, error: Exception) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, RequestValidationError):
        return BadParameter(_sentence(error.errors()[0]))
    if isinstance(error, HTTPException) and error.status_code == 400:
        return BadParameter("the body is not a JSON object sent as application/json, in UTF-8")
    if isinstance(error, HTTPException) and error.status_code in _OF_BODIES:
        return _OF_BODIES[error.status_code](error.detail)
    path = request.scope["path"]  # of `request.url` an encoded question mark would end it
    if isinstance(error, HTTPException) and error.status_code == 405:
        return MethodNotAllowed(f"{request.method} is not allowed on {path}: see /docs")
    return NotFound(f"{path} does not exist: see /docs")


def _methods(request: Request) -> list[str]:
    """All methods that a path has: each may be a route of its own."""
    methods = [
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]
    return ["GET", "HEAD", *methods[1:]] if "GET" in methods else methods


def _sentence(error: dict[str, Any]) -> str:
    """A validation error in words, with the value and the choices."""
    where, name = error["loc"][0], error["loc"][-1]
    if error["type"] == "extra_forbidden":
        known = ", ".join(sorted(_KNOWN_FIELDS[error["loc"][-2]].model_fields))
        return f"{name} is no parameter: the known ones are {known}"
    if error["type"] == "union_tag_invalid":
        return f"mode is {error['ctx']['tag']!r}: choose one of {error['ctx']['expected_tags']}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if (where == "body" and len(error["loc"]) == 1) or error["type"] == "json_invalid":
        return "the body is not a JSON object sent as application/json"
    if error["type"] == "missing":
        return f"{name} is missing from the {where}"
    shown = repr(error["input"])[:_SHOWN_INPUT]
    return f"{name} is {shown}: {error['msg'][0].lower()}{error['msg'][1:]}"
