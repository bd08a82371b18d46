"""NVIDIA's own client loads and unloads models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from service.app import create_app
from service.settings import Settings
from tests.service.support import add_bundle, make_card, png, serve, wait_until


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    for name in ("tiny", "zebra"):
        add_bundle(tmp_path, make_card(name))
    return tmp_path


@pytest.fixture
def client(shelf: Path) -> Iterator[httpx.Client]:
    with serve(
        create_app(Settings(bundles=shelf, threads=1, cache_dir=shelf / ".cache"))
    ) as client:
        yield client


@pytest.fixture
def triton_client(client: httpx.Client) -> Iterator[triton.InferenceServerClient]:
    address = f"{client.base_url.host}:{client.base_url.port}"
    with triton.InferenceServerClient(address) as asking:
        yield asking


def states(client: triton.InferenceServerClient) -> dict[str, tuple[str, str]]:
    index = client.get_model_repository_index()
    return {entry["name"]: (entry["state"], entry["reason"]) for entry in index}


def infer(client: triton.InferenceServerClient, model: str) -> bytes:
    image = triton.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([png()], object))
    return client.infer(model, [image]).as_numpy("label")[0]


def test_unload_and_load(triton_client: triton.InferenceServerClient) -> None:
    before = infer(triton_client, "zebra")
    triton_client.unload_model("zebra")
    assert not triton_client.is_model_ready("zebra")
    gone = {"tiny": ("READY", ""), "zebra": ("UNAVAILABLE", "not loaded")}
    wait_until(lambda: states(triton_client) == gone)
    with pytest.raises(InferenceServerException, match="'zebra'") as refusal:
        infer(triton_client, "zebra")
    assert refusal.value.status() == "404"
    triton_client.load_model("zebra")
    assert triton_client.is_model_ready("zebra")
    assert states(triton_client) == {"tiny": ("READY", ""), "zebra": ("READY", "")}
    assert infer(triton_client, "zebra") == before


def test_load_replaces_what_is_served(
    triton_client: triton.InferenceServerClient, client: httpx.Client, shelf: Path
) -> None:
    def digest() -> str:
        return client.get("/models/zebra").json()["digest"]

    before = digest()
    triton_client.load_model("zebra")
    assert digest() == before
    for file in (shelf / "zebra").iterdir():
        file.unlink()
    (shelf / "zebra").rmdir()
    add_bundle(shelf, make_card("zebra"), seed=1)
    triton_client.load_model("zebra")
    assert digest() != before
    triton_client.unload_model("zebra", unload_dependents=True)


def test_index_tells_what_lies_on_disk(client: httpx.Client, shelf: Path) -> None:
    add_bundle(shelf, make_card("later"))
    (shelf / "broken").mkdir()
    (shelf / "broken/bundle.json").write_text("[1]")
    found = client.post("/v2/repository/index").json()
    assert {entry["name"]: entry["state"] for entry in found} == {
        "later": "UNAVAILABLE",
        "tiny": "READY",
        "zebra": "READY",
    }
    ready = client.post("/v2/repository/index", json={"ready": True}).json()
    assert [entry["name"] for entry in ready] == ["tiny", "zebra"]


def test_load_refusals_are_the_clients_exceptions(
    triton_client: triton.InferenceServerClient, shelf: Path
) -> None:
    (shelf / "zebra/model.safetensors").write_bytes(b"")
    with pytest.raises(InferenceServerException, match="does not match its SHA-256") as refusal:
        triton_client.load_model("zebra")
    assert refusal.value.status() == "400"
    assert triton_client.is_model_ready("zebra")
    with pytest.raises(InferenceServerException, match="the default model") as refusal:
        triton_client.unload_model("tiny")
    assert refusal.value.status() == "409"


def test_index_of_what_is_neither_true_nor_false_refused(reader: httpx.Client) -> None:
    response = reader.post("/v2/repository/index", json={"ready": "yes"})
    assert (response.status_code, response.json()) == (
        400,
        {"error": "ready must be true or false"},
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"parameters": {"file:1/model.onnx": "aGk="}}, "is not offered"),
        ({"parameters": [1]}, "must be a JSON object"),
        ([1], "must be a JSON object"),
        ({"parameters": {"\ud800": 1}}, "? is not offered"),
    ],
)
@pytest.mark.parametrize("action", ["load", "unload"])
def test_load_bad_body_refused(reader: httpx.Client, action: str, body: object, words: str) -> None:
    content = json.dumps(body)  # which keeps half of a surrogate pair, as httpx would not
    response = reader.post(f"/v2/repository/models/tiny/{action}", content=content)
    assert (response.status_code, list(response.json())) == (400, ["error"])
    assert words in response.json()["error"]
    assert reader.get("/v2/models/tiny/ready").status_code == 200


@pytest.mark.parametrize("action", ["load", "unload"])
def test_page_of_another_site_can_neither_load_nor_unload(
    client: httpx.Client, action: str
) -> None:
    url = f"/v2/repository/models/zebra/{action}"
    for site in ("cross-site", "same-site"):
        refused = client.post(url, headers={"Sec-Fetch-Site": site, "Origin": "https://a.test"})
        assert refused.status_code == 403
        assert "RNP_CORS_ORIGINS" in refused.json()["error"]
    assert client.post(url, headers={"Origin": "http://a.test"}).status_code == 403
    own = f"http://{client.base_url.netloc.decode()}"
    headers = {"Sec-Fetch-Site": "same-origin", "Origin": own}
    assert client.post(url, headers=headers).status_code == 200


def test_page_of_a_site_that_is_named_can_load_and_no_other(shelf: Path) -> None:
    settings = Settings(
        bundles=shelf, threads=1, cache_dir=shelf / ".cache", cors_origins=("https://a.test",)
    )
    with serve(create_app(settings)) as client:
        for origin, status in (("https://a.test", 200), ("https://b.test", 403)):
            headers = {"Sec-Fetch-Site": "cross-site", "Origin": origin}
            answer = client.post("/v2/repository/models/zebra/load", headers=headers)
            assert answer.status_code == status
