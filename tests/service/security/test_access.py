from __future__ import annotations

import pytest

from service.security.access import Role, role_of


@pytest.mark.parametrize(
    ("what", "role"),
    [
        ("GET /", Role.ANYONE),
        ("GET /docs", Role.ANYONE),
        ("GET /openapi.json", Role.ANYONE),
        ("GET /static/swagger-ui.css", Role.ANYONE),
        ("GET /healthz", Role.ANYONE),
        ("GET /metrics", Role.ANYONE),
        ("GET /v2/health/live", Role.ANYONE),
        ("GET /v2/health/ready", Role.ANYONE),
        ("POST /classify", Role.CALLER),
        ("GET /models", Role.CALLER),
        ("GET /models/tiny", Role.CALLER),
        ("GET /budget", Role.CALLER),
        ("GET /v2", Role.CALLER),
        ("GET /v2/models/tiny/versions/1/stats", Role.CALLER),
        ("POST /v2/models/tiny/infer", Role.CALLER),
        ("POST /v2/models/tiny/versions/1/infer", Role.CALLER),
        ("POST /v2/repository/index", Role.CALLER),
        ("PUT /budget", Role.OPERATOR),
        ("PUT /models/tiny", Role.OPERATOR),
        ("DELETE /models/tiny", Role.OPERATOR),
        ("POST /models/tiny/load", Role.OPERATOR),
        ("POST /v2/repository/models/tiny/load", Role.OPERATOR),
        ("POST /v2/models/tiny/trace/setting", Role.OPERATOR),
        # What nobody has thought of is the operator's.
        ("GET /nope", Role.OPERATOR),
        ("POST /healthz", Role.OPERATOR),
        ("POST /classify/", Role.OPERATOR),
        ("POST //classify", Role.OPERATOR),
        ("GET /v2/health/live/x", Role.OPERATOR),
        ("GET /models\n", Role.OPERATOR),
        ("PUT /v2/models/tiny/infer", Role.OPERATOR),
        ("POST /v2/models/a/b/c/infer", Role.OPERATOR),
    ],
)
def test_role_of(what: str, role: Role) -> None:
    assert role_of(*what.split(" ", 1)) == role
