"""Traces, as they arrive at a collector over HTTP."""

from __future__ import annotations

import gzip
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from service.app import create_app
from service.settings import Settings, SettingsError, load_settings
from tests.service.support import FakeEngine, png, serve

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(HTTPServer):
    """Takes traces and keeps them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paths: list[str] = []
        self.requests: list[ExportTraceServiceRequest] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.paths.append(self.path)
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()


def attributes(span: Span) -> dict[str, Any]:
    return {
        pair.key: getattr(pair.value, str(pair.value.WhichOneof("value")))
        for pair in span.attributes
    }


def traced(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"otlp_endpoint": url})


def test_request_becomes_a_span_with_its_stages_as_children(
    settings: Settings, engine: FakeEngine, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serve(create_app(traced(settings, collector.url), engine)) as client:
        response = client.post(
            "/classify?budget=0.5",
            content=png(),
            headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b"},
        )
    (server,) = [s for s in collector.spans if s.kind == Span.SPAN_KIND_SERVER]
    stages = {s.name: s for s in collector.spans if s.kind != Span.SPAN_KIND_SERVER}
    assert collector.paths == ["/v1/traces"]
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, PARENT)
    assert server.trace_state == "a=b"
    assert response.headers["traceparent"] == f"00-{TRACE}-{server.span_id.hex()}-01"
    answer = response.json()
    assert server.name == "POST /classify"
    assert attributes(server) == {
        "http.request.method": "POST",
        "http.route": "/classify",
        "http.response.status_code": 200,
        "url.path": "/classify",
        "rnp.model": "tiny",
        "rnp.budget": 0.5,
        "rnp.images": 1,
        "rnp.fraction": answer["compute"]["fraction"],
        "rnp.macs": answer["compute"]["macs"],
    }
    assert set(stages) == {"decode", "queue", "inference"}
    assert {s.parent_span_id for s in stages.values()} == {server.span_id}
    assert {s.trace_id for s in stages.values()} == {server.trace_id}
    order = [stages[name] for name in ("decode", "queue", "inference")]
    times = [t for s in order for t in (s.start_time_unix_nano, s.end_time_unix_nano)]
    assert times == sorted(times)
    assert server.start_time_unix_nano <= times[0]
    assert times[-1] <= server.end_time_unix_nano
    for stage in order:
        ms = (stage.end_time_unix_nano - stage.start_time_unix_nano) / 1e6
        assert ms == pytest.approx(answer["timing_ms"][stage.name], abs=0.002)
    assert attributes(stages["inference"])["rnp.macs"] == answer["compute"]["macs"]
    (line,) = [r for r in caplog.records if r.msg == "request" and vars(r)["path"] == "/classify"]
    assert vars(line)["trace_id"] == TRACE


def test_each_image_has_stages_and_preprocessed_ones_are_not_decoded(
    settings: Settings, engine: FakeEngine, collector: Collector
) -> None:
    values = {"name": "input", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.0] * 192}
    with serve(create_app(traced(settings, collector.url), engine)) as client:
        assert client.post("/classify", files=[("file", png())] * 3).is_success
        assert client.post("/v2/models/tiny/infer", json={"inputs": [values]}).is_success
    names = [span.name for span in collector.spans]
    assert names.count("decode") == 3
    assert names.count("inference") == 4
    (server,) = [s for s in collector.spans if s.name == "POST /v2/models/{name}/infer"]
    assert attributes(server)["rnp.images"] == 1


def test_image_that_its_batch_decodes_is_so_after_the_queue(
    settings: Settings, engine: FakeEngine, collector: Collector
) -> None:
    in_batch = traced(settings, collector.url).model_copy(update={"decode_in_batch": True})
    with serve(create_app(in_batch, engine)) as client:
        assert client.post("/classify", content=png()).is_success
    stages = [span for span in collector.spans if span.kind != Span.SPAN_KIND_SERVER]
    stages.sort(key=lambda span: span.start_time_unix_nano)
    assert [stage.name for stage in stages] == ["queue", "decode", "inference"]


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "runtime-neural-pruning"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=eyes,team=a"}, "eyes"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "team=a"}, "runtime-neural-pruning"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=eyes", "OTEL_SERVICE_NAME": "ears"}, "ears"),
    ],
)
def test_service_has_the_name_that_either_variable_gives(
    settings: Settings,
    engine: FakeEngine,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    name: str,
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with serve(create_app(traced(settings, collector.url), engine)) as client:
        client.get("/models")
    resource = collector.requests[0].resource_spans[0].resource
    told = {pair.key: pair.value.string_value for pair in resource.attributes}
    assert told["service.name"] == name
    assert told.get("team") == ("a" if "team" in str(variables) else None)


def test_refusals_and_failures_are_marked(
    settings: Settings, engine: FakeEngine, collector: Collector
) -> None:
    with serve(create_app(traced(settings, collector.url), engine)) as client:
        client.post("/classify?cap=0.01", content=png())
        engine.failure = RuntimeError("broken")
        client.post("/classify", content=png())
    refused, failed = (s for s in collector.spans if s.kind == Span.SPAN_KIND_SERVER)
    assert attributes(refused)["error.type"] == "cap_too_low"
    assert refused.status.code == Status.STATUS_CODE_UNSET
    assert attributes(failed)["error.type"] == "internal_error"
    assert failed.status.code == Status.STATUS_CODE_ERROR


def test_watchers_are_not_traced(
    settings: Settings, engine: FakeEngine, collector: Collector
) -> None:
    with serve(create_app(traced(settings, collector.url), engine)) as client:
        assert "traceparent" not in client.get("/healthz").headers
        client.get("/metrics")
        client.get("/models", headers={"traceparent": "00-nonsense"})
    (span,) = collector.spans
    assert (span.name, span.parent_span_id) == ("GET /models", b"")


def test_unsampled_parent_is_not_sent(
    settings: Settings, engine: FakeEngine, collector: Collector
) -> None:
    with serve(create_app(traced(settings, collector.url), engine)) as client:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
        response = client.post("/classify", content=png(), headers=headers)
    assert response.headers["traceparent"].startswith(f"00-{TRACE}-")
    assert response.headers["traceparent"].endswith("-00")
    assert collector.spans == []


def test_collector_that_is_away_harms_no_request(
    settings: Settings,
    engine: FakeEngine,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")  # seconds that it is tried for
    url = collector.url
    collector.shutdown()
    collector.server_close()
    with serve(create_app(traced(settings, url), engine)) as client:
        assert client.post("/classify", content=png()).status_code == 200


def test_off_nothing_that_sends_is_imported_and_no_header_sent(client: httpx.Client) -> None:
    assert "traceparent" not in client.post("/classify", content=png()).headers
    code = (
        "import sys; from service.app import create_app; create_app(); "
        "names = ('opentelemetry.sdk', 'opentelemetry.exporter', 'requests'); "
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_endpoint_is_also_the_standard_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().otlp_endpoint is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4318")
    assert load_settings().otlp_endpoint == "http://a:4318"
    monkeypatch.setenv("RNP_OTLP_ENDPOINT", "http://b:4318")
    assert load_settings().otlp_endpoint == "http://b:4318"


def test_bad_endpoint_refused_in_a_sentence(settings: Settings, engine: FakeEngine) -> None:
    with pytest.raises(SettingsError, match="RNP_OTLP_ENDPOINT is 'a:4317': it must be an http"):
        create_app(traced(settings, "a:4317"), engine)


def test_missing_extra_is_one_sentence(bundles: Path) -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk'] = None; import service.__main__ as m; "
        "sys.exit(m.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"RNP_OTLP_ENDPOINT": "http://a:4318", "RNP_BUNDLES": str(bundles), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "but opentelemetry.sdk.trace is not installed" in done.stderr
    assert "install 'runtime-neural-pruning[otel]'" in done.stderr
