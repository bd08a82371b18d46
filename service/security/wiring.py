"""Puts the parts around an app, in their order; those whose settings are absent are left out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from service.metrics import Metrics
from service.security.bodies import BodyLimits
from service.security.guard import Guard
from service.security.keys import Keyring
from service.security.rates import Buckets
from service.security.scheme import describe_keys
from service.settings import Settings, SettingsError

_SENT = ["Authorization", "X-API-Key", "X-Request-ID", "Inference-Header-Content-Length"]
_SEEN = ["Inference-Header-Content-Length", "Retry-After", "X-Request-ID"]


def add_security(
    app: FastAPI, settings: Settings, metrics: Metrics, routes: Sequence[BaseRoute]
) -> None:
    """Call before the middleware is added that observes what these parts refuse.

    Raises:
        SettingsError: a file of keys cannot be used, or an origin is none.
    """
    app.add_middleware(BodyLimits, settings=settings)
    keyring = None
    if settings.api_keys_file or settings.operator_keys_file:
        keyring = Keyring(settings)
        describe_keys(app, keyring)
    buckets = Buckets(settings.rate_per_s, settings.rate_burst) if settings.rate_per_s else None
    if keyring or buckets:
        app.add_middleware(Guard, keyring=keyring, buckets=buckets, metrics=metrics, routes=routes)
    if settings.cors_origins:
        _check_origins(settings.cors_origins)
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=_SENT,
            expose_headers=_SEEN,
        )


def _check_origins(origins: Sequence[str]) -> None:
    for origin in origins:
        # Any other would never be what a browser sends, and so let nobody in without a word.
        if not re.fullmatch(r"\*|https?://[^/]+", origin):
            raise SettingsError(
                f"RNP_CORS_ORIGINS holds {origin!r}: an origin is like https://app.example:8443, "
                "without a path, or * for all"
            )
