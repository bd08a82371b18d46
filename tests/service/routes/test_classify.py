from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from models.card import Card
from models.compute import path_macs
from service.app import create_app
from service.settings import Settings
from service.state import SMALL_FILE
from tests.service.support import (
    BY_LAYER,
    BY_PATH,
    PATHS,
    FakeEngine,
    add_bundle,
    encode,
    make_card,
    png,
    serve,
    wait_until,
)


def files(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", ("a.png", content)) for content in contents]


@pytest.fixture(params=[False, True], ids=["threads decode", "batches decode"])
def app(request: pytest.FixtureRequest, settings: Settings, engine: FakeEngine) -> FastAPI:
    return create_app(settings.model_copy(update={"decode_in_batch": request.param}), engine)


def test_classify_raw_body_answers_as_the_contract_says(client: httpx.Client, card: Card) -> None:
    response = client.post("/classify?budget=0.4&cap=0.9", content=png(190))
    assert response.status_code == 200
    body = response.json()
    table, widths = card.table(), list(PATHS[1])
    macs = table.looks[0] + table.looks[1]
    predictions, timing = body.pop("predictions"), body.pop("timing_ms")
    assert body == {
        "model": "tiny",
        "budget": 0.4,
        "budget_by": "request",
        "cap": 0.9,
        "compute": {
            "macs": macs,
            "flops": 2 * macs,
            "fraction": macs / table.full,
            "full_macs": table.full,
            "agent_macs": macs - int(path_macs(np.array([widths]), table, agent=False)[0]),
            "widths": widths,
            "groups": 4,
        },
        "request_id": response.headers["x-request-id"],
    }
    assert [(p["label"], p["index"]) for p in predictions] == [("dog", 1), ("cat", 0), ("owl", 2)]
    distances = np.abs((190 / 255 - 0.5) / 0.25 - np.array([1, 0, 2]))
    powers = np.exp(-distances / card.temperature)
    np.testing.assert_allclose(
        [p["probability"] for p in predictions], powers / powers.sum(), rtol=1e-5
    )
    assert list(timing) == ["decode", "queue", "inference", "total"]
    assert 0 < timing["decode"] + timing["inference"] <= timing["total"]


def test_classify_budget_one_runs_the_plain_network(reader: httpx.Client, card: Card) -> None:
    compute = reader.post("/classify?budget=1", content=png()).json()["compute"]
    assert compute["macs"] == compute["full_macs"] == card.table().full
    assert (compute["fraction"], compute["agent_macs"], compute["widths"]) == (1, 0, [4, 4, 4])


def test_classify_budget_one_with_a_cap_consults_the_agent(reader: httpx.Client) -> None:
    compute = reader.post("/classify?budget=1&cap=0.4", content=png()).json()["compute"]
    assert compute["fraction"] <= 0.4
    assert compute["agent_macs"] > 0


def test_classify_without_a_cap_says_so_and_may_spend_more_than_the_full_network(
    client: httpx.Client, card: Card
) -> None:
    body = client.post("/classify?budget=0.9", content=png()).json()
    assert "cap" in body
    assert body["cap"] is None
    table, compute = card.table(), body["compute"]
    assert compute["macs"] == table.looks[0] + table.full
    assert compute["fraction"] > 1
    assert (compute["agent_macs"], compute["widths"]) == (table.looks[0], [4, 4, 4])


def test_classify_with_a_cap_of_one_spends_no_more_than_the_full_network(
    client: httpx.Client,
) -> None:
    body = client.post("/classify?budget=0.9&cap=1", content=png()).json()
    assert body["cap"] == 1
    assert body["compute"]["fraction"] <= 1


def test_classify_multipart_without_a_cap_has_none_in_each_result(client: httpx.Client) -> None:
    results = client.post("/classify?budget=0.9", files=files(png(), png())).json()["results"]
    assert [result["cap"] for result in results] == [None, None]
    assert all(result["compute"]["fraction"] > 1 for result in results)


def test_classify_no_budget_takes_the_one_in_force(client: httpx.Client) -> None:
    assert client.post("/classify", content=png()).json()["budget"] == 0.5
    client.put("/budget", json={"mode": "fixed", "budget": 0.7})
    assert client.post("/classify", content=png()).json()["budget"] == 0.7


@pytest.mark.parametrize(("top_k", "expected"), [(1, 1), (2, 2), (3, 3), (1000, 3)])
def test_classify_top_k_limits_predictions(reader: httpx.Client, top_k: int, expected: int) -> None:
    body = reader.post(f"/classify?top_k={top_k}", content=png()).json()
    assert len(body["predictions"]) == expected


@pytest.mark.parametrize(
    "content_type",
    ["image/png", "application/x-www-form-urlencoded", "application/octet-stream", "", "text/html"],
)
def test_classify_any_content_type_is_read_by_content(
    reader: httpx.Client, content_type: str
) -> None:
    response = reader.post("/classify", content=png(), headers={"content-type": content_type})
    assert response.status_code == 200


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_classify_allowed_format_answered(reader: httpx.Client, kind: str) -> None:
    content = encode(Image.new("RGB", (30, 20)), kind)
    assert reader.post("/classify", content=content).status_code == 200


def test_classify_encoding_that_changes_nothing_is_accepted(reader: httpx.Client) -> None:
    for encoding in ("identity", "Identity", ""):
        response = reader.post("/classify", content=png(), headers={"Content-Encoding": encoding})
        assert response.status_code == 200
    assert reader.post("/classify", headers={"Content-Encoding": "br"}).status_code == 415


def test_classify_multipart_answers_parts_in_order(reader: httpx.Client) -> None:
    colours = (64, 192, 128)
    response = reader.post("/classify", files=files(*map(png, colours)))
    results = response.json()["results"]
    singles = [reader.post("/classify", content=png(colour)).json() for colour in colours]
    assert [r["predictions"] for r in results] == [s["predictions"] for s in singles]
    assert {r["request_id"] for r in results} == {response.headers["x-request-id"]}


def test_classify_multipart_bad_part_is_an_error_of_its_own(reader: httpx.Client) -> None:
    contents = (png(), b"text", png(), encode(Image.new("RGB", (8, 8)), "TIFF"))
    response = reader.post("/classify", files=files(*contents))
    results = response.json()["results"]
    assert response.status_code == 200
    assert [result.get("code") for result in results] == [
        None,
        "not_an_image",
        None,
        "format_not_allowed",
    ]
    assert set(results[1]) == {"error", "code"}


def test_classify_multipart_of_too_many_pixels_together_is_answered_up_to_the_limit(
    client: httpx.Client, settings: Settings
) -> None:
    big, small = png(size=(1000, 900)), png(size=(1000, 500))
    assert settings.max_request_pixels == 2_000_000
    results = client.post("/classify", files=files(big, small, small)).json()["results"]
    assert [result.get("code") for result in results] == [None] * 3
    results = client.post("/classify", files=files(big, big, small, png())).json()["results"]
    assert sorted(result.get("code", "") for result in results) == ["", "", "", "too_many_pixels"]
    (refusal,) = (result["error"] for result in results if "error" in result)
    assert "more than 2000000 pixels together" in refusal


def test_classify_multipart_of_jpegs_that_are_read_smaller_counts_what_is_read(
    client: httpx.Client,
) -> None:
    photo = encode(Image.new("RGB", (1000, 900)), "JPEG")
    results = client.post("/classify", files=files(*[photo] * 4)).json()["results"]
    assert [result.get("code") for result in results] == [None] * 4


def test_classify_model_by_name(tmp_path: Path, settings: Settings, engine: FakeEngine) -> None:
    for name, agent in (("first", BY_LAYER), ("second", BY_PATH)):
        add_bundle(tmp_path, make_card(name, agent))
    both = settings.model_copy(
        update={"bundles": tmp_path, "model": "second", "cache_dir": tmp_path}
    )
    with serve(create_app(both, engine)) as client:
        assert client.post("/classify", content=png()).json()["model"] == "second"
        first = client.post("/classify?model=first", content=png()).json()
        assert first["model"] == "first"
        assert first["compute"]["widths"][0] == 4
        listed = {m["name"]: m for m in client.get("/models").json()["models"]}
        assert [listed["first"]["default"], listed["second"]["default"]] == [False, True]
        assert [listed["first"]["engine"], listed["second"]["engine"]] == ["onnx", "fake"]


def test_classify_metrics_equal_the_sum_over_responses(client: httpx.Client) -> None:
    def post(number: int) -> dict:
        query = ("budget=1", "budget=0.4", "cap=0.4", "")[number % 4]
        return client.post(f"/classify?{query}", content=png()).raise_for_status().json()

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(post, range(40)))
    text = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    flops = sum(answer["compute"]["flops"] for answer in answers)
    assert int(float(values['rnp_flops_total{model="tiny"}'])) == flops
    assert float(values['rnp_images_total{model="tiny"}']) == 40
    assert float(values['rnp_stage_seconds_count{stage="decode"}']) == 40
    assert float(values['rnp_requests_total{code="200",route="/classify"}']) == 40


