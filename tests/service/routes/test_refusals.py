"""Bad input of every kind: the right status, code word and sentence, and a healthy service."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from service.app import create_app
from service.settings import Settings
from tests.service.support import FakeEngine, encode, make_card, metric, png, serve


def png_bomb(width: int, height: int) -> bytes:
    """A small file whose header states a huge image, with many zeros to fill it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10**6), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def classify(query: str = "", **body: Any) -> dict[str, Any]:
    return {"method": "POST", "url": f"/classify{query}", **(body or {"content": png()})}


def put_budget(**body: Any) -> dict[str, Any]:
    return {"method": "PUT", "url": "/budget", **body}


def chunks(total: int) -> Iterator[bytes]:
    """A body whose length is not announced."""
    for _ in range(total // 50_000):
        yield bytes(50_000)


JPEG = encode(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=b"}

CASES: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "empty": (classify(content=b""), 400, "not_an_image", "empty"),
    "text": (classify(content=b"hello"), 400, "not_an_image", "5 bytes are not an image"),
    "json": (classify(json={"image": "aGk="}), 400, "not_an_image", "not an image"),
    "zeros": (classify(content=bytes(1000)), 400, "not_an_image", "not an image"),
    "truncated JPEG": (classify(content=JPEG[:900]), 400, "not_an_image", "truncated"),
    "truncated PNG": (classify(content=png()[:50]), 400, "not_an_image", "truncated"),
    "JPEG of magic only": (classify(content=b"\xff\xd8\xff"), 400, "not_an_image", "header"),
    "bomb": (classify(content=png_bomb(20_000, 20_000)), 413, "too_many_pixels", "400000000"),
    "100 megapixels": (classify(content=png_bomb(10_000, 10_000)), 413, "too_many_pixels", "limit"),
    "19 gigapixels": (classify(content=png_bomb(2**31 - 1, 9)), 413, "too_many_pixels", "limit"),
    "60 MB": (classify(content=bytes(60 * 10**6)), 413, "body_too_large", "60000000 bytes"),
    "2 MB in chunks": (classify(content=chunks(2 * 10**6)), 413, "body_too_large", "1000000"),
    "TIFF": (
        classify(content=encode(Image.new("RGB", (8, 8)), "TIFF")),
        415,
        "format_not_allowed",
        "TIFF is not read: send JPEG",
    ),
    "PDF": (classify(content=b"%PDF-1.7"), 415, "format_not_allowed", "PDF"),
    "gzip": (
        classify(content=png(), headers={"content-encoding": "gzip"}),
        415,
        "format_not_allowed",
        "gzip",
    ),
    "missing part": (classify(files={"image": png()}), 422, "missing_part", "named 'file'"),
    "field for a part": (classify(files={"x": (None, b"1")}), 422, "missing_part", "found: x"),
    "too many parts": (classify(files=[("file", png())] * 5), 413, "too_many_parts", "than 4"),
    "no boundary": (
        classify(content=b"x", headers={"content-type": "multipart/form-data"}),
        400,
        "bad_multipart",
        "boundary",
    ),
    "broken multipart": (classify(content=b"xyz", headers=FORM), 400, "bad_multipart", "multipart"),
    "cut multipart": (
        classify(content=b'--b\r\ncontent-disposition: a; name="file"\r\n\r\nx', headers=FORM),
        400,
        "bad_multipart",
        "truncated",
    ),
    "budget 0": (classify("?budget=0"), 422, "bad_parameter", "budget is '0'"),
    "budget -1": (classify("?budget=-1"), 422, "bad_parameter", "greater than 0"),
    "budget 1.01": (classify("?budget=1.01"), 422, "bad_parameter", "less than or equal to 1"),
    "budget nan": (classify("?budget=nan"), 422, "bad_parameter", "finite"),
    "budget inf": (classify("?budget=inf"), 422, "bad_parameter", "budget is 'inf'"),
    "budget abc": (classify("?budget=abc"), 422, "bad_parameter", "valid number"),
    "budget empty": (classify("?budget="), 422, "bad_parameter", "budget"),
    "budget out of reach": (classify("?budget=0.1"), 422, "budget_too_low", "no less than 0.2"),
    "cap 0": (classify("?cap=0"), 422, "bad_parameter", "cap is '0'"),
    "cap 2": (classify("?cap=2"), 422, "bad_parameter", "cap is '2'"),
    "cap out of reach": (
        classify("?cap=0.01"),
        422,
        "cap_too_low",
        f"takes {make_card().min_cap}",
    ),
    "top_k 0": (classify("?top_k=0"), 422, "bad_parameter", "top_k is '0'"),
    "top_k 1.5": (classify("?top_k=1.5"), 422, "bad_parameter", "valid integer"),
    "unknown model": (classify("?model=big"), 422, "unknown_model", "choose one of tiny"),
    "unknown parameter": (classify("?bugdet=1"), 422, "bad_parameter", "deadline_ms, model, top_k"),
    "PUT budget 0": (put_budget(json={"budget": 0}), 422, "bad_parameter", "budget is 0"),
    "PUT budget NaN": (
        put_budget(content=b'{"budget": NaN}', headers=JSON),
        422,
        "bad_parameter",
        "finite",
    ),
    "PUT budget too low": (put_budget(json={"budget": 0.1}), 422, "budget_too_low", "0.2"),
    "PUT no budget": (put_budget(json={}), 422, "bad_parameter", "budget is missing"),
    "PUT budget as a query": (
        {"method": "PUT", "url": "/budget?budget=0.3", "json": {"budget": 0.5}},
        422,
        "bad_parameter",
        "/budget takes no query, and this one has 'budget=0.3'",
    ),
    "PUT unknown mode": (
        put_budget(json={"mode": "x", "budget": 0.5}),
        422,
        "bad_parameter",
        "'fixed'",
    ),
    "PUT unknown key": (
        put_budget(json={"budget": 0.5, "x": 1}),
        422,
        "bad_parameter",
        "known ones are budget, mode",
    ),
    "PUT budget that is true": (put_budget(json={"budget": True}), 422, "bad_parameter", "True"),
    "PUT budget as text": (put_budget(json={"budget": "0.5"}), 422, "bad_parameter", "'0.5'"),
    "PUT auto target that is true": (
        put_budget(json={"mode": "auto", "target_p95_ms": True, "floor": 0.5}),
        422,
        "bad_parameter",
        "target_p95_ms is True",
    ),
    "PUT auto floor too low": (
        put_budget(json={"mode": "auto", "target_p95_ms": 50, "floor": 0.1}),
        422,
        "budget_too_low",
        "floor is 0.1",
    ),
    "PUT auto floor above ceiling": (
        put_budget(json={"mode": "auto", "target_p95_ms": 50, "floor": 0.5, "ceiling": 0.4}),
        422,
        "bad_parameter",
        "floor 0.5 is above ceiling 0.4",
    ),
    "PUT auto no target": (
        put_budget(json={"mode": "auto", "floor": 0.5}),
        422,
        "bad_parameter",
        "target_p95_ms is missing",
    ),
    "PUT auto unknown key": (
        put_budget(json={"mode": "auto", "target_p95_ms": 50, "budget": 1}),
        422,
        "bad_parameter",
        "ceiling, floor, mode, target_p95_ms",
    ),
    "deadline 0": (classify("?deadline_ms=0"), 422, "bad_parameter", "deadline_ms is '0'"),
    "deadline NaN": (classify("?deadline_ms=nan"), 422, "bad_parameter", "deadline_ms"),
    "given twice": (
        classify("?budget=0.9&top_k=1&budget=0.3"),
        422,
        "bad_parameter",
        "'budget' is",
    ),
    "a slash more": (classify("/"), 404, "not_found", "/classify/ does not exist"),
    "PUT mode null": (
        put_budget(json={"mode": None, "budget": 0.4}),
        422,
        "bad_parameter",
        "mode is 'null': choose one of 'fixed', 'auto'",
    ),
    "PUT no JSON": (put_budget(content=b"{", headers=JSON), 422, "bad_parameter", "JSON object"),
    "PUT not UTF-8": (
        put_budget(content=b"\xa1\xd8", headers=JSON),
        422,
        "bad_parameter",
        "in UTF-8",
    ),
    "PUT a list": (put_budget(json=[1]), 422, "bad_parameter", "JSON object"),
    "PUT nothing": (put_budget(), 422, "bad_parameter", "JSON object"),
    "unknown path": ({"method": "GET", "url": "/nope"}, 404, "not_found", "/nope"),
    "question mark": ({"method": "GET", "url": "/v2%3Fx"}, 404, "not_found", "/v2?x does not"),
    "wrong at a question mark": (
        {"method": "GET", "url": "/models/a%3Fb/c"},
        404,
        "not_found",
        "/models/a?b/c does not",
    ),
    "unknown asset": ({"method": "GET", "url": "/static/no.js"}, 404, "not_found", "no.js"),
    "outside assets": ({"method": "GET", "url": "/static/..%2fapp.py"}, 404, "not_found", "see"),
    "wrong method": ({"method": "GET", "url": "/classify"}, 405, "method_not_allowed", "GET"),
}


@pytest.fixture(scope="module")
def server(settings: Settings) -> Iterator[httpx.Client]:
    card = make_card()
    with serve(create_app(settings, FakeEngine(card.table(), 3))) as client:
        yield client


@pytest.mark.parametrize("name", CASES)
def test_request_bad_input_refused_and_service_stays_healthy(
    server: httpx.Client, name: str
) -> None:
    request, status, code, words = CASES[name]
    response = server.request(**request)
    body = response.json()
    assert (response.status_code, body["code"]) == (status, code)
    assert set(body) == {"error", "code"}
    assert words in body["error"]
    assert response.headers["x-request-id"]
    assert server.get("/healthz").json() == {"status": "ok"}
    assert server.post("/classify", content=png()).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/classify", "POST"),
        ("TRACE", "/budget", "GET, HEAD, PUT"),
        ("DELETE", "/v2/models/tiny/versions/1", "GET, HEAD"),
        ("PUT", "/docs", "GET, HEAD"),
    ],
)
def test_request_wrong_method_tells_the_right_ones(
    server: httpx.Client, method: str, path: str, allowed: str
) -> None:
    response = server.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("path", ["/classify?model=", "/v2/models/", "/"])
def test_refusal_of_something_long_is_short(server: httpx.Client, path: str) -> None:
    response = server.post(path + "x" * 5000)
    assert response.is_client_error
    assert len(response.json()["error"]) <= 1000


def test_rejected_counts_refusals_by_code(server: httpx.Client) -> None:
    before = metric(server, "rnp_rejected_total", reason="cap_too_low")
    server.post("/classify?cap=0.01", content=png())
    assert metric(server, "rnp_rejected_total", reason="cap_too_low") == before + 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/models/tiny"),
        ("DELETE", "/models/tiny"),
        ("POST", "/v2/models/tiny/infer"),
        ("POST", "/v2/models/tiny/versions/1/infer"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/tiny/load"),
        ("POST", "/v2/repository/models/tiny/unload"),
    ],
)
def test_request_query_where_there_is_none_refused(
    server: httpx.Client, method: str, path: str
) -> None:
    response = server.request(method, f"{path}?budget=0.3")
    assert response.status_code == (400 if path.startswith("/v2") else 422)
    assert "takes no query, and this one has 'budget=0.3'" in response.json()["error"]
    assert server.get("/models/tiny?reader").status_code == 200
