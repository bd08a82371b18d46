"""The keys in the OpenAPI description, so that /docs asks for one."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from service.schemas import ErrorBody
from service.security.access import Role, role_of
from service.security.keys import Keyring

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_REFUSALS = {"401": "No key, or one that is not known", "403": "A caller's key, not an operator's"}


def describe_keys(app: FastAPI, keyring: Keyring) -> None:
    """Let every operation of the description say whose key it needs."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        if "securitySchemes" in schema["components"]:
            return schema
        schema["components"]["securitySchemes"] = _SCHEMES
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                _describe(operation, role_of(method.upper(), path), keyring)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _describe(operation: dict[str, Any], role: Role, keyring: Keyring) -> None:
    if role == Role.ANYONE or (role == Role.CALLER and not keyring.guards_callers):
        return
    operation["security"] = [{name: []} for name in _SCHEMES]
    if role == Role.OPERATOR:
        operation["description"] = f"{operation.get('description', '')} Operators only.".strip()
    body = {"schema": {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}}
    for status, text in _REFUSALS.items():
        operation["responses"][status] = {
            "description": text,
            "content": {"application/json": body},
        }
