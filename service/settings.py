"""Settings of the service: environment variables with the prefix RNP_, read once at start."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

import models
from service.cores import cpus

PREFIX = "RNP_"
# The bundles that come along; others of them than these take a second or more to load.
SHIPPED = Path(models.__path__[0]) / "bundles"
_FAST = ("cifar10-mcifarnet", "imagenette-resnet18")
# What Kubernetes tells pods of every Service.
_SERVICE_LINK = re.compile("_SERVICE_(HOST|PORT)|_PORT_[0-9]+_(TCP|UDP|SCTP)")


class SettingsError(ValueError):
    """A setting that is unknown or outside its range; the message names the variable."""


def _listed(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(name for part in value.split(",") if (name := part.strip()))


# Of a variable, what stands between commas.
Listed = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]


class Settings(BaseSettings):
    """What an operator can set; the variable is the field's name in capitals after RNP_."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(default=8000, ge=0, le=65535)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    bundles: Path = Field(default=SHIPPED, description="directory of bundle directories")
    model: str | None = Field(default=None, description="default bundle; else the first by name")
    load: Listed = Field(
        default_factory=lambda values: _at_start(values.get("bundles"), values.get("model")),
        description="directories to load at start, separated by commas, empty for all; else all, "
        "of those that come along the small ones and `model`",
    )
    engine: Literal["auto", "onnx", "torch", "triton"] = "auto"
    workers: int = Field(
        default=1, ge=1, description="processes that share the port, each with engines and queues"
    )
    threads: int = Field(
        default_factory=lambda values: max(cpus() // values.get("workers", 1), 1),
        ge=1,
        description="of an engine; else one per core, shared out among the processes",
    )
    cache_dir: Path = Field(
        default_factory=lambda: _user_cache() / "runtime-neural-pruning",
        description="for what is built from a bundle at start",
    )
    budget: float = Field(
        default=0.5, gt=0, le=1, description="share of the full MACs, until PUT /budget"
    )
    target_p95_ms: float | None = Field(
        default=None, ge=0.01, le=60_000, description="let the budget follow the load, for this p95"
    )
    floor: float = Field(
        default=0.1, gt=0, le=1, description="the lowest budget that the load can bring about"
    )
    ceiling: float | None = Field(
        default=None, gt=0, le=1, description="the highest with a target, whatever is asked for"
    )
    hold_budgets: bool = Field(
        default=True, description="correct the calibration by what live images cost"
    )

    max_body_bytes: int = Field(default=32 * 2**20, ge=1)
    max_inflight_bytes: int = Field(
        default=256 * 2**20, ge=1, description="bodies of all requests together"
    )
    max_pixels: int = Field(default=40_000_000, ge=1)
    max_request_pixels: int = Field(
        default=120_000_000, ge=1, description="of all images of a request"
    )
    max_parts: int = Field(default=32, ge=1, description="images in one multipart request")
    max_batch: int = Field(default=16, ge=1, description="images that an engine runs at once")
    max_wait_ms: float = Field(default=0, ge=0, le=1000, description="wait for a batch to fill")
    max_queue: int = Field(default=256, ge=1, description="images that may wait, per model")
    decode_threads: int = Field(
        default_factory=lambda values: 2 if values.get("workers", 1) == 1 else 1,
        ge=1,
        description="that decode images; else 2, or 1 in each of several processes",
    )
    decode_in_batch: bool = Field(
        default_factory=lambda values: values.get("workers", 1) > 1,
        description="small files by the engine's thread, before their batch; else by those threads",
    )
    lame_duck_s: float = Field(
        default=0, ge=0, description="seconds from SIGTERM in which /readyz says no, but all answer"
    )
    drain_s: int = Field(
        default=30, ge=0, description="seconds that requests in flight get at a stop"
    )

    api_keys_file: Path | None = Field(
        default=None, description="name:sha256 a line, of keys for callers; needs a key from all"
    )
    operator_keys_file: Path | None = Field(
        default=None, description="the same of operators, who may also change things"
    )
    rate_per_s: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="images per key, else per address"
    )
    rate_burst: int = Field(default=32, ge=1, description="images that may come at once")
    cors_origins: Listed = Field(default=(), description="web origins, by commas; * for all")
    trusted_proxies: Listed = Field(
        default=(),
        description="addresses and networks, by commas, whose X-Forwarded-For is "
        "believed; * for all",
    )

    header_timeout_s: float = Field(default=10, gt=0, description="until headers are complete")
    max_header_bytes: int = Field(default=32 * 2**10, ge=1024)
    body_timeout_s: float = Field(default=20, gt=0, description="waited for a body in all, plus")
    body_bytes_per_s: float = Field(default=10_000, gt=0, description="a second per so many bytes")
    send_timeout_s: float = Field(default=20, gt=0, description="for an answer to be taken")
    keep_alive_s: int = Field(default=5, ge=0, description="an idle connection is kept open")
    max_connections: int = Field(default=500, ge=1)

    otlp_endpoint: str | None = Field(
        default_factory=lambda: os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None,
        description="URL of a collector, to which traces go",
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies_are_addresses(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies if proxies != ("*",) else ():
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                # Any other would be compared with addresses, and never be one.
                raise PydanticCustomError(
                    "proxy",
                    "{error}: take addresses, networks such as 10.0.0.0/8, or * alone for all",
                    {"error": str(error)},
                ) from error
        return proxies

    @model_validator(mode="after")
    def _floor_below_ceiling(self) -> Settings:
        if self.ceiling is not None and self.floor > self.ceiling:
            raise ValueError(f"{PREFIX}FLOOR {self.floor} is above {PREFIX}CEILING {self.ceiling}")
        return self

    @model_validator(mode="after")
    def _parts_fit_queue(self) -> Settings:
        if self.max_parts > self.max_queue:
            raise ValueError(
                f"{PREFIX}MAX_PARTS {self.max_parts} is above {PREFIX}MAX_QUEUE {self.max_queue}: "
                "such a request could never be queued"
            )
        return self

    @model_validator(mode="after")
    def _image_fits_request(self) -> Settings:
        if self.max_pixels > self.max_request_pixels:
            raise ValueError(
                f"{PREFIX}MAX_PIXELS {self.max_pixels} is above {PREFIX}MAX_REQUEST_PIXELS "
                f"{self.max_request_pixels}: such an image could never be read"
            )
        return self

    @model_validator(mode="after")
    def _body_fits_inflight(self) -> Settings:
        # The inflated or taken-apart form of a body is held beside it.
        if 2 * self.max_body_bytes > self.max_inflight_bytes:
            raise ValueError(
                f"{PREFIX}MAX_INFLIGHT_BYTES {self.max_inflight_bytes} is below twice "
                f"{PREFIX}MAX_BODY_BYTES {self.max_body_bytes}: such a body could never be held"
            )
        return self


def load_settings() -> Settings:
    """Read the settings of this process.

    Raises:
        SettingsError: an RNP_ variable that is no setting, or a value that is not allowed.
    """
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    for variable in sorted(os.environ):
        if variable.upper().startswith(PREFIX) and variable.upper() not in known:
            raise SettingsError(f"{variable} is no setting: {_advice(variable.upper(), known)}")
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from error


def _advice(variable: str, known: list[str]) -> str:
    if _SERVICE_LINK.search(variable):
        return (
            "it is of the kind that Kubernetes sets for a Service of such a name; "
            "`enableServiceLinks: false` in the pod's spec keeps it out"
        )
    choices = difflib.get_close_matches(variable, known, n=1) or known
    return f"did you mean {', '.join(choices)}?"


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return str(first["ctx"]["error"])
    name = PREFIX + str(first["loc"][0]).upper()
    return f"{name} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _at_start(bundles: Path | None, model: str | None) -> tuple[str, ...]:
    if bundles is None or bundles.resolve() != SHIPPED.resolve():
        return ()
    return tuple(sorted({*_FAST, model or _FAST[0]}))


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
