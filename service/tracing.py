"""Traces by OpenTelemetry, whose SDK is imported only if there is a collector to send them to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.notes import NOTES, ImageNote, Notes
from service.settings import Settings, SettingsError

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_NAME = "runtime-neural-pruning"
_PATH = "/v1/traces"


class Tracer:
    """Makes the spans of requests and sends them, in batches and from a thread of its own.

    What OpenTelemetry's own variables set, such as OTEL_RESOURCE_ATTRIBUTES or OTEL_TRACES_SAMPLER,
    holds.

    Args:
        endpoint: URL of the collector, to which `/v1/traces` is added unless it ends so.

    Raises:
        SettingsError: OpenTelemetry is not installed, or the endpoint is no URL.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation import tracecontext
        except ImportError as error:
            raise SettingsError(
                f"RNP_OTLP_ENDPOINT is {endpoint!r}, but {error.name} is not installed: install "
                f"'{_NAME}[otel]', or set neither it nor OTEL_EXPORTER_OTLP_ENDPOINT"
            ) from error
        if not endpoint.startswith(("http://", "https://")):
            raise SettingsError(f"RNP_OTLP_ENDPOINT is {endpoint!r}: it must be an http(s) URL")
        self._trace, self._propagator = trace, tracecontext.TraceContextTextMapPropagator()
        # What is given here would win over the variables, so they are read once more.
        named = Resource.create({"service.name": _NAME})
        resource = named.merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        url = endpoint.rstrip("/").removesuffix(_PATH) + _PATH
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer(_NAME)

    def start(self, scope: Scope) -> Span:
        """Begin the span of a request, as a child of its `traceparent`, if it has one."""
        headers = Headers(scope=scope)
        carrier = {name: headers[name] for name in self._propagator.fields if name in headers}
        return self._tracer.start_span(
            scope["method"],
            self._propagator.extract(carrier),
            kind=self._trace.SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "url.path": scope["path"]},
        )

    def headers(self, span: Span) -> dict[str, str]:
        """The `traceparent` by which others refer to a span."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._trace.set_span_in_context(span))
        return carrier

    def finish(self, span: Span, scope: Scope, status: int, notes: Notes | None) -> None:
        """End the span of a request, with its stages as children."""
        if status:
            span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(self._trace.StatusCode.ERROR)
        if route := getattr(scope.get("route"), "path", None):
            span.set_attribute("http.route", route)
            span.update_name(f"{scope['method']} {route}")
        if notes:
            self._add_notes(span, notes)
        span.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def _add_notes(self, span: Span, notes: Notes) -> None:
        if notes.code:
            span.set_attribute("error.type", notes.code)
        if not notes.images or notes.model is None or notes.budget is None:
            return
        about: dict[str, str | float] = {"rnp.model": notes.model, "rnp.budget": notes.budget}
        macs = sum(image.macs for image in notes.images)
        images = len(notes.images)
        span.set_attributes(about | {"rnp.images": images, "rnp.macs": macs})
        span.set_attribute("rnp.fraction", notes.fraction)
        if span.is_recording():
            for image in notes.images:
                self._add_stages(span, image, about)

    def _add_stages(self, span: Span, image: ImageNote, about: dict[str, str | float]) -> None:
        """The stages follow each other; the last one ended a moment before it was noted."""
        context = self._trace.set_span_in_context(span)
        ended = image.ended_ns
        cost = about | {"rnp.fraction": image.fraction, "rnp.macs": image.macs}
        before = [("queue", image.queue_s, about), ("decode", image.decode_s, about)]
        if image.in_batch:
            before.reverse()
        for name, seconds, attributes in (("inference", image.inference_s, cost), *before):
            began = ended - int(seconds * 1e9)
            if seconds:  # an image that came preprocessed is not decoded
                child = self._tracer.start_span(
                    name, context, attributes=attributes, start_time=began
                )
                child.end(ended)
            ended = began


class Tracing:
    """ASGI middleware: a span for every request but those to `quiet` paths."""

    def __init__(self, app: ASGIApp, tracer: Tracer, quiet: Sequence[str]) -> None:
        self._app = app
        self._tracer = tracer
        self._quiet = quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with its `traceparent` in the answer's headers."""
        if scope["type"] != "http" or scope["path"] in self._quiet:
            await self._app(scope, receive, send)
            return
        span = self._tracer.start(scope)
        scope.setdefault("state", {})["trace_id"] = f"{span.get_span_context().trace_id:032x}"
        status = 0

        async def send_with_parent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(self._tracer.headers(span))
            await send(message)

        try:
            await self._app(scope, receive, send_with_parent)
        finally:
            self._tracer.finish(span, scope, status, NOTES.get())


def create_tracer(settings: Settings) -> Tracer | None:
    """What the settings ask for.

    Raises:
        SettingsError: OpenTelemetry is not installed, or the endpoint is no URL.
    """
    return Tracer(settings.otlp_endpoint) if settings.otlp_endpoint else None