def test_classify_large_file_is_decoded_by_a_thread_of_its_own_either_way(
    client: httpx.Client, app: FastAPI
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    large, settings = encode(Image.fromarray(noise), "PNG"), app.state.service.settings
    assert len(large) > SMALL_FILE > len(png())
    for content in (large, png()):
        client.post("/classify", content=content).raise_for_status()
    text = client.get("/metrics").text
    waited = 1 if settings.decode_in_batch else 2
    assert f'rnp_stage_seconds_count{{stage="decode_queue"}} {waited}.0' in text
    assert 'rnp_stage_seconds_count{stage="decode"} 2.0' in text


def test_classify_decoding_is_reckoned_with_once(client: httpx.Client, app: FastAPI) -> None:
    client.post("/classify", content=png()).raise_for_status()
    service = app.state.service
    # What batches decode is in what they take.
    decode = service.model(None).planner.estimate.decode
    assert (decode.mean > 0) == (not service.settings.decode_in_batch)


def test_classify_full_queue_is_429_and_decodes_nothing(
    client: httpx.Client, engine: FakeEngine
) -> None:
    engine.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.post, "/classify", content=png())
        assert engine.started.wait(10)
        waiting = pool.submit(client.post, "/classify", files=files(*[png()] * 4))
        wait_until(lambda: "rnp_queue_depth 4.0" in client.get("/metrics").text)
        refused = client.post("/classify", content=b"not even an image")
        engine.gate.set()
        assert first.result(10).status_code == waiting.result(10).status_code == 200
    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    assert refused.headers["retry-after"] == "1"
    assert client.post("/classify", content=png()).status_code == 200


def test_classify_engine_error_is_500_without_its_text(
    client: httpx.Client, engine: FakeEngine
) -> None:
    engine.failure = RuntimeError("secret")
    response = client.post("/classify", content=png())
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in response.json()["error"]
    engine.failure = None
    assert client.post("/classify", content=png()).status_code == 200


def test_classify_client_that_hangs_up_leaves_no_place_taken(client: httpx.Client) -> None:
    for _ in range(10):
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            connection.sendall(
                b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\nab"
            )
    assert client.post("/classify", files=files(*[png()] * 4)).status_code == 200
    assert "rnp_queue_depth 0.0" in client.get("/metrics").text
