"""Whose each route is: everybody's, a caller's, and all that is not known here an operator's."""

from __future__ import annotations

import re
from enum import Enum


class Role(Enum):
    """Who may use a route."""

    ANYONE = "anyone"
    CALLER = "caller"
    OPERATOR = "operator"


# What machines watch, and pages, which hold nothing that is not in the public source.
_ANYONE = re.compile(
    r"GET (/|/docs|/openapi\.json|/static/.*|/healthz|/readyz|/metrics|/v2/health/(live|ready))"
)
_CALLER = re.compile(
    r"POST /classify|GET /budget|GET /models(/.*)?|GET /v2(/models/.*)?|POST /v2/repository/index"
    r"|POST /v2/models/[^/]+(/versions/[^/]+)?/infer"
)


def role_of(method: str, path: str) -> Role:
    """Whose the route is that a request asks for."""
    what = f"{method} {path}"
    if _ANYONE.fullmatch(what):
        return Role.ANYONE
    return Role.CALLER if _CALLER.fullmatch(what) else Role.OPERATOR
