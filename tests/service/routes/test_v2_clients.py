"""NVIDIA's own client, as it is: every call of the protocol, in its plain and its asyncio form."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as plain
import tritonclient.http.aio as aio
from tritonclient.utils import InferenceServerException

from models.card import Card
from models.preprocess import preprocess
from service.app import create_app
from service.settings import Settings
from tests.service.support import FakeEngine, make_card, png, serve

OUTPUTS = ["probabilities", "logits", "label", "widths", "macs", "fraction"]
COLOURS = (190, 64)

# Makes a call on a client, whichever of the two it is.
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def server(settings: Settings) -> Iterator[httpx.Client]:
    card = make_card()
    with serve(create_app(settings, FakeEngine(card.table(), 3))) as client:
        yield client


@pytest.fixture(params=["plain", "aio"])
def ask(request: pytest.FixtureRequest, server: httpx.Client) -> Iterator[Ask]:
    """`ask("infer", …)` is the answer of the client's method `infer`."""
    address = f"{server.base_url.host}:{server.base_url.port}"
    if request.param == "plain":
        with plain.InferenceServerClient(address) as client:
            yield lambda method, *args, **more: getattr(client, method)(*args, **more)
        return

    async def call(method: str, *args: Any, **more: Any) -> Any:
        async with aio.InferenceServerClient(address) as client:
            answer: Awaitable[Any] = getattr(client, method)(*args, **more)
            return await answer

    yield lambda *args, **more: asyncio.run(call(*args, **more))


def files(*colours: int) -> plain.InferInput:
    tensor = plain.InferInput("image", [len(colours)], "BYTES")
    return tensor.set_data_from_numpy(np.array([png(colour) for colour in colours], object))


def values(card: Card, *colours: int, binary: bool = True) -> plain.InferInput:
    rows = np.stack([preprocess(png(colour), card.preprocessing, 10**6) for colour in colours])
    tensor = plain.InferInput("input", list(rows.shape), "FP32")
    return tensor.set_data_from_numpy(rows, binary_data=binary)


def check(result: plain.InferResult, server: httpx.Client, *colours: int, query: str = "") -> None:
    """The answers are those of /classify for the same images."""
    assert [output["name"] for output in result.get_response()["outputs"]] == OUTPUTS
    for row, colour in enumerate(colours):
        single = server.post(f"/classify{query}", content=png(colour)).json()
        best = single["predictions"]
        found = {name: result.as_numpy(name)[row] for name in OUTPUTS}
        order = np.argsort(-found["logits"], kind="stable")
        assert order.tolist() == [prediction["index"] for prediction in best]
        np.testing.assert_allclose(
            found["probabilities"][order], [p["probability"] for p in best], rtol=1e-6
        )
        assert found["label"].decode() == best[0]["label"]
        assert found["widths"].tolist() == single["compute"]["widths"]
        assert found["macs"] == single["compute"]["macs"]
        assert found["fraction"] == single["compute"]["fraction"]


def test_client_health(ask: Ask) -> None:
    assert ask("is_server_live") is True
    assert ask("is_server_ready") is True
    assert ask("is_model_ready", "tiny") is True
    assert ask("is_model_ready", "tiny", "1") is True
    assert ask("is_model_ready", "tiny", "2") is False
    assert ask("is_model_ready", "big") is False


def test_client_metadata(ask: Ask) -> None:
    assert ask("get_server_metadata")["name"] == "runtime-neural-pruning"
    for version in ("", "1"):
        metadata = ask("get_model_metadata", "tiny", version)
        assert [entry["name"] for entry in metadata["inputs"]] == ["image", "input"]
        assert [entry["name"] for entry in metadata["outputs"]] == OUTPUTS
        assert ask("get_model_config", "tiny", version)["name"] == "tiny"
    assert [entry["name"] for entry in ask("get_model_repository_index")] == ["tiny"]


def test_client_statistics(ask: Ask) -> None:
    def count(*args: str) -> int:
        (entry,) = ask("get_inference_statistics", *args)["model_stats"]
        return entry["inference_count"]

    before = count()
    ask("infer", "tiny", [files(*COLOURS)])
    assert count("tiny") == count("tiny", "1") == before + 2


def test_client_infer_files(ask: Ask, server: httpx.Client) -> None:
    check(ask("infer", "tiny", [files(*COLOURS)]), server, *COLOURS)


@pytest.mark.parametrize("binary", [True, False])
def test_client_infer_values(ask: Ask, server: httpx.Client, card: Card, binary: bool) -> None:
    check(ask("infer", "tiny", [values(card, *COLOURS, binary=binary)]), server, *COLOURS)


def test_client_infer_version(ask: Ask, server: httpx.Client) -> None:
    check(ask("infer", "tiny", [files(190)], model_version="1"), server, 190)


