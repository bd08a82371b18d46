from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.app import create_app
from service.csp import page_policy
from service.settings import Settings, SettingsError
from tests.service.support import FakeEngine, png, serve

ORIGIN = "https://app.example"


@pytest.mark.parametrize(
    "path", ["/models", "/nope", "/metrics", "/docs", "/static/swagger-ui.css"]
)
def test_every_answer_has_the_headers_once(reader: httpx.Client, path: str) -> None:
    headers = reader.get(path).headers
    assert headers.get_list("x-content-type-options") == ["nosniff"]
    assert headers.get_list("referrer-policy") == ["no-referrer"]
    (policy,) = headers.get_list("content-security-policy")
    assert policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in policy
    assert headers.get("cache-control") == (None if "static" in path else "no-store")


def test_broken_route_has_the_headers_too(client: httpx.Client, engine: FakeEngine) -> None:
    engine.failure = RuntimeError("broken")
    response = client.post("/classify", content=png())
    assert response.status_code == 500
    assert response.headers["x-content-type-options"] == "nosniff"


def test_page_policy_lets_only_the_pages_own_scripts_run() -> None:
    html = "<script src='/a.js'></script><script>\nalert(1)</script>"
    # printf '\nalert(1)' | openssl sha256 -binary | base64
    digest = "cfGXBG41ZR13cBtpRr7V/KlHrRugbtbOXikzO7LFEFY="
    policy = page_policy(html)
    (scripts,) = [part for part in policy.split("; ") if part.startswith("script-src")]
    assert scripts == f"script-src 'self' 'sha256-{digest}'"


def test_cors_is_off(reader: httpx.Client) -> None:
    headers = reader.get("/models", headers={"Origin": ORIGIN}).headers
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.fixture
def shared(settings: Settings, engine: FakeEngine, tmp_path: Path) -> Iterator[httpx.Client]:
    (tmp_path / "keys").write_text(f"a:{'0' * 64}")
    update = {"cors_origins": ("https://b.example", ORIGIN), "api_keys_file": tmp_path / "keys"}
    with serve(create_app(settings.model_copy(update=update), engine)) as client:
        yield client


def test_cors_lets_a_listed_origin_ask(shared: httpx.Client) -> None:
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    preflight = shared.options("/classify", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    # Also a refusal, which the page must be able to read.
    response = shared.post("/classify", headers={"Origin": ORIGIN})
    assert response.status_code == 401
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-credentials" not in response.headers


def test_cors_star_lets_any_origin_ask(settings: Settings, engine: FakeEngine) -> None:
    with serve(create_app(settings.model_copy(update={"cors_origins": ("*",)}), engine)) as client:
        headers = client.get("/models", headers={"Origin": ORIGIN}).headers
    assert headers["access-control-allow-origin"] == "*"


def test_cors_other_origin_is_not_let_in(shared: httpx.Client) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert shared.options("/classify", headers=asked).status_code == 400
    response = shared.get("/healthz", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    "origins", [("app.example",), ("https://app.example/",), ("https://a.example", "b")]
)
def test_cors_origin_that_is_none_refused_at_start(
    settings: Settings, engine: FakeEngine, origins: tuple[str, ...]
) -> None:
    with pytest.raises(SettingsError, match=r"RNP_CORS_ORIGINS holds '.*': an origin is like"):
        create_app(settings.model_copy(update={"cors_origins": origins}), engine)
