"""The Open Inference Protocol over plain HTTP: what no well-behaved client sends, what it gets."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.service.support import SIZE, FakeEngine, encode, make_card, png, serve, wait_until

INFER = "/v2/models/tiny/infer"
LENGTH = "inference-header-content-length"


def image(*contents: bytes, **changes: Any) -> dict[str, Any]:
    data = [base64.b64encode(content).decode() for content in contents]
    return {"name": "image", "shape": [len(data)], "datatype": "BYTES", "data": data, **changes}


def asked(*contents: bytes, **fields: Any) -> dict[str, Any]:
    return {"inputs": [image(*(contents or [png()]))], **fields}


def infer(head: Any, tail: bytes | None = None, **headers: str) -> dict[str, Any]:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    if tail is not None:
        headers[LENGTH] = str(len(text))
    headers = {key.replace("_", "-"): value for key, value in headers.items()}
    return {"method": "POST", "url": INFER, "content": text + (tail or b""), "headers": headers}


def get(url: str) -> dict[str, Any]:
    return {"method": "GET", "url": url}


def post(url: str, **body: Any) -> dict[str, Any]:
    return {"method": "POST", "url": url, **body}


BOMB = b'{"inputs": [' + b" " * (50 * 10**6)
CUT_ELEMENT = image(png(), data=None, parameters={"binary_data_size": 5})
ROW = {"name": "input", "shape": [1, 3, SIZE, SIZE], "datatype": "FP32"}

BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "unknown path": (get("/v2/nope"), 404, "/v2/nope does not exist"),
    "unknown model": (get("/v2/models/big"), 404, "'big': choose one of tiny"),
    "unknown model's readiness": (get("/v2/models/big/ready"), 404, "'big'"),
    "unknown model to ask": (post("/v2/models/big/infer", json=asked()), 404, "'big'"),
    "unknown version": (get("/v2/models/tiny/versions/2"), 404, "only one is 1"),
    "unknown version to ask": (
        post("/v2/models/tiny/versions/01/infer", json=asked()),
        404,
        "no version '01'",
    ),
    "wrong method": (get(INFER), 405, "GET is not allowed"),
    "shared memory": (get("/v2/systemsharedmemory/status"), 400, "not offered"),
    "shared GPU memory": (post("/v2/cudasharedmemory/region/a/register"), 400, "not offered"),
    "trace": (get("/v2/trace/setting"), 400, "not offered"),
    "trace of a model": (post("/v2/models/tiny/trace/setting", json={}), 400, "not offered"),
    "logging": (post("/v2/logging", json={}), 400, "not offered"),
    "generate": (post("/v2/models/tiny/generate", json={}), 400, "not offered"),
    "index no JSON": (post("/v2/repository/index", content=b"{"), 400, "not JSON"),
    "long index": (post("/v2/repository/index", content=bytes(5000)), 413, "limit is 4096"),
    "nothing": (infer(b""), 400, "not JSON"),
    "not UTF-8": (infer(b'{"id": "\xff"}'), 400, "UTF-8"),
    "UTF-16": (infer(json.dumps(asked()).encode("utf-16")), 400, "UTF-8"),
    "deep JSON": (infer(b"[" * 15_000), 400, "nested too deeply"),
    "deep data": (
        infer(b'{"inputs":[{"data":' + b"[" * 15_000 + b"]" * 15_000 + b"}]}"),
        400,
        "nested too deeply",
    ),
    "many arrays": (infer(b"[" + b"[]," * 20_000 + b"[]]"), 413, "20000 arrays and objects"),
    "surrogates": (infer(asked(parameters={"\ud800": 1})), 400, "is no parameter"),
    "rows not in the data": (infer({"inputs": [image(png(), shape=[2])]}), 400, "has 1 values"),
    "too many rows": (infer(asked(*[png()] * 5)), 413, "5 images, the limit is 4"),
    "FP64": (infer({"inputs": [{**ROW, "datatype": "FP64", "data": []}]}), 400, "not FP32"),
    "few values": (infer({"inputs": [{**ROW, "data": [0]}]}), 400, "takes 192"),
    "few bytes": (
        infer({"inputs": [{**ROW, "parameters": {"binary_data_size": 4}}]}, bytes(4)),
        400,
        "takes 768",
    ),
    "size of other bytes": (
        infer({"inputs": [{**ROW, "parameters": {"binary_data_size": 768}}]}, bytes(769)),
        400,
        "but 769 bytes follow",
    ),
    "element beyond the end": (
        infer({"inputs": [CUT_ELEMENT]}, struct.pack("<I", 9) + b"a"),
        400,
        "but 1 follow",
    ),
    "length beyond the end": (
        {**infer(asked()), "headers": {LENGTH: "999999"}},
        400,
        "said to have 999999 bytes",
    ),
    "length -1": ({**infer(asked()), "headers": {LENGTH: "-1"}}, 400, "a number of bytes"),
    "length of 20 digits": ({**infer(asked()), "headers": {LENGTH: "9" * 20}}, 400, "a number of"),
    "length x": ({**infer(asked()), "headers": {LENGTH: "x"}}, 400, "is 'x'"),
    "not an image": (infer(asked(b"hello")), 400, "5 bytes are not an image"),
    "an image of two is none": (infer(asked(png(), b"hello")), 400, "image 1: the 5 bytes"),
    "empty raw body": ({**infer(b""), "headers": {LENGTH: "0"}}, 400, "empty"),
    "TIFF": (infer(asked(encode(Image.new("RGB", (8, 8)), "TIFF"))), 415, "TIFF is not read"),
    "too many pixels": (
        infer(asked(encode(Image.new("1", (5000, 5000)), "PNG"))),
        413,
        "25000000 pixels",
    ),
    "budget 0": (infer(asked(parameters={"budget": 0})), 400, "budget is 0: input should be gr"),
    "budget out of reach": (infer(asked(parameters={"budget": 0.1})), 400, "no less than 0.2"),
    "budget a string": (infer(asked(parameters={"budget": "0.5"})), 400, "must be a number"),
    "cap 2": (infer(asked(parameters={"cap": 2})), 400, "cap is 2"),
    "cap out of reach": (infer(asked(parameters={"cap": 0.01})), 400, "the cheapest path"),
    "infinite budget": (
        infer(json.dumps(asked(parameters={"budget": 7})).replace("7}", "1e999}").encode()),
        400,
        "budget is inf",
    ),
    "deadline 0": (infer(asked(parameters={"deadline_ms": 0})), 400, "deadline_ms is 0"),
    "deadline a string": (infer(asked(parameters={"deadline_ms": "9"})), 400, "must be a number"),
    "deadline long past": (infer(asked(parameters={"deadline_ms": 0.001})), 504, "deadline_ms"),
    "1.5 MB": (infer(b" " * 1_500_000), 413, "1500000 bytes, the limit is 1000000"),
    "gzip bomb": (
        infer(gzip.compress(BOMB), content_encoding="gzip"),
        413,
        "inflates to more than 1000000",
    ),
    "deflate bomb": (infer(zlib.compress(BOMB), content_encoding="deflate"), 413, "inflates to"),
    "gzip that is none": (infer(asked(), content_encoding="gzip"), 400, "is not gzip"),
    "gzip cut off": (
        infer(gzip.compress(json.dumps(asked()).encode())[:-9], content_encoding="gzip"),
        400,
        "cut off",
    ),
    "question mark": (
        {"method": "POST", "url": "/v2/models/a%3Fb/generate"},
        400,
        "/v2/models/a?b/generate is not offered",
    ),
    "brotli": (infer(asked(), content_encoding="br"), 415, "'br' is not read"),
}


@pytest.fixture(scope="module")
def server(settings: Settings) -> Iterator[httpx.Client]:
    card = make_card()
    with serve(create_app(settings, FakeEngine(card.table(), 3))) as client:
        yield client


@pytest.mark.parametrize("name", BAD)
def test_v2_bad_request_refused_in_its_form_and_service_stays_healthy(
    server: httpx.Client, name: str
) -> None:
    request, status, words = BAD[name]
    response = server.request(**request)
    body = response.json()
    assert (response.status_code, list(body)) == (status, ["error"])
    assert words in body["error"]
    assert len(body["error"]) < 400
    assert server.request(**infer(asked())).status_code == 200


def test_v2_infer_json_answers_json(server: httpx.Client) -> None:
    response = server.request(**infer(asked(png(64), png(190), id="7")))
    assert LENGTH not in response.headers
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert (body["id"], body["model_name"], body["model_version"]) == ("7", "tiny", "1")
    outputs = {output["name"]: output["data"] for output in body["outputs"]}
    assert outputs["label"] == ["cat", "dog"]


def test_v2_infer_binary_answers_json_and_bytes(server: httpx.Client) -> None:
    values = np.full((2, 3, SIZE, SIZE), 1, np.float32)
    head = {
        "inputs": [
            {**ROW, "shape": [2, 3, 8, 8], "parameters": {"binary_data_size": values.nbytes}}
        ],
        "outputs": [{"name": "logits"}],
        "parameters": {"binary_data_output": True},
    }
    response = server.request(**infer(head, values.tobytes()))
    assert response.headers["content-type"] == "application/octet-stream"
    size = int(response.headers[LENGTH])
    (output,) = json.loads(response.content[:size])["outputs"]
    assert output["parameters"] == {"binary_data_size": 24}
    np.testing.assert_array_equal(
        np.frombuffer(response.content[size:], "<f4"), np.array([-1, 0, -1] * 2)
    )


@pytest.mark.parametrize("pack", [None, "gzip"])
def test_v2_infer_raw_body_is_one_image(server: httpx.Client, pack: str | None) -> None:
    content, headers = png(190), {LENGTH: "0", "accept-encoding": "identity"}
    if pack:
        content, headers = gzip.compress(content), {**headers, "content-encoding": pack}
    response = server.post(INFER, content=content, headers=headers)
    size = int(response.headers[LENGTH])
    assert [output["shape"][0] for output in json.loads(response.content[:size])["outputs"]] == [
        1
    ] * 6
    assert response.content[size:].count(b"\x03\x00\x00\x00dog") == 1


@pytest.mark.parametrize(
    ("accept", "expected"), [("gzip", "gzip"), ("deflate", "deflate"), ("br", None)]
)
def test_v2_infer_answer_is_encoded_as_accepted(
    server: httpx.Client, accept: str, expected: str | None
) -> None:
    response = server.request(**infer(asked(), accept_encoding=accept))
    assert response.headers.get("content-encoding") == expected
    assert response.json()["model_name"] == "tiny"


def test_v2_refusal_is_never_encoded(server: httpx.Client) -> None:
    response = server.request(**infer(asked(b"x"), accept_encoding="gzip"))
    assert "content-encoding" not in response.headers


def test_v2_answers_equal_those_of_classify(server: httpx.Client) -> None:
    contents = [encode(Image.effect_noise((30, 20), 50 * n).convert("RGB")) for n in range(1, 5)]
    body = server.request(**infer(asked(*contents, parameters={"budget": 0.4, "cap": 0.9}))).json()
    outputs = {output["name"]: output for output in body["outputs"]}
    for row, content in enumerate(contents):
        single = server.post("/classify?budget=0.4&cap=0.9", content=content).json()
        shares = {p["index"]: p["probability"] for p in single["predictions"]}
        np.testing.assert_allclose(
            np.reshape(outputs["probabilities"]["data"], (4, 3))[row],
            [shares[n] for n in range(3)],
            rtol=1e-6,
        )
        assert outputs["label"]["data"][row] == single["predictions"][0]["label"]
        assert outputs["widths"]["data"][3 * row :][:3] == single["compute"]["widths"]
        assert outputs["macs"]["data"][row] == single["compute"]["macs"]
        assert outputs["fraction"]["data"][row] == single["compute"]["fraction"]


def test_v2_metrics_have_bounded_routes(server: httpx.Client) -> None:
    server.request(**infer(asked()))
    for number in range(3):
        server.get(f"/v2/models/m{number}")
        server.get(f"/v2/nope/{number}")
    text = server.get("/metrics").text
    assert 'rnp_requests_total{code="200",route="/v2/models/{name}/infer"}' in text
    assert 'rnp_requests_total{code="404",route="/v2/models/{name}"} ' in text
    assert "m1" not in text
    assert "/v2/nope" not in text


def test_v2_statistics_count_images_and_failures(client: httpx.Client) -> None:
    client.request(**infer(asked(png(), png())))
    client.post("/classify", content=png())
    client.request(**infer(asked(b"x")))
    (found,) = client.get("/v2/models/stats").json()["model_stats"]
    assert found == client.get("/v2/models/tiny/stats").json()["model_stats"][0]
    assert (found["inference_count"], found["inference_stats"]["fail"]["count"]) == (3, 1)
    assert 2 <= found["execution_count"] <= 3


def test_v2_index_tells_ready_models(client: httpx.Client, app) -> None:
    ready = [{"name": "tiny", "version": "1", "state": "READY", "reason": ""}]
    for body in (b"", b"{}", b'{"ready": true}'):
        assert client.post("/v2/repository/index", content=body).json() == ready
    app.state.service.drain()
    assert client.post("/v2/repository/index", json={"ready": True}).json() == []
    assert client.post("/v2/repository/index").json()[0]["state"] == "UNLOADING"


def test_v2_before_bundles_are_loaded_is_503(settings: Settings, engine: FakeEngine) -> None:
    client = TestClient(create_app(settings, engine))  # not entered: nothing is started
    for path in ("/v2/health/ready", "/v2/models/tiny", "/v2/models/tiny/ready"):
        response = client.get(path)
        assert (response.status_code, list(response.json())) == (503, ["error"])
        assert response.headers["retry-after"] == "1"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.post("/v2/repository/index").json()[0]["state"] == "LOADING"
    client.app.state.service.decoders.shutdown()


def test_v2_full_queue_is_429(client: httpx.Client, engine: FakeEngine) -> None:
    engine.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.request, **infer(asked()))
        assert engine.started.wait(10)
        waiting = pool.submit(client.request, **infer(asked(*[png()] * 4)))
        wait_until(lambda: "rnp_queue_depth 4.0" in client.get("/metrics").text)
        refused = client.request(**infer(asked()))
        engine.gate.set()
        assert first.result(10).status_code == waiting.result(10).status_code == 200
    assert (refused.status_code, list(refused.json())) == (429, ["error"])
    assert refused.headers["retry-after"] == "1"


def test_v2_engine_error_is_500_in_its_form(client: httpx.Client, engine: FakeEngine) -> None:
    engine.failure = RuntimeError("secret")
    response = client.request(**infer(asked()))
    assert (response.status_code, list(response.json())) == (500, ["error"])
    assert "secret" not in response.text