@pytest.mark.parametrize("binary", [True, False])
def test_client_infer_outputs(ask: Ask, binary: bool) -> None:
    outputs = [plain.InferRequestedOutput(name, binary_data=binary) for name in ("macs", "label")]
    result = ask("infer", "tiny", [files(190)], outputs=outputs)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["macs", "label"]
    assert all(("data" in output) is not binary for output in result.get_response()["outputs"])
    assert result.as_numpy("macs").dtype == np.int64
    assert result.as_numpy("label").tolist() == [b"dog" if binary else "dog"]
    assert result.as_numpy("logits") is None


@pytest.mark.parametrize("binary", [True, False])
def test_client_infer_classification(ask: Ask, binary: bool) -> None:
    output = plain.InferRequestedOutput("probabilities", binary_data=binary, class_count=2)
    found = ask("infer", "tiny", [files(*COLOURS)], outputs=[output]).as_numpy("probabilities")
    texts = [[x.decode() if binary else x for x in row] for row in found]
    assert [[x.split(":", 1)[1] for x in row] for row in texts] == [
        ["1:dog", "0:cat"],
        ["0:cat", "1:dog"],
    ]
    shares = [[float(x.split(":")[0]) for x in row] for row in texts]
    assert all(1 > first > second > 0 for first, second in shares)


@pytest.mark.parametrize("sent", [None, "gzip", "deflate"])
@pytest.mark.parametrize("wanted", [None, "gzip", "deflate"])
def test_client_infer_compressed(
    ask: Ask, server: httpx.Client, sent: str | None, wanted: str | None
) -> None:
    result = ask(
        "infer",
        "tiny",
        [files(*COLOURS)],
        request_compression_algorithm=sent,
        response_compression_algorithm=wanted,
    )
    check(result, server, *COLOURS)


def test_client_infer_id(ask: Ask) -> None:
    result = ask("infer", "tiny", [files(190)], request_id="my own")
    assert result.get_response()["id"] == "my own"


def test_client_infer_budget_and_cap(ask: Ask, server: httpx.Client) -> None:
    for parameters, query in (
        ({"budget": 1}, "?budget=1"),
        ({"budget": 0.4, "cap": 0.4}, "?budget=0.4&cap=0.4"),
    ):
        result = ask("infer", "tiny", [files(190)], parameters=parameters)
        check(result, server, 190, query=query)
        told = result.get_response()["parameters"]
        assert told == {"budget_by": "request", **parameters}


@pytest.mark.parametrize(
    ("method", "args", "status", "words"),
    [
        ("infer", ("big", [files(190)]), "404", "'big'"),
        ("infer", ("tiny", [files(190)], "2"), "404", "no version '2'"),
        ("infer", ("tiny", [files(*[1] * 5)]), "413", "the limit is 4"),
        ("get_model_metadata", ("big",), "404", "'big'"),
        ("load_model", ("big",), "400", "no bundle of this name: choose one of tiny"),
        ("load_model", ("tiny", None, None, "{}"), "400", "config is not offered"),
        ("unload_model", ("tiny",), "409", "can be replaced but not unloaded"),
        ("unload_model", ("big",), "404", "'big': choose one of tiny"),
        ("get_trace_settings", (), "400", "not offered"),
        ("get_log_settings", (), "400", "not offered"),
        ("get_system_shared_memory_status", (), "400", "not offered"),
        ("get_cuda_shared_memory_status", (), "400", "not offered"),
    ],
)
def test_client_refusal_is_its_exception(
    ask: Ask, method: str, args: tuple[Any, ...], status: str, words: str
) -> None:
    with pytest.raises(InferenceServerException, match=words) as refusal:
        ask(method, *args)
    assert refusal.value.status() == status


def test_client_async_infer(server: httpx.Client) -> None:
    address = f"{server.base_url.host}:{server.base_url.port}"
    with plain.InferenceServerClient(address, concurrency=2) as client:
        asked = [client.async_infer("tiny", [files(colour)]) for colour in COLOURS]
        for colour, one in zip(COLOURS, asked, strict=True):
            check(one.get_result(), server, colour)


def test_client_aio_infer_at_once(server: httpx.Client) -> None:
    async def ask_all() -> list[plain.InferResult]:
        address = f"{server.base_url.host}:{server.base_url.port}"
        async with aio.InferenceServerClient(address) as client:
            return await asyncio.gather(*(client.infer("tiny", [files(x)]) for x in COLOURS))

    for colour, result in zip(COLOURS, asyncio.run(ask_all()), strict=True):
        check(result, server, colour)


def test_client_helpers_make_and_read_bodies(server: httpx.Client) -> None:
    body, size = plain.InferenceServerClient.generate_request_body([files(190)])
    response = server.post(
        "/v2/models/tiny/infer",
        content=body,
        headers={"Inference-Header-Content-Length": str(size), "Accept-Encoding": "identity"},
    )
    result = plain.InferenceServerClient.parse_response_body(
        response.content,
        header_length=int(response.headers["Inference-Header-Content-Length"]),
    )
    check(result, server, 190)
