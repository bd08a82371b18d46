from __future__ import annotations

import re

import httpx


def test_get_docs_needs_nothing_from_elsewhere(reader: httpx.Client) -> None:
    page = reader.get("/docs").text
    assert "://" not in page
    assert '"validatorUrl": null' in page
    assets = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len(assets) == 3
    for asset in assets:
        response = reader.get(asset)
        assert response.status_code == 200
        assert response.headers["content-type"].split(";")[0] in (
            "text/css",
            "text/javascript",
            "image/png",
        )


def test_get_root_leads_to_docs(reader: httpx.Client) -> None:
    response = reader.get("/")
    assert (response.status_code, response.headers["location"]) == (307, "/docs")


def test_openapi_tells_answers_and_errors(reader: httpx.Client) -> None:
    api = reader.get("/openapi.json").json()
    post = api["paths"]["/classify"]["post"]
    assert set(post["responses"]) == {"200", "400", "408", "413", "415", "422", "429", "503", "504"}
    refusal = post["responses"]["422"]["content"]["application/json"]["schema"]
    assert refusal == {"$ref": "#/components/schemas/ErrorBody"}
    assert {"application/octet-stream", "multipart/form-data"} == set(
        post["requestBody"]["content"]
    )
    assert {p["name"] for p in post["parameters"]} == {
        "budget",
        "cap",
        "deadline_ms",
        "top_k",
        "model",
    }
    assert "HTTPValidationError" not in api["components"]["schemas"]


def test_openapi_tells_how_models_are_loaded(reader: httpx.Client) -> None:
    api = reader.get("/openapi.json").json()
    post = api["paths"]["/v2/repository/models/{name}/unload"]["post"]
    assert set(post["responses"]) == {"200", "4XX", "500", "503"}
    assert "content" not in post["responses"]["200"]  # it is empty
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert list(schema["properties"]["parameters"]["properties"]) == ["unload_dependents"]
